"""Prompts: what two stages gain, and what they cost those who are being answered.

    python benchmarks/prompts.py [--rounds 5] [--pin] [--split 9,7] [--json FILE]

1. Time to the first token of 2,048 tokens in chunks of 256, two stages on two cores against one
   stage on one.
2. Time to the first token of 512 tokens while eight streams decode on two stages, against the same
   prompt alone; and the time between two tokens of the eight while that prompt is computed, against
   the time before and after.

Two stages share both cores and compute in turn; with `--pin` each has a core of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

from serve_bench import about, random_model, serving, wait_ready  # beside this
from streams import Answer, Ask, run

PREFILL, CHUNK = 2048, 256
PROMPT, STREAMS, STREAM_PROMPT, STREAM_TOKENS = 512, 8, 64, 600
TWO = ("--stages", "2")


def first_ms(port: int, prompt: int, seed: int) -> float:
    """Time to the first token of one prompt."""
    (answer,) = run(port, [Ask(prompt, 1, seed)], 1)
    return 1e3 * answer.ttft_s


def measure_prefill(model: Path, rounds: int, layout: tuple[str, ...]) -> dict[str, float]:
    """One and two stages, asked turn by turn."""
    words = ("--max-model-len", "4096", "--max-step-tokens", str(CHUNK))
    taken: dict[str, list[float]] = {"one": [], "two": []}
    with (
        serving(model, "--stages", "1", "--pin", *words) as one,
        serving(model, *TWO, *layout, *words) as two,
    ):
        for server in (one, two):
            wait_ready(server)
        for turn in range(rounds + 2):
            for name, server in (("one", one), ("two", two)):
                taken[name].append(first_ms(server.port, PREFILL, turn))
    ratios = [a / b for a, b in zip(taken["one"][2:], taken["two"][2:], strict=True)]
    medians = {name: statistics.median(values[2:]) for name, values in taken.items()}
    return {**medians, "ratio": statistics.median(ratios)}


def measure_load(model: Path, rounds: int, layout: tuple[str, ...]) -> dict[str, float]:
    """Eight streams that decode, and a prompt that comes now and then."""
    words = ("--max-sequences", "64", "--max-model-len", "2048")
    with serving(model, *TWO, *layout, *words) as server:
        wait_ready(server)
        for turn in range(3):
            first_ms(server.port, PROMPT, turn)
        alone = [first_ms(server.port, PROMPT, 10 + turn) for turn in range(rounds)]
        streams: list[Answer] = []
        asks = [Ask(STREAM_PROMPT, STREAM_TOKENS, 100 + i) for i in range(STREAMS)]
        thread = threading.Thread(target=lambda: streams.extend(run(server.port, asks, STREAMS)))
        thread.start()
        time.sleep(6.0)
        loaded, windows = [], []
        for turn in range(rounds):
            began_s = time.perf_counter()
            loaded.append(first_ms(server.port, PROMPT, 50 + turn))
            windows.append((began_s, time.perf_counter()))
            time.sleep(0.5)
        thread.join()
    first_s, last_s = windows[0][0], windows[-1][1]
    inside: list[float] = []
    quiet: list[float] = []
    for stream in streams:
        for before_s, after_s in zip(stream.pieces_s, stream.pieces_s[1:], strict=False):
            hit = any(before_s < end_s and after_s > start_s for start_s, end_s in windows)
            if hit:
                inside.append(1e3 * (after_s - before_s))
            elif first_s - 3 < before_s < last_s + 1:
                quiet.append(1e3 * (after_s - before_s))
    return {
        "alone_ms": statistics.median(alone),
        "loaded_ms": statistics.median(loaded),
        "ratio": statistics.median(loaded) / statistics.median(alone),
        "quiet_itl_ms": statistics.median(quiet),
        "loaded_itl_ms": statistics.mean(inside),
        "worst_itl_ms": max(inside),
        "itl_ratio": statistics.mean(inside) / statistics.median(quiet),
    }


def show(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pin", action="store_true", help="a core for each of two stages")
    parser.add_argument("--split", help="layers of the two stages; by default as planned")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    split = ("--split", arguments.split) if arguments.split else ()
    layout = (*split, "--pin") if arguments.pin else split
    print("\n".join(f"{name}: {value}" for name, value in about().items()))
    with random_model(arguments.model, arguments.folder) as folder:
        prefill = measure_prefill(folder, arguments.rounds, layout)
        print(f"prefill of {PREFILL} in chunks of {CHUNK}: {show(prefill)}; wanted >= 1.6")
        load = measure_load(folder, arguments.rounds, layout)
        print(f"a prompt of {PROMPT} beside {STREAMS} streams: {show(load)}; wanted <= 2 and <= 2")
    if arguments.json:
        document = {"about": about(), "prefill": prefill, "load": load}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
