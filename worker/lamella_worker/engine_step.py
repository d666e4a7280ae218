"""The batched step under memory pressure: once more in halves, then a typed error.

It knows no scheduler and no session: block tables come with the batch. Weights and pages are kept
whatever happens, so that the next, smaller step can be computed.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
import torch

from lamella_contract.errors import OutOfMemory
from lamella_worker.batch import Bundle, Segment, StepBatch
from lamella_worker.oom import device_name, is_out_of_memory, release_scratch

_log = logging.getLogger(__name__)


class Steps(Protocol):
    """What computes a step: a `SliceRunner`."""

    def step(self, batch: StepBatch, inputs: Bundle) -> Bundle: ...


def step_or_halves(runner: Steps, batch: StepBatch, inputs: Bundle, device: torch.device) -> Bundle:
    """Compute a step; when memory runs out, free scratch and compute it in two halves.

    Writing keys and values again into blocks that a sequence owns is harmless. Where a runner
    keeps state that is not a function of position (`state_kinds`), a step that was begun cannot be
    run again, so it fails at once. Raises OutOfMemory.
    """
    try:
        return runner.step(batch, inputs)
    except Exception as error:  # out of memory has no type of its own on most devices
        if not is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    # Outside the except block: the dead call's tensors are free only now.
    release_scratch(device)
    if batch.tokens < 2 or getattr(runner, "state_kinds", None):
        raise _gave_up(batch, reason, device)
    if any(len(tensor) != batch.tokens for tensor in inputs.values()):
        raise _gave_up(batch, reason, device)
    _log.warning(
        "a step ran out of memory and is computed in halves",
        extra={"tokens": batch.tokens, "device": device_name(device), "reason": reason},
    )
    try:
        return _join([runner.step(*half) for half in halves(batch, inputs)])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    release_scratch(device)
    raise _gave_up(batch, reason, device)


def _gave_up(batch: StepBatch, reason: str, device: torch.device) -> OutOfMemory:
    return OutOfMemory(
        f"{device_name(device)} has no memory for a step of {batch.tokens} tokens: {reason}"
    )


def halves(batch: StepBatch, inputs: Bundle) -> list[tuple[StepBatch, Bundle]]:
    """The step as two steps of about half the rows each, in order, and their shares of `inputs`.

    A segment that lies across the middle is cut: its first part asks for no logits.
    """
    middle = batch.tokens // 2
    first: list[Segment] = []
    second: list[Segment] = []
    row = 0
    for segment in batch.segments:
        here = min(max(middle - row, 0), segment.count)
        row += segment.count
        if here == segment.count:
            first.append(segment)
            continue
        if here:
            first.append(_part(segment, segment.start, here, batch.block_size, False))
        second.append(
            _part(
                segment,
                segment.start + here,
                segment.count - here,
                batch.block_size,
                segment.sample,
            )
        )
    return [
        (StepBatch(tuple(first), batch.block_size), {k: v[:middle] for k, v in inputs.items()}),
        (StepBatch(tuple(second), batch.block_size), {k: v[middle:] for k, v in inputs.items()}),
    ]


def _part(segment: Segment, start: int, count: int, block_size: int, sample: bool) -> Segment:
    blocks = np.ascontiguousarray(segment.blocks[: -(-(start + count) // block_size)])
    return Segment(segment.slot, start, count, blocks, sample)


def _join(bundles: list[Bundle]) -> Bundle:
    """Rows of the first half, then of the second; a half without sampled rows has no logits."""
    names = dict.fromkeys(name for bundle in bundles for name in bundle)
    return {
        name: torch.cat([bundle[name] for bundle in bundles if name in bundle]) for name in names
    }
