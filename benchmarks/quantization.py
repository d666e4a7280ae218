"""int8 weights against bf16: milliseconds per step on one core, and how far the answers are off.

    python benchmarks/quantization.py [FOLDER] [--cpu 0] [--batches 1,4,16,64] [--text FILE]

Without FOLDER the model is the random `m768`. Times are CPU time, turn by turn, medians of 3 (see
decode.py). Errors are against float32 on every position of a text (tokens of FILE, or random ids):
logits, the share of positions with the same first choice, and the text's perplexity.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from decode import BLOCK, PROMPT, Fast, FileReader, describe, restart_with_memory_settings

FORMS = {"float32": ("float32", "none"), "bf16": ("bfloat16", "none"), "int8": ("bfloat16", "int8")}
TEXT_TOKENS = 512


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

    def all_logits(self, ids: Any) -> Any:
        """float32 [tokens, vocabulary]: every position of one sequence, token by token."""
        import numpy as np
        import torch

        from lamella_worker.batch import Segment, StepBatch

        rows = []
        for position in range(len(ids)):
            table = np.arange(-(-(position + 1) // BLOCK), dtype=np.int32)
            batch = StepBatch((Segment(0, position, 1, table, True),), BLOCK)
            bundle = {"token_ids": torch.from_numpy(ids[position : position + 1])}
            rows.append(self.runner.step(batch, bundle)["logits"])
        return torch.cat(rows)


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


def errors(folder: Path, config: Any, text: Path | None) -> None:
    """Prints how far bf16 and int8 are from float32."""
    import numpy as np
    import torch

    if text is None:
        ids = np.random.default_rng(1).integers(3, config.vocab_size, TEXT_TOKENS)
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = np.array(tokenizer.encode(text.read_text(encoding="utf-8")).ids[:TEXT_TOKENS])
    logits = {name: Form(folder, config, name).all_logits(ids) for name in FORMS}
    exact = logits["float32"]
    targets = torch.from_numpy(ids[1:])
    for name, found in logits.items():
        loss = torch.nn.functional.cross_entropy(found[:-1], targets)
        off = (found - exact).abs()
        same = (found.argmax(-1) == exact.argmax(-1)).float().mean()
        print(
            f"{name:8} logits off by {float(off.mean()):.4f} (mean) {float(off.max()):.3f} (most)"
            f" of a deviation of {float(exact.std()):.2f}; first choice the same at"
            f" {100 * float(same):.1f} %; perplexity {float(loss.exp()):.2f}"
        )


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
