"""What the stages kept of a sequence in a new epoch, and where it goes on.

Knows no queues and no steps. In the flow: stage 0 hands the stages' answers to
`Scheduler.restart`, which asks here for each running request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lamella_contract.wire import EVERY_STAGE, HeldSlot


class Rewind(NamedTuple):
    """All stages hold the positions below ``start``, those after ``through`` the ones below
    ``until``; from there on all stages compute.
    """

    start: int
    until: int
    through: int


class Kept:
    """The answers of all stages, the first stage's first; one that is missing kept nothing, and one
    that is None never can.
    """

    def __init__(self, stages: int, answers: Sequence[Sequence[HeldSlot] | None] = ()) -> None:
        self.reusable = None not in answers
        """Whether blocks hold all there is of a sequence on every stage, so that others that begin
        alike can begin with them."""
        self._lengths = [
            {(held.slot, held.generation): held.length for held in answer or ()}
            for answer in [*answers, *[()] * stages][:stages]
        ]

    def of(self, slot: int, generation: int, known: int) -> Rewind:
        """Where a tenure of ``known`` ids goes on: its last id's row is computed in any case."""
        tenure = (slot, generation)
        lengths = [min(length.get(tenure, 0), known - 1) for length in self._lengths]
        start = min(lengths)
        last = max(stage for stage, length in enumerate(lengths) if length == start)
        if last == len(lengths) - 1:
            return Rewind(start, start, EVERY_STAGE)
        return Rewind(start, min(lengths[last + 1 :]), last)
