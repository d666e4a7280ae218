"""What grows with what: a step with its tokens and contexts, the scheduler with live requests.

    python benchmarks/growth.py [--model m768] [--plot docs/growth.png] [--json FILE]

1. The scheduler: CPU microseconds of composing a decode step and taking its result in, for 1 to
   256 live requests, with nothing queued and with 1,000 requests queued.
2. A step on one core: decode steps of 1 to 256 rows, prompts' chunks of 16 to 1,024 tokens. The
   scheduler's share of a step is (1) over the time of a decode step on one of two stages.
3. Contexts: a decode step of 8 rows at 128 to 4,096 tokens of context. What it takes beyond a step
   at a context of 16 is attention's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from decode import BLOCK, FileReader, describe, restart_with_memory_settings  # beside this

from lamella_contract.wire import RowResult, Sampling, StageTime, StepDone, Submit
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.scheduler import Scheduler

LIVE = (1, 4, 16, 64, 128, 256)
QUEUED = (0, 1000)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CHUNKS = (16, 64, 128, 256, 512, 1024)
CONTEXTS = (16, 128, 1024, 2048, 4096)
CONTEXT, BATCH = 128, 8
SHARE_TARGET, ATTENTION_TARGET = 0.05, 0.40


def submit(scheduler: Scheduler, number: int, prompt: int) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=4096, ignore_eos=True)
    request = Submit(number.to_bytes(16, "big"), 1, prompt, (2,) * prompt, sampling)
    scheduler.submit(request, b"gateway")


def scheduler_us(live: int, queued: int) -> float:
    """CPU of one decode step of all cohorts together, per step, median of blocks of steps."""
    scheduler = Scheduler(
        SchedulerLimits(
            num_blocks=live * 64,
            block_size=16,
            max_sequences=live,
            max_model_len=8192,
            max_step_tokens=2048,
            max_queued_tokens=1 << 30,
            stages=2,
        )
    )
    for number in range(live + queued):
        submit(scheduler, number, 8)
    trace = (StageTime(20_000_000, 1_000_000),) * 2
    now_s, taken = 0.0, []
    for _ in range(12):
        began_s, steps = time.process_time(), 0
        for _ in range(32):
            now_s += 0.02
            scheduled = scheduler.next_step(now_s)
            if scheduled is None:
                raise SystemExit("the scheduler has no step to make")
            steps += 1
            rows = tuple(
                RowResult(s.slot, s.generation, s.start + s.count, (2,))
                for s in scheduled.header.segments
                if s.sample
            )
            scheduler.complete(StepDone(scheduled.header.step, rows, trace), now_s + 0.01)
        taken.append(1e6 * (time.process_time() - began_s) / steps)
    return statistics.median(taken[4:])  # the first ones compute the prompts


class Runner:
    """The fast runner on one core, whole model; each sequence's blocks lie side by side."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoConfig

        from lamella_worker.fast.runner import FastRunner

        torch.set_num_threads(1)
        config = AutoConfig.from_pretrained(folder)
        reader = FileReader(folder / "model.safetensors")
        self.layers = config.num_hidden_layers
        self.runner = FastRunner.build(config, 0, self.layers, reader, torch.bfloat16, "cpu")
        self.runner.setup_caches(
            num_blocks=4096, block_size=BLOCK, max_sequences=256, max_model_len=8192
        )

    def step_ms(self, rows: int, start: int, count: int, rounds: int = 7) -> float:
        """CPU milliseconds of a step of `rows` sequences, `count` tokens each from `start` on."""
        import numpy as np
        import torch

        from lamella_worker.batch import Segment, StepBatch

        used = -(-(start + count) // BLOCK)
        segments = tuple(
            Segment(s, start, count, np.arange(s * used, (s + 1) * used, dtype=np.int32), True)
            for s in range(rows)
        )
        ids = torch.full((rows * count,), 5)
        taken = []
        for _ in range(rounds + 1):
            began_s = time.process_time()
            logits = self.runner.step(StepBatch(segments, BLOCK), {"token_ids": ids})["logits"]
            logits.numpy().argmax(-1)
            taken.append(1e3 * (time.process_time() - began_s))
        return statistics.median(taken[1:])


def measure(folder: Path) -> dict[str, Any]:
    """All figures, by their sizes."""
    scheduler = {
        str(queued): {str(live): scheduler_us(live, queued) for live in LIVE} for queued in QUEUED
    }
    runner = Runner(folder)
    return {
        "scheduler_us": scheduler,
        "decode_ms": {str(rows): runner.step_ms(rows, CONTEXT, 1) for rows in ROWS},
        "prefill_ms": {str(count): runner.step_ms(1, 0, count, 3) for count in CHUNKS},
        "context_ms": {str(length): runner.step_ms(BATCH, length - 1, 1) for length in CONTEXTS},
    }


def rows(figures: dict[str, Any]) -> list[str]:
    """The table."""
    lines = [f"{'live requests':<28}" + "".join(f"{live:>9}" for live in LIVE)]
    for queued in QUEUED:
        costs = figures["scheduler_us"][str(queued)]
        name = f"scheduler, us, {queued} queued"
        lines.append(f"{name:<28}" + "".join(f"{costs[str(live)]:>9.0f}" for live in LIVE))
    for name, key, sizes in (
        ("decode step, ms, by rows", "decode_ms", ROWS),
        ("prompt's chunk, ms, tokens", "prefill_ms", CHUNKS),
        (f"{BATCH} rows, ms, by context", "context_ms", CONTEXTS),
    ):
        lines.append(f"\n{name:<28}" + "".join(f"{size:>9}" for size in sizes))
        lines.append(f"{'':<28}" + "".join(f"{figures[key][str(size)]:>9.1f}" for size in sizes))
    share = figures["scheduler_us"]["0"]["256"] / (1e3 * figures["decode_ms"]["256"] / 2)
    short_ms, long_ms = (figures["context_ms"][str(size)] for size in (CONTEXTS[0], CONTEXTS[-1]))
    lines += [
        "",
        f"scheduler at 256 live requests: {share:.1%} of a step, wanted <= {SHARE_TARGET:.0%}",
        f"attention at context {CONTEXTS[-1]}, {BATCH} rows: {1 - short_ms / long_ms:.0%} of a "
        f"step, wanted <= {ATTENTION_TARGET:.0%}",
    ]
    return lines


def draw(figures: dict[str, Any], path: Path) -> None:
    """Three panels: the scheduler, a step by its tokens, a step by its contexts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.6))
    for queued in QUEUED:
        costs = figures["scheduler_us"][str(queued)]
        left.plot(LIVE, [costs[str(live)] for live in LIVE], "o-", label=f"{queued:,} queued")
    left.set(xlabel="live requests", ylabel="scheduler, us per step", ylim=(0, None))
    left.legend()
    for key, sizes, name in (("decode_ms", ROWS, "decode"), ("prefill_ms", CHUNKS, "prompt")):
        middle.plot(sizes, [figures[key][str(size)] for size in sizes], "o-", label=name)
    middle.set(xlabel="tokens of a step", ylabel="ms per step, whole model", ylim=(0, None))
    middle.legend()
    right.plot(CONTEXTS, [figures["context_ms"][str(size)] for size in CONTEXTS], "o-")
    right.set(xlabel=f"context of {BATCH} rows", ylabel="ms per step", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    restart_with_memory_settings()
    os.sched_setaffinity(0, {arguments.cpu})
    from models import make_folder  # beside this

    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(arguments.model, arguments.folder or Path(scratch) / "model")
        figures = measure(folder)
    print("\n".join(f"{name}: {value}" for name, value in describe().items()))
    print(f"model: {arguments.model}, bf16, one core, one thread, CPU time of the process\n")
    print("\n".join(rows(figures)))
    if arguments.plot:
        draw(figures, arguments.plot)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
