"""The law of the split: any cut of a model gives what the uncut Hugging Face model gives.

`judge` saves a family's tiny model, loads it by slices, runs two sequences of very different length
through the stages as a worker does, and returns the largest difference of any logit. The oracle is
the unsplit model alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, DynamicCache

from lamella_checkpoint.cuts import allowed_cuts, cut_reason, num_layers, text_config
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.fast.runner import supports
from lamella_worker.hf.family_table import PACKED
from lamella_worker.model import build_runner
from lamella_worker.readers import folder_reader

BLOCK = 4
BLOCKS = 32
SHORT, LONG, DECODE = 5, 37, 8
CHUNK = 16
SERVED_MAX = 96
TIGHT, LOOSE = 1e-5, 1e-4

Ids = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Verdict:
    """What the law says of one family under one runner."""

    family: str
    runner: str
    splits: tuple[tuple[int, ...], ...]
    difference: float  # largest of any logit in any split; inf when it does not run
    tolerance: float
    scale: float  # standard deviation of the unsplit model's logits
    state: tuple[str, ...] = ()  # cache layers that are kept per slot beside the pages
    problem: str = ""

    @property
    def holds(self) -> bool:
        return not self.problem and self.difference <= self.tolerance


@dataclass(frozen=True)
class Case:
    """A family's model on disk with the unsplit model's answers."""

    family: str
    folder: Path
    config: Any
    ids: Ids
    references: tuple[torch.Tensor, ...]
    tolerance: float

    @property
    def runners(self) -> tuple[str, ...]:
        """Every runner that could serve the family by the tables in the code."""
        text = text_config(self.config)
        kinds = ["fast"] if supports(text) else []
        if text.model_type in PACKED:
            kinds.append("packed")
        return (*kinds, "sequential")


def make_case(tiny: ModuleType, family: str, folder: Path) -> Case:
    """Save the family's tiny model and ask it, unsplit, for every logit."""
    config = tiny.tiny_config(family)
    model = tiny.tiny_model(config)
    tiny.save_model(config, model, folder)
    generator = torch.Generator().manual_seed(7)
    short, long = (
        torch.randint(3, tiny.VOCAB - 1, (n + DECODE,), generator=generator) for n in (SHORT, LONG)
    )
    references = tuple(oracle(model, ids) for ids in (short, long))
    stable = own_difference(model, long, references[1]) <= TIGHT
    return Case(family, folder, config, (short, long), references, TIGHT if stable else LOOSE)


def follows_length(model: Any) -> bool:
    """True when the model's rotary frequencies follow the longest row."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for kind in kinds.values() if isinstance(kinds, dict) else (kinds,):
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                return True
    return False


@torch.no_grad()
def oracle(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocabulary] of the unsplit model, the sequence alone, no cache.

    A model whose frequencies follow the longest row gets a second row that ends at the served
    maximum: transformers itself then takes the frequencies that a server fixes for all rows.
    """
    tokens = ids.shape[0]
    if not follows_length(model):
        return model(input_ids=ids[None], use_cache=False).logits[0].float()
    positions = torch.stack([torch.arange(tokens), torch.arange(SERVED_MAX - tokens, SERVED_MAX)])
    rows = torch.stack([ids, ids])
    return model(input_ids=rows, position_ids=positions, use_cache=False).logits[0].float()


@torch.no_grad()
def own_difference(model: Any, ids: torch.Tensor, reference: torch.Tensor) -> float:
    """How far the unsplit model is from itself when it reads in pieces; 0 where it cannot."""
    if follows_length(model) or model.config.model_type in ("minimax", "bailing_hybrid"):
        return 0.0  # frequencies that change on the way, and caches that cannot be asked
    prompt = len(ids) - DECODE
    ways = ((prompt, *[1] * DECODE), (CHUNK, prompt - CHUNK, *[1] * DECODE), (1,) * len(ids))
    worst = 0.0
    for way in ways:
        cache, at = DynamicCache(config=model.config.get_text_config(decoder=True)), 0
        for count in way:
            part = ids[None, at : at + count]
            logits = model(input_ids=part, cache=cache, use_cache=True).logits[0, -1]
            at += count
            worst = max(worst, float((logits - reference[at - 1]).abs().max()))
    return worst


def splits_of(config: Any) -> tuple[tuple[int, ...], ...]:
    """One stage, two uneven ones and three uneven ones, where the family may be cut."""
    layers, cuts = num_layers(text_config(config)), allowed_cuts(config)
    found: list[tuple[int, ...]] = [(0,)]
    if cuts:
        found.append((0, 2 if 2 in cuts else cuts[-1]))
    if len(cuts) > 1:
        found.append((0, cuts[0], layers - 1 if layers - 1 in cuts else cuts[-1]))
    return tuple(found)


def schedule() -> list[list[tuple[int, int, int]]]:
    """Steps of (sequence, start, count): chunked prefill and decode, mixed."""
    want, at = (SHORT, LONG), [0, 0]
    steps = []
    while True:
        step = []
        for s in (1, 0):
            if at[s] < want[s] + DECODE:
                count = min(CHUNK, want[s] - at[s]) if at[s] < want[s] else 1
                step.append((s, at[s], count))
                at[s] += count
        if not step:
            return steps
        steps.append(step)


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Block tables: the short sequence's blocks are neighbours, the long one's are scattered."""
    scattered = np.random.default_rng(3).permutation(np.arange(8, BLOCKS))[:12]
    return np.arange(2, 6, dtype=np.int32), scattered.astype(np.int32)


def run_split(runners: Sequence[Any], ids: Ids) -> dict[tuple[int, int], torch.Tensor]:
    """Logits after each segment's last token, by (sequence, position)."""
    found = {}
    blocks = tables()
    for step in schedule():
        segments = tuple(
            Segment(1 - s, start, count, blocks[s][: -(-(start + count) // BLOCK)], sample=True)
            for s, start, count in step
        )
        batch = StepBatch(segments, BLOCK)
        bundle = {"token_ids": torch.cat([ids[s][a : a + n] for s, a, n in step])}
        for runner in runners:
            bundle = runner.step(batch, bundle)
            for name, tensor in bundle.items():
                assert name == "logits" or tensor.shape[0] == batch.tokens, name
        for row, (s, start, count) in enumerate(step):
            found[s, start + count - 1] = bundle["logits"][row]
    return found


def build_stages(case: Case, splits: tuple[int, ...], kind: str) -> list[Any]:
    """A runner per stage, with pages."""
    config = AutoConfig.from_pretrained(case.folder)
    ends = (*splits[1:], num_layers(text_config(config)))
    runners = []
    for first, last in zip(splits, ends, strict=True):
        reader = folder_reader(case.folder)
        runner = build_runner(
            config, first, last, reader, dtype=torch.float32, device="cpu", runner=kind
        )
        runner.setup_caches(
            num_blocks=BLOCKS, block_size=BLOCK, max_sequences=4, max_model_len=SERVED_MAX
        )
        runners.append(runner)
    return runners


def judge(case: Case, kind: str, splits: Sequence[tuple[int, ...]] | None = None) -> Verdict:
    """Run the case with one runner in each of the splits."""
    splits = tuple(splits or splits_of(case.config))
    worst = 0.0
    state: set[str] = set()
    for split in splits:
        runners = build_stages(case, split, kind)
        found = run_split(runners, case.ids)
        for (sequence, position), logits in found.items():
            worst = max(worst, float((logits - case.references[sequence][position]).abs().max()))
        # The same slots again: nothing of what the first sequences left may be seen.
        for key, logits in run_split(runners, case.ids).items():
            assert torch.equal(logits, found[key]), f"{key} differs in a slot that was used before"
        for runner in runners:
            state.update(getattr(runner, "state_kinds", ()))
    scale = float(torch.cat(case.references).std())
    return Verdict(case.family, kind, splits, worst, case.tolerance, scale, tuple(sorted(state)))


def cuts_text(config: Any) -> str:
    """Where the family may be cut, for the table."""
    reason = cut_reason(config)
    if not reason:
        return "anywhere"
    return "nowhere" if not allowed_cuts(config) else "not among layers that share keys and values"
