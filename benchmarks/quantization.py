"""int8 weights against bf16: milliseconds per step on one core, and how far the answers are off.

    python benchmarks/quantization.py [FOLDER] [--cpu 0] [--batches 1,4,16,64] [--text FILE]
        [--only speed|error]

Without FOLDER the model is the random `m768`. Times are CPU time, turn by turn, medians of 3 (see
decode.py). Errors are against float32 on every position of a text (tokens of FILE, or random ids):
logits, the share of positions with the same first choice, and the text's perplexity.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decode import BLOCK, PROMPT, Fast, FileReader, describe, restart_with_memory_settings

FORMS = {"float32": ("float32", "none"), "bf16": ("bfloat16", "none"), "int8": ("bfloat16", "int8")}
TEXT_TOKENS = 1024
ERROR_ROWS = 64  # positions at a time: their logits are kept of every form


class Form(Fast):
    """The whole model in one runner."""

    def __init__(self, folder: Path, config: Any, name: str) -> None:
        import torch

        from lamella_worker.fast.runner import FastRunner

        dtype, quantization = FORMS[name]
        reader = FileReader(folder / "model.safetensors")
        layers = config.num_hidden_layers
        self.runner = FastRunner.build(
            config, 0, layers, reader, getattr(torch, dtype), "cpu", quantization
        )
        self.runner.setup_caches(
            num_blocks=2560, block_size=BLOCK, max_sequences=64, max_model_len=1024
        )

    def logits_of(self, ids: Any, start: int, count: int) -> Any:
        """float32 [count, vocabulary]: each of `count` positions of one sequence, as it would be
        decoded; the positions before `start` have been asked for already."""
        import numpy as np
        import torch

        from lamella_worker.batch import Segment, StepBatch

        # A row per position, all on the same pages: keys are written before any row reads them.
        segments = tuple(
            Segment(row, at, 1, np.arange(at // BLOCK + 1, dtype=np.int32), True)
            for row, at in enumerate(range(start, start + count))
        )
        bundle = {"token_ids": torch.from_numpy(ids[start : start + count])}
        return self.runner.step(StepBatch(segments, BLOCK), bundle)["logits"]


def speeds(folder: Path, config: Any, batches: list[int]) -> None:
    """Prints milliseconds per step of bf16 and int8."""
    import numpy as np

    forms = {name: Form(folder, config, name) for name in ("bf16", "int8")}
    draw = np.random.default_rng(0)
    for batch in batches:
        prompt = draw.integers(3, config.vocab_size, (batch, PROMPT))
        taken: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(4):
            for name, form in forms.items():
                value = form.decode_ms(prompt)
                if turn:
                    taken[name].append(value)
        a, b = (statistics.median(taken[name]) for name in forms)
        print(f"decode, batch {batch:2}: bf16 {a:6.1f} ms, int8 {b:6.1f} ms, {a / b:.2f} times")
    prompt = draw.integers(3, config.vocab_size, (1, 512))
    a, b = (min(form.prefill_ms(prompt) for _ in range(3)) for form in forms.values())
    print(f"prefill of 512: bf16 {a:.0f} ms, int8 {b:.0f} ms, {a / b:.2f} times")


@dataclass
class Errors:
    """How far one form is from float32, over the positions seen so far."""

    most: float = 0.0
    total: float = 0.0
    logits: int = 0
    same: int = 0
    loss: float = 0.0

    def take(self, found: Any, exact: Any, targets: Any) -> None:
        """Logits [positions, vocabulary] of both, and the tokens that follow, [positions]."""
        import torch

        off = (found - exact).abs_()
        self.most = max(self.most, float(off.max()))
        self.total += float(off.sum(dtype=torch.float64))
        self.logits += off.numel()
        self.same += int((found.argmax(-1) == exact.argmax(-1)).sum())
        self.loss += float(torch.nn.functional.cross_entropy(found, targets, reduction="sum"))


def errors(folder: Path, config: Any, text: Path | None) -> None:
    """Prints how far bf16 and int8 are from float32."""
    import numpy as np
    import torch

    ids = token_ids(folder, config, text)
    forms = {name: Form(folder, config, name) for name in FORMS}
    sums = {name: Errors() for name in FORMS}
    deviations = []
    positions = len(ids) - 1
    for start in range(0, positions, ERROR_ROWS):
        count = min(ERROR_ROWS, positions - start)
        targets = torch.from_numpy(ids[start + 1 : start + 1 + count])
        logits = {name: form.logits_of(ids, start, count) for name, form in forms.items()}
        deviations.append(float(logits["float32"].std()))
        for name, found in logits.items():
            sums[name].take(found, logits["float32"], targets)
    print(f"{positions} positions; logits of float32 have a deviation of {np.mean(deviations):.2f}")
    for name, each in sums.items():
        print(
            f"{name:8} logits off by {each.total / each.logits:.4f} (mean), {each.most:.3f} (most);"
            f" first choice the same at {100 * each.same / positions:.1f} %;"
            f" perplexity {np.exp(each.loss / positions):.2f}"
        )


def token_ids(folder: Path, config: Any, text: Path | None) -> Any:
    """int64 [at most TEXT_TOKENS]: the beginning of a text, or random ids."""
    import numpy as np

    if text is None:
        return np.random.default_rng(1).integers(3, config.vocab_size, TEXT_TOKENS)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return np.array(tokenizer.encode(text.read_text(encoding="utf-8")).ids[:TEXT_TOKENS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--batches", default="1,4,16,64")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--only", choices=("speed", "error"))
    arguments = parser.parse_args()
    restart_with_memory_settings()
    os.sched_setaffinity(0, {arguments.cpu})
    import torch
    from models import make_folder
    from transformers import AutoConfig

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or make_folder("m768", Path(scratch) / "model")
        config = AutoConfig.from_pretrained(folder)
        print("\n".join(f"{name}: {value}" for name, value in describe().items()))
        if arguments.only != "error":
            speeds(folder, config, [int(batch) for batch in arguments.batches.split(",")])
        if arguments.only != "speed":
            errors(folder, config, arguments.text)


if __name__ == "__main__":
    main()
