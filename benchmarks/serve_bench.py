"""What the split and the start cost, measured with the real `lamella serve`.

    python benchmarks/serve_bench.py [--model m768] [--rounds 7] [--starts 3] [--json FILE]

1. The split: time per output token at batch 1, two stages each pinned to a core of its own, less
   what the stages themselves computed (their traces, from stage 0's /status).
2. Two stages on two cores against one stage on one core, in milliseconds per token.
3. The start: from `lamella serve` to the first token, less importing torch and transformers once,
   with a warm page cache.

Both servers of 1 and 2 run at the same time and are asked turn by turn, imports and starts of 3
alternate too, so that a busy machine hits all alike; figures are medians.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from processes import random_model, started  # beside this

from lamella import status, watch
from lamella.machine import free_ports

TOKENS = 128
START_TIMEOUT_S = 300.0
SPLIT_TARGET_MS, STAGES_TARGET_MS, START_TARGET_S = 0.6, 3.0, 2.0
IMPORTS = (
    "import torch, transformers; transformers.AutoModelForCausalLM, transformers.PreTrainedModel"
)


@dataclass(frozen=True)
class Server:
    """A running `lamella serve`."""

    process: subprocess.Popen[bytes]
    port: int
    run_base: Path
    log: Path

    def run(self) -> status.Run:
        (found,) = status.runs(list(self.run_base.glob("lamella-*")))
        return found

    def stage(self, number: int) -> dict[str, Any]:
        """What a stage says of itself."""
        port = self.run().document["probe_ports"][number]
        document = watch.get_json("127.0.0.1", port, "/status")
        if document is None:
            raise SystemExit(f"stage {number} does not answer; its log is {self.log}")
        return document

    def ring(self) -> dict[str, Any]:
        """Stage 0's totals over finished steps: steps, and compute nanoseconds of each stage."""
        return dict(self.stage(0)["ring"])

    def stream(self, tokens: int) -> tuple[list[float], int]:
        """Arrival times of the pieces of one answer, seconds, and its number of tokens."""
        body = {
            "model": "bench", "prompt": [5], "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), head)
        answer = connection.getresponse()
        times, count = [], 0
        if answer.status != 200:
            raise SystemExit(f"HTTP {answer.status}: {answer.read()!r}")
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            times.append(time.perf_counter())
            if b'"completion_tokens"' in line:
                count = json.loads(line[6:])["usage"]["completion_tokens"]
        connection.close()
        return times[:-1], count  # the last piece tells the usage and holds no token


@contextlib.contextmanager
def serving(model: Path, *words: str) -> Iterator[Server]:
    """Starts `lamella serve MODEL WORDS`; ends it afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        (port,), log = free_ports(1), Path(scratch) / "log"
        command = [sys.executable, "-m", "lamella", "serve", str(model), *words]
        command += ["--port", str(port), "--served-name", "bench", "--device", "cpu"]
        environment = {**os.environ, "XDG_RUNTIME_DIR": scratch}
        with (
            log.open("wb") as output,
            started(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
        ):
            yield Server(process, port, Path(scratch), log)


def wait_ready(server: Server) -> None:
    """Returns when /health is 200; shows the log when the server ended instead."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        answer = watch.get("127.0.0.1", server.port, "/health")
        if answer is not None and answer[0] == 200:
            return
        if server.process.poll() is not None:
            break
        time.sleep(0.01)
    raise SystemExit(f"lamella serve did not start:\n{server.log.read_text()}")


def decode(server: Server) -> tuple[float, float]:
    """One answer: milliseconds per token as the client sees it, and as the stages computed."""
    before = server.ring()
    times, count = server.stream(TOKENS)
    after = server.ring()
    compute_ns = sum(after["compute_ns"]) - sum(before["compute_ns"])
    # One step for each token; the step that frees the request has no rows and computes nothing.
    return 1e3 * (times[-1] - times[0]) / (count - 1), compute_ns / 1e6 / count


def measure_split(model: Path, rounds: int) -> dict[str, Any]:
    """Figures 1 and 2, interleaved."""
    samples: dict[str, list[tuple[float, float]]] = {"one": [], "two": []}
    with (
        serving(model, "--stages", "1", "--pin", "--max-model-len", "1024") as one,
        serving(model, "--stages", "2", "--pin", "--max-model-len", "1024") as two,
    ):
        servers = {"one": one, "two": two}
        for server in servers.values():
            wait_ready(server)
            server.stream(TOKENS)
        splits = two.run().document["splits"]
        for _ in range(rounds):
            for name, server in servers.items():
                samples[name].append(decode(server))
    one_ms = statistics.median(total for total, _ in samples["one"])
    two_ms = statistics.median(total for total, _ in samples["two"])
    pairs = zip(samples["one"], samples["two"], strict=True)
    return {
        "splits": splits,
        "one_stage_ms": one_ms,
        "two_stages_ms": two_ms,
        "two_stages_compute_ms": statistics.median(ms for _, ms in samples["two"]),
        "one_stage_overhead_ms": statistics.median(a - b for a, b in samples["one"]),
        "split_ms": statistics.median(a - b for a, b in samples["two"]),
        "stages_ms": statistics.median(two[0] - one[0] for one, two in pairs),
        "samples": samples,
    }


def import_s() -> float:
    """Seconds that a fresh process takes to import what every worker needs."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", IMPORTS], check=True)
    return time.perf_counter() - start


def first_token_s(model: Path) -> float:
    """Seconds from starting `lamella serve` to the first token of an answer."""
    start = time.perf_counter()
    with serving(model, "--stages", "2", "--pin", "--max-model-len", "1024") as server:
        wait_ready(server)
        times, _ = server.stream(2)
        return times[0] - start


def measure_start(model: Path, starts: int) -> dict[str, Any]:
    """Figure 3, imports and starts alternating; the first of each warms the page cache."""
    import_s()
    pairs = [(import_s(), first_token_s(model)) for _ in range(starts)]
    return {
        "import_s": statistics.median(pair[0] for pair in pairs),
        "first_token_s": statistics.median(pair[1] for pair in pairs),
        "start_s": statistics.median(pair[1] - pair[0] for pair in pairs),
        "samples": pairs,
    }


def about() -> dict[str, str]:
    """Machine and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "pyzmq")},
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def rows(split: dict[str, Any], start: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(figure, measured, target, verdict) of each figure."""
    figures = [
        ("split: time per token less compute, 2 stages", split["split_ms"], SPLIT_TARGET_MS, "ms"),
        ("2 stages less 1 stage, per token", split["stages_ms"], STAGES_TARGET_MS, "ms"),
        ("start to first token less imports", start["start_s"], START_TARGET_S, "s"),
    ]
    return [
        (name, f"{value:.2f} {unit}", f"<= {target} {unit}", "yes" if value <= target else "NO")
        for name, value, target, unit in figures
    ]


def report(model: str, split: dict[str, Any], start: dict[str, Any]) -> str:
    """The table, with what it takes to measure it again."""
    lines = [f"{name}: {value}" for name, value in about().items()]
    lines += [
        f"model: {model}, bf16, batch 1, {TOKENS} tokens, first layers of stages {split['splits']}",
        f"command: python benchmarks/serve_bench.py --model {model}",
        "",
        f"{'figure':<48}{'measured':>12}{'target':>12}  met",
        *(f"{name:<48}{got:>12}{want:>12}  {met}" for name, got, want, met in rows(split, start)),
        "",
        f"1 stage on 1 core: {split['one_stage_ms']:.2f} ms per token; 2 stages on 2 cores: "
        f"{split['two_stages_ms']:.2f} ms, of which {split['two_stages_compute_ms']:.2f} compute",
        f"imports {start['import_s']:.1f} s; start to first token {start['first_token_s']:.1f} s",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with random_model(arguments.model, arguments.folder) as folder:
        split = measure_split(folder, arguments.rounds)
        start = measure_start(folder, arguments.starts)
    print(report(arguments.model, split, start))
    if arguments.json:
        document = {"about": about(), "model": arguments.model, "split": split, "start": start}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
