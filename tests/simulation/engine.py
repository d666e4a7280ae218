"""A toy model whose every token depends on every cached value of every layer, and its answers.

Each layer keeps one number per position in the block pool and hands on a hash of all of them, read
back through the block table. Pages are never cleared: what another sequence, or another run of the
process, left there is garbage, so KV that is missed, stale or mixed up gives another token. With
`recurrent` the state is per slot and cannot be rewound. `Oracle` is what an undisturbed run says,
whatever the pipeline's cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lamella_contract.errors import OutOfMemory
from lamella_contract.wire import Adopt, Sampling
from lamella_worker.batch import Bundle, Segment, StepBatch
from lamella_worker.sampling import FAILED_ROW, Sampler

LAYERS = 4
VOCABULARY = 32
EOS = 1
MASK = (1 << 64) - 1
WEIGHT = 0x9E3779B97F4A7C15
LONGEST = 256

_POWERS = np.ones(LONGEST + 1, np.uint64)
for _i in range(1, LONGEST + 1):
    _POWERS[_i] = (int(_POWERS[_i - 1]) * WEIGHT) & MASK
_BACKWARDS = _POWERS[::-1].copy()
_SPREAD = np.array([random.Random(v).getrandbits(64) | 1 for v in range(VOCABULARY)], np.uint64)


def hidden_of(layer: int, folded: int) -> int:
    """What a layer hands on: a hash of all that it has seen."""
    value = (folded ^ (layer * 0xD1B54A32D192ED03)) & MASK
    value = (value * 0xFF51AFD7ED558CCD) & MASK
    return value ^ (value >> 33)


def logits_of(hidden: int) -> np.ndarray:
    """float32 [vocabulary], all different enough to sample from."""
    spread = _SPREAD * np.uint64(hidden | 1)
    return (spread >> np.uint64(40)).astype(np.float32) * np.float32(8.0 / (1 << 24))


class ToyEngine:
    """Layers [first, end). `spend` is told how long each step takes; faults come from outside."""

    def __init__(
        self,
        *,
        layers: tuple[int, int],
        num_blocks: int,
        block_size: int,
        recurrent: bool,
        spend: Callable[[float], None],
        seed: int,
    ) -> None:
        self._layers = range(*layers)
        self._is_last = layers[1] == LAYERS
        self._recurrent = recurrent
        self._spend = spend
        garbage = np.random.default_rng(seed)
        rows = num_blocks * block_size
        self._block_size = block_size
        self._pools = [garbage.integers(0, MASK, rows, np.uint64) for _ in self._layers]
        self._states: dict[int, tuple[int, list[int]]] = {}  # slot -> (positions, fold per layer)
        self.step_s = 0.0015
        self.slow_s: list[float] = []  # the next steps take so much longer
        self.exhausted = 0  # so many next steps find no memory
        self.rewound = 0  # segments that began before the end of what a slot held
        self.copied = 0  # blocks
        self.steps = 0

    def step(self, batch: StepBatch, bundle: Bundle) -> Bundle:
        """One step's rows through this stage's layers."""
        self.steps += 1
        self._spend(
            self.step_s + 0.00002 * batch.tokens + (self.slow_s.pop() if self.slow_s else 0)
        )
        if self.exhausted:
            self.exhausted -= 1
            raise OutOfMemory("the toy was told that there is no memory")
        name = "token_ids" if "token_ids" in bundle else "hidden"
        values = [int(v) & MASK for v in bundle[name].tolist()]
        at = 0
        for segment in batch.segments:
            end = at + segment.count
            values[at:end] = self._segment(segment, batch.block_size, values[at:end])
            at = end
        assert at == len(values)
        if not self._is_last:
            packed = np.array(values, np.uint64).view(np.int64)
            return {"hidden": torch.from_numpy(packed)}
        rows = [logits_of(values[row]) for row in batch.sample_rows.tolist()]
        stacked = np.stack(rows) if rows else np.zeros((0, VOCABULARY), np.float32)
        return {"logits": torch.from_numpy(stacked)}

    def _segment(self, segment: Segment, block_size: int, values: list[int]) -> list[int]:
        known, folds = self._states.get(segment.slot, (0, [0] * len(self._layers)))
        if segment.start == 0:
            known, folds = 0, [0] * len(self._layers)
        self.rewound += segment.start < known
        if self._recurrent:
            if segment.start != known:  # a state that was left out, or that cannot go back
                folds = [fold ^ 0x5555 for fold in folds]
        else:
            places = np.arange(segment.length)
            rows = segment.blocks[places // block_size].astype(np.int64) * block_size
            rows += places % block_size
        new_folds = []
        for index, layer in enumerate(self._layers):
            if self._recurrent:
                fold = folds[index]
            else:
                pool = self._pools[index]
                pool[rows[segment.start :]] = values
                before = pool[rows[: segment.start]]
                weights = _BACKWARDS[LONGEST + 1 - segment.start :]  # W^(start-1) ... 1
                fold = int((before * weights).sum(dtype=np.uint64))
            out = []
            for value in values:
                fold = (fold * WEIGHT + value) & MASK
                out.append(hidden_of(layer, fold))
            new_folds.append(fold)
            values = out
        self._states[segment.slot] = (segment.length, new_folds)
        return values

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy pages, block by block."""
        assert not self._recurrent, "a state cannot be copied by blocks"
        for pool in self._pools:
            pages = pool.reshape(-1, self._block_size)
            pages[list(blocks)] = pages[list(sources)]
        self.copied += len(blocks)

    def release(self, slot: int) -> None:
        """A sequence is done."""
        self._states.pop(slot, None)

    def reset(self) -> None:
        """Every sequence is done; the pages keep what they have."""
        self._states.clear()

    @property
    def rewindable(self) -> bool:
        """Pages hold all there is of a sequence."""
        return not self._recurrent

    def memory(self) -> dict[str, int]:
        return {}

    def held(self) -> dict[int, int]:
        """Slot -> positions that were computed for it."""
        return {slot: known for slot, (known, _) in self._states.items()}


class Oracle:
    """What an undisturbed run answers."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._known: dict[tuple[tuple[int, ...], Sampling], tuple[tuple[int, ...], str]] = {}

    def answer(self, prompt: tuple[int, ...], sampling: Sampling) -> tuple[tuple[int, ...], str]:
        """(output, finish) of a request run alone."""
        key = (prompt, sampling)
        if key not in self._known:
            self._known[key] = self._run(prompt, sampling)
        return self._known[key]

    def _run(self, prompt: tuple[int, ...], sampling: Sampling) -> tuple[tuple[int, ...], str]:
        sampler = Sampler()
        sampler.adopt(Adopt(0, 1, len(prompt), prompt, sampling))
        stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS})
        folds = [0] * LAYERS
        hidden = 0
        for token in prompt:
            hidden = self._feed(folds, token)
        output: list[int] = []
        slot = np.zeros(1, np.int64)
        while True:
            at = np.array([len(prompt) + len(output)], np.int64)
            logits = torch.from_numpy(logits_of(hidden)[None])
            token = int(sampler.sample_rows(logits, slot, at)[0])
            assert token != FAILED_ROW
            output.append(token)
            if token in stops:
                return tuple(output), "stop"
            if len(output) >= sampling.max_tokens or len(prompt) + len(output) >= self._longest:
                return tuple(output), "length"
            hidden = self._feed(folds, token)

    def _feed(self, folds: list[int], value: int) -> int:
        for layer in range(LAYERS):
            folds[layer] = (folds[layer] * WEIGHT + value) & MASK
            value = hidden_of(layer, folds[layer])
        return value


def prompt_of(seed: int, length: int) -> tuple[int, ...]:
    """A prompt of so many tokens; those of one seed share a prefix."""
    draw = random.Random(seed)
    return tuple(draw.randrange(2, VOCABULARY) for _ in range(length))


def greedy(max_tokens: int, **other: object) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=max_tokens, **other)  # type: ignore[arg-type]


def is_prefix(short: Sequence[int], whole: Sequence[int]) -> bool:
    return tuple(whole[: len(short)]) == tuple(short)
