"""The law of the split: any cut of a model gives what the uncut Hugging Face model gives.

`check` saves a tiny model, loads it by slices, runs two sequences of very different length through
the stages as a worker does, and returns the largest difference of any logit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.model import build_runner
from lamella_worker.readers import folder_reader

BLOCK = 4
BLOCKS = 32
SHORT, LONG, DECODE = 5, 37, 8
CHUNK = 16
SERVED_MAX = 96


@dataclass(frozen=True)
class Verdict:
    """What one family's check found."""

    runner: str
    splits: tuple[int, ...]
    difference: float
    scale: float


def sequences(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    lengths = (SHORT + DECODE, LONG + DECODE)
    return tuple(torch.randint(3, vocab, (n,), generator=generator) for n in lengths)  # type: ignore[return-value]


def follows_length(model: Any) -> bool:
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
        if any(isinstance(k, str) and ("dynamic" in k or k == "longrope") for k in kinds):
            return True
    return False


@torch.no_grad()
def oracle(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocabulary] of the unsplit model, the sequence alone, no cache.

    A model whose frequencies follow the longest row gets a second row that ends at the served
    maximum: transformers itself then takes the frequencies that a server fixes for all rows.
    """
    n = ids.shape[0]
    if not follows_length(model):
        return model(input_ids=ids[None], use_cache=False).logits[0].float()
    positions = torch.stack([torch.arange(n), torch.arange(SERVED_MAX - n, SERVED_MAX)])
    rows = torch.stack([ids, ids])
    return model(input_ids=rows, position_ids=positions, use_cache=False).logits[0].float()


@torch.no_grad()
def own_instability(model: Any, ids: torch.Tensor, reference: torch.Tensor) -> float:
    """How far the unsplit model is from itself when it decodes with its own cache."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    worst, at = 0.0, 0
    for count in (CHUNK, len(ids) - DECODE - CHUNK, *[1] * DECODE):
        logits = model(input_ids=ids[None, at : at + count], cache=cache, use_cache=True).logits[0]
        at += count
        worst = max(worst, float((logits[-1] - reference[at - 1]).abs().max()))
    return worst


def schedule() -> list[list[tuple[int, int, int]]]:
    """Steps of (sequence, start, count): chunked prefill and decode, mixed."""
    steps: list[list[tuple[int, int, int]]] = []
    at = [0, 0]
    want = [SHORT, LONG]
    for _ in range(100):
        step = []
        for s in (1, 0):
            if at[s] >= want[s] + DECODE:
                continue
            count = min(CHUNK, want[s] - at[s]) if at[s] < want[s] else 1
            step.append((s, at[s], count))
            at[s] += count
        if not step:
            return steps
        steps.append(step)
    raise AssertionError("unreachable")


def tables() -> list[np.ndarray]:
    """Interleaved block tables: the short one's are contiguous, the long one's are not."""
    rng = np.random.default_rng(3)
    free = list(rng.permutation(np.arange(8, BLOCKS)))
    return [np.arange(2, 6, dtype=np.int32), np.array(free[:12], dtype=np.int32)]


def run_split(runners: list[Any], ids: tuple[torch.Tensor, torch.Tensor]) -> dict[tuple[int, int], torch.Tensor]:
    """Logits after each segment's last token, by (sequence, position)."""
    found = {}
    blocks = tables()
    for step in schedule():
        segments = tuple(
            Segment(
                slot=1 - s, start=start, count=count,
                blocks=blocks[s][: -(-(start + count) // BLOCK)], sample=True,
            )
            for s, start, count in step
        )  # fmt: skip
        batch = StepBatch(segments, BLOCK)
        bundle = {"token_ids": torch.cat([ids[s][a : a + n] for s, a, n in step])}
        for runner in runners:
            bundle = runner.step(batch, bundle)
        for row, (s, start, count) in enumerate(step):
            found[s, start + count - 1] = bundle["logits"][row]
    return found


def build_stages(folder: Path, splits: tuple[int, ...], num_layers: int, kind: str) -> list[Any]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    ends = (*splits[1:], num_layers)
    runners = []
    for first, last in zip(splits, ends, strict=True):
        reader = folder_reader(folder)
        runner = build_runner(
            config, first, last, reader, dtype=torch.float32, device="cpu", runner=kind
        )
        runner.setup_caches(
            num_blocks=BLOCKS, block_size=BLOCK, max_sequences=4, max_model_len=SERVED_MAX
        )
        runners.append(runner)
    return runners


def check(
    folder: Path, references: list[torch.Tensor], ids: tuple[torch.Tensor, torch.Tensor],
    splits: tuple[int, ...], num_layers: int, kind: str,
) -> Verdict:  # fmt: skip
    runners = build_stages(folder, splits, num_layers, kind)
    found = run_split(runners, ids)
    assert found
    worst = max(float((v - references[s][p]).abs().max()) for (s, p), v in found.items())
    scale = float(torch.cat(references).std())
    # A second run over the same slots must not see what the first one left behind.
    again = run_split(runners, ids)
    for key, value in again.items():
        assert torch.allclose(value, found[key], atol=1e-5), f"slot reuse changed {key}"
    return Verdict(kind, splits, worst, scale)
