"""A step while it is put together, and as it is given to the stage loop.

Knows no queues and no choice. In the flow: `compose` fills a `Draft`, `scheduler` makes it a
`ScheduledStep`, `flights` remembers what must come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lamella_contract.wire import EVERY_STAGE, Adopt, SegmentHeader, StepHeader
from lamella_worker.scheduling.cohorts import DecodeStep
from lamella_worker.scheduling.cost import Work
from lamella_worker.scheduling.requests import LiveRequest


@dataclass(slots=True)
class Draft:
    """A step being put together; ``ids`` are the packed rows of its segments.

    ``filled`` are the segments of several rows, by their place, that fill a block; of ``decoding``
    rows in all, dealt into ``cohorts``, the step has ``decode_rows``.
    """

    adopts: list[Adopt] = field(default_factory=list)
    segments: list[SegmentHeader] = field(default_factory=list)
    requests: list[LiveRequest] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    filled: list[int] = field(default_factory=list)
    pairs: int = 0
    decode_rows: int = 0
    decoding: int = 0
    cohorts: int = 1
    prompt_tokens: int = 0
    through: int = EVERY_STAGE

    @property
    def work(self) -> Work:
        tokens = len(self.ids)
        return Work(tokens, self.pairs, prefill=tokens != len(self.segments))

    @property
    def decode_step(self) -> DecodeStep | None:
        """What it tells of decoding when it comes back; None when it has other rows, too."""
        if not self.decode_rows or self.work.prefill or not self.is_typical:
            return None
        context = self.pairs / self.decode_rows
        return DecodeStep(self.decode_rows, self.decoding, self.cohorts, context)

    @property
    def is_typical(self) -> bool:
        """Whether its time is that of its rows: all stages compute it and copy nothing."""
        return self.through == EVERY_STAGE and not any(adopt.sources for adopt in self.adopts)


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A step to run: its header (no tensors yet) and the ids of its rows, int32 [tokens].

    ``predicted_s`` is the compute time over all stages, 0.0 while nothing is known.
    """

    header: StepHeader
    token_ids: npt.NDArray[np.int32]
    predicted_s: float
