"""Decode and prefill on one core: the fast runner against transformers' `generate`.

    python benchmarks/decode.py [--model m768] [--cpu 0] [--rounds 5] [--batches 1,16] [--json FILE]

Both run in one process on one pinned core with one thread, turn by turn, so that a busy machine
hits both alike; the table shows medians over the rounds. The clock is the process's CPU time (the
same as wall time when nothing else runs on that core); `--clock wall` takes the other. Weights are
random (benchmarks/models.py), prompts have equal lengths, sampling is greedy, the dtype is bf16.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

clock: Callable[[], float] = time.process_time

PROMPT = 112  # tokens; with STEPS further ones the context is 128 on average
STEPS = 32
PREFILL = 512
BLOCK = 16

# Read by the C library and by torch when a process starts, so the script starts itself again.
MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--plain-memory", action="store_true", help="no huge pages")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def restart_with_memory_settings() -> None:
    """Start this script again with MEMORY in its environment, once."""
    if all(os.environ.get(k) == v for k, v in MEMORY.items()):
        return
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MEMORY})


class FileReader:
    """Tensors of a single safetensors file, for FastRunner.build."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(path, framework="pt")

    def read(self, names: Any) -> dict[str, Any]:
        return {name: self._file.get_tensor(name) for name in names}

    def read_rows(self, name: str, first: int, last: int) -> Any:
        return self._file.get_slice(name)[first:last]


class Fast:
    """The fast runner, driven as a stage drives it."""

    def __init__(self, folder: Path, config: Any) -> None:
        import torch

        from lamella_worker.fast.runner import FastRunner

        reader = FileReader(folder / "model.safetensors")
        layers = config.num_hidden_layers
        self.runner = FastRunner.build(config, 0, layers, reader, torch.bfloat16, "cpu")
        self.runner.setup_caches(
            num_blocks=1024, block_size=BLOCK, max_sequences=64, max_model_len=1024
        )

    def step(self, start: int, ids: Any) -> Any:
        """ids [batch, count] at position `start` -> next ids [batch], numpy."""
        import numpy as np
        import torch

        from lamella_worker.batch import Segment, StepBatch

        batch, count = ids.shape
        room = -(-(PREFILL + STEPS) // BLOCK)
        used = -(-(start + count) // BLOCK)
        segments = tuple(
            Segment(s, start, count, np.arange(s * room, s * room + used, dtype=np.int32), True)
            for s in range(batch)
        )
        bundle = {"token_ids": torch.from_numpy(ids.reshape(-1))}
        logits = self.runner.step(StepBatch(segments, BLOCK), bundle)["logits"]
        return logits.numpy().argmax(-1)

    def decode_ms(self, prompt: Any) -> float:
        """Milliseconds per decode step, sampling included."""
        ids = self.step(0, prompt)
        start_s = clock()
        for position in range(prompt.shape[1], prompt.shape[1] + STEPS):
            ids = self.step(position, ids.reshape(-1, 1))
        return (clock() - start_s) / STEPS * 1e3

    def prefill_ms(self, prompt: Any) -> float:
        """Milliseconds to the first token."""
        start_s = clock()
        self.step(0, prompt)
        return (clock() - start_s) * 1e3


class Reference:
    """transformers' generate: static batch, greedy, DynamicCache, its own choice of attention."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.eval()

    def _generate_s(self, prompt: Any, tokens: int) -> float:
        import torch

        ids = torch.from_numpy(prompt)
        start_s = clock()
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
            )
        return clock() - start_s

    def decode_ms(self, prompt: Any) -> float:
        """Milliseconds per further token: a long run less a run of one token."""
        first_s = self._generate_s(prompt, 1)
        return (self._generate_s(prompt, STEPS + 1) - first_s) / STEPS * 1e3

    def prefill_ms(self, prompt: Any) -> float:
        """Milliseconds to the first token."""
        return self._generate_s(prompt, 1) * 1e3


def measure(
    cases: dict[str, tuple[Callable[[], float], Callable[[], float]]], rounds: int
) -> dict[str, dict[str, float]]:
    """Medians of (reference, fast) per case, turn by turn."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cases}
    for turn in range(rounds + 1):
        for name, pair in cases.items():
            for runs, run in zip(taken[name], pair, strict=True):
                value = run()
                if turn:  # the first turn warms caches up
                    runs.append(value)
    figures = {}
    for name, (reference, fast) in taken.items():
        a, b = statistics.median(reference), statistics.median(fast)
        ratios = [x / y for x, y in zip(reference, fast, strict=True)]
        figures[name] = {"reference_ms": a, "fast_ms": b, "ratio": statistics.median(ratios)}
    return figures


def describe() -> dict[str, str]:
    """What the figures were measured on."""
    import torch
    import transformers

    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "machine": f"{names[0] if names else platform.processor()}, {len(names)} cores",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load": " ".join(f"{x:.1f}" for x in os.getloadavg()),
        "huge pages": "yes" if "GLIBC_TUNABLES" in os.environ else "no",
    }


def main() -> None:
    arguments = parse()
    if not arguments.plain_memory:
        restart_with_memory_settings()
    if arguments.clock == "wall":
        globals()["clock"] = time.perf_counter
    os.sched_setaffinity(0, {arguments.cpu})
    import numpy as np
    import torch
    from models import make_folder  # type: ignore[import-not-found,unused-ignore]  # beside this
    from transformers import AutoConfig

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(arguments.model, arguments.folder or Path(scratch) / "model")
        config = AutoConfig.from_pretrained(folder)
        fast, reference = Fast(folder, config), Reference(folder)
        draw = np.random.default_rng(0)
        cases: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
        for batch in (int(b) for b in arguments.batches.split(",")):
            prompt = draw.integers(3, config.vocab_size, (batch, PROMPT))
            cases[f"decode, batch {batch}"] = (
                functools.partial(reference.decode_ms, prompt),
                functools.partial(fast.decode_ms, prompt),
            )
        long = draw.integers(3, config.vocab_size, (1, PREFILL))
        cases[f"prefill {PREFILL}"] = (
            lambda: reference.prefill_ms(long),
            lambda: fast.prefill_ms(long),
        )
        figures = measure(cases, arguments.rounds)
    about = describe()
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(f"model: {arguments.model}, bf16, one core, one thread, context {PROMPT + STEPS // 2}")
    print(f"\n{'':18} {'transformers':>14} {'fast runner':>14} {'ratio':>8}")
    for name, row in figures.items():
        a, b = f"{row['reference_ms']:.1f} ms", f"{row['fast_ms']:.1f} ms"
        print(f"{name:18} {a:>14} {b:>14} {row['ratio']:>7.2f}x")
    if arguments.json:
        document = {"about": about, "model": arguments.model, "figures": figures}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
