"""Sampling: `sample` for single calls of the engine, `Sampler` for the last stage's batches.

It knows nothing of the network, the scheduler or text. The last stage calls `Sampler.sample_rows`
on the float32 logits that a step gave; `adopt` and `free` follow the lists in each step's header.

A sequence's state is a fold over its ids and a random number is a function of (seed, position), so
a row's answer is the same in whatever batch it is computed, and again when it is replayed.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lamella_contract.wire import Adopt, Free, Sampling
from lamella_worker.sampling_draw import Filters, best, draw
from lamella_worker.sampling_random import UNIFORM_BITS, as_seed, uniforms
from lamella_worker.sampling_state import SeenIds

_log = logging.getLogger(__name__)

FAILED_ROW = -1
"""Stands in `sample_rows`' answer for a row that no token could be chosen from (NaN, all -inf)."""


def sample(
    logits: torch.Tensor,
    temp: float = 0.6,
    top_k: int | None = 35,
    *,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One id per row: `logits` [batch, vocab] or [vocab] of any float type -> int64 [batch].

    `temp` <= 0 is argmax; `top_k` 0 or None is off and is clamped to the vocabulary. ValueError for
    a row that holds NaN or nothing but -inf, and for parameters that mean nothing.
    """
    if logits.ndim not in (1, 2) or logits.numel() == 0:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, wanted [batch, vocab]")
    if not logits.is_floating_point():
        raise ValueError(f"logits have dtype {logits.dtype}, wanted a floating point type")
    if not math.isfinite(temp):
        raise ValueError(f"temp is {temp}, wanted a finite number")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k is {top_k}, wanted 0 (off) or more")
    filters = Filters(temp, top_k or 0, top_p, min_p)
    rows = logits.detach().reshape(-1, logits.shape[-1]).to("cpu", torch.float32).numpy()
    bits = torch.randint(0, 1 << UNIFORM_BITS, (len(rows),), generator=generator)
    numbers = bits.double().numpy() * 2.0**-UNIFORM_BITS
    return torch.tensor(
        [draw(row, filters, float(u)) for row, u in zip(rows, numbers, strict=True)],
        dtype=torch.int64,
    )


@dataclass(slots=True)
class _Slot:
    generation: int
    sampling: Sampling
    filters: Filters
    seed: int
    seen: SeenIds | None  # None: no penalty is asked for, nothing need be remembered

    @property
    def plain(self) -> bool:
        """Greedy and without penalties: one argmax for all such rows of a batch."""
        return self.seen is None and self.filters.greedy


class Sampler:
    """The sampling state of every sequence that the pipeline holds, by slot."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def adopt(self, adopt: Adopt) -> None:
        """Take a sequence into its slot, with the ids known so far; replaces what was there."""
        s = adopt.sampling
        penalised = s.presence_penalty != 0 or s.frequency_penalty != 0
        seen = None
        if penalised or s.repetition_penalty != 1.0:
            seen = SeenIds(adopt.ids[: adopt.prompt_len], adopt.ids[adopt.prompt_len :])
        self._slots[adopt.slot] = _Slot(
            generation=adopt.generation,
            sampling=s,
            filters=Filters(s.temperature, s.top_k, s.top_p, s.min_p),
            seed=as_seed(s.seed),
            seen=seen,
        )

    def free(self, free: Free) -> None:
        """Forget a slot, unless a later generation lives there by now. Freeing twice is fine."""
        held = self._slots.get(free.slot)
        if held is not None and held.generation == free.generation:
            del self._slots[free.slot]

    def reset(self) -> None:
        """Forget every sequence: the scheduler started anew and will adopt what it still wants."""
        self._slots.clear()

    def sample_rows(
        self, logits: torch.Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """One id per row: `logits` [rows, vocab] -> int64 [rows].

        `slots` [rows] names each row's sequence, `positions` [rows] the absolute position that the
        new token will have. A row that no token can be chosen from gives FAILED_ROW and an ERROR
        record; the others are not touched by it. A position that was sampled before draws the same
        id again.
        """
        if len(logits) == 0:
            return np.empty(0, np.int64)
        held = [self._slots.get(int(slot)) for slot in slots]
        if all(slot is not None and slot.plain for slot in held):
            return self._greedy(logits, slots, positions)
        rows = logits.detach().to("cpu", torch.float32).numpy()
        seeds = np.array([0 if slot is None else slot.seed for slot in held], np.uint64)
        numbers = uniforms(seeds, positions)
        result = np.full(len(rows), FAILED_ROW, np.int64)
        for index, slot in enumerate(held):
            try:
                if slot is None:
                    raise ValueError("no sequence was adopted into this slot")
                result[index] = _sample_row(
                    slot, rows[index], int(positions[index]), float(numbers[index])
                )
            except ValueError as error:
                _report(int(slots[index]), int(positions[index]), str(error))
        return result

    def _greedy(
        self, logits: torch.Tensor, slots: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        # NumPy's float32 argmax is measured at 6 us a row, torch's in bfloat16 at 105 us.
        ids: NDArray[np.int64]
        if logits.device.type == "cpu":
            rows = logits.detach().to(torch.float32).numpy()
            ids = rows.argmax(axis=-1)
            peaks = rows[np.arange(len(rows)), ids]
        else:
            top = logits.max(dim=-1)
            ids = top.indices.cpu().numpy()
            peaks = top.values.float().cpu().numpy()
        bad = ~np.isfinite(peaks)
        if bad.any():
            for index in np.flatnonzero(bad):
                reason = f"the largest logit is {peaks[index]}"
                _report(int(slots[index]), int(positions[index]), reason)
            ids = np.where(bad, FAILED_ROW, ids)
        return ids


def _sample_row(slot: _Slot, row: NDArray[np.float32], position: int, uniform: float) -> int:
    seen = slot.seen
    if seen is None:
        return draw(row, slot.filters, uniform)
    seen.rewind(position)
    if seen.length != position:
        raise ValueError(f"asked for position {position}, ids are known up to {seen.length}")
    best(row)  # NaN is found before penalties hide it
    s = slot.sampling
    row = row.copy()
    seen.penalise(row, s.presence_penalty, s.frequency_penalty, s.repetition_penalty)
    token = draw(row, slot.filters, uniform)
    seen.add(token)
    return token


def _report(slot: int, position: int, reason: str) -> None:
    _log.error(
        "no token can be chosen", extra={"slot": slot, "position": position, "reason": reason}
    )
