"""From `lamella serve` to the first token, and what of it each part takes.

    python benchmarks/start.py [--model m768] [--starts 5] [--stages 2]

Seconds since the command, medians over the starts after a first one that warms the page cache:
planned (headers read, documents written), forked (the first stage answers: torch and what the
family needs are imported), loaded (every stage has its slice and pages), ready (the gateway has its
tokenizer and a ring that serves), first token (one more request and its answer).
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

from serve_bench import Server, random_model, serving

from lamella import status, watch

PARTS = ("planned", "forked", "loaded", "ready", "first token")
IMPORTS = {
    "torch": "import torch",
    "torch and transformers' layers": "import torch, transformers.modeling_utils",
}
LONGEST_S = 120.0


def one_start(model: Path, stages: int) -> dict[str, float]:
    """Seconds from the command to each of PARTS."""
    began = time.perf_counter()
    with serving(model, "--stages", str(stages), "--max-model-len", "1024") as server:
        seen: dict[str, float] = {}
        while "ready" not in seen:
            for part in reached(server, stages):
                seen.setdefault(part, time.perf_counter() - began)
            if server.process.poll() is not None or time.perf_counter() - began > LONGEST_S:
                raise SystemExit(f"lamella serve did not start:\n{server.log.read_text()}")
            time.sleep(0.01)
        times, _ = server.stream(2)
        seen["first token"] = times[0] - began
    return seen


def reached(server: Server, stages: int) -> list[str]:
    """The parts that are over, as far as the processes say."""
    runs = status.runs(list(server.run_base.glob("lamella-*")))
    if not runs or not runs[0].document.get("probe_ports"):
        return []
    ports = runs[0].document["probe_ports"]
    told = [watch.get_json("127.0.0.1", port, "/status") for port in ports]
    found = ["planned"]
    if any(told):
        found.append("forked")
    if sum(1 for each in told if each and each["state"] != "loading") == stages:
        found.append("loaded")
    answer = watch.get("127.0.0.1", server.port, "/health")
    if answer is not None and answer[0] == 200:
        found.append("ready")
    return found


def import_s(code: str) -> float:
    """Seconds that a fresh process takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768", help="a name of models.py, or a folder")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--stages", type=int, default=2)
    arguments = parser.parse_args()
    given = Path(arguments.model)
    made = contextlib.nullcontext(given) if given.is_dir() else random_model(arguments.model)
    with made as folder:
        one_start(folder, arguments.stages)
        starts = [one_start(folder, arguments.stages) for _ in range(arguments.starts)]
        for name, code in IMPORTS.items():
            print(f"importing {name}: {statistics.median(import_s(code) for _ in range(3)):.2f} s")
        before = 0.0
        for part in PARTS:
            at = statistics.median(start[part] for start in starts)
            spread = (min(start[part] for start in starts), max(start[part] for start in starts))
            print(f"{part:12} {at:5.2f} s ({spread[0]:.2f} to {spread[1]:.2f}), +{at - before:.2f}")
            before = at


if __name__ == "__main__":
    main()
