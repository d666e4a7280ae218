"""Keeping a waiting stage's own code in the processor's caches.

A step streams the stage's weights through every cache, so the Python that runs at the next frame is
cold: measured, reading and scheduling take three to four times as long as when warm, which is most
of what a hop costs. An awake stage (`waiting`) therefore goes through the motions while it waits,
on values of its own; nothing that is rehearsed is sent, kept or counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from lamella_contract.wire import (
    Envelope,
    Kind,
    RowResult,
    Sampling,
    StageTime,
    StepDone,
    StepHeader,
    Submit,
    decode_step,
    decode_step_done,
    encode_step,
    encode_step_done,
)
from lamella_worker.batch import Bundle
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.tensors import pack_bundle, unpack_bundle

_ENVELOPE = Envelope(Kind.STEP, bytes(16), bytes(16), 0, 0)

LARGEST_BYTES = 32 * 1024
"""Larger frames are prompts': to rehearse one would delay what the stage waits for."""


class FrameRehearsal:
    """The frames' part: what came last is read again, what went last is written again.

    It holds the last frame of each kind that is small, and nothing else.
    """

    def __init__(self) -> None:
        self._step: Sequence[memoryview] = ()
        self._done: Sequence[memoryview] = ()
        self._sent: tuple[StepHeader, Bundle] | None = None
        self._told: StepDone | None = None

    def came(self, *, step: Sequence[memoryview] = (), done: Sequence[memoryview] = ()) -> None:
        """The parts of the last message that was accepted."""
        if sum(map(len, (*step, *done))) <= LARGEST_BYTES:
            self._step, self._done = step, done

    def went(self, header: StepHeader, bundle: Bundle) -> None:
        """The last step that was passed on."""
        if not header.adopts and sum(t.nbytes for t in bundle.values()) <= LARGEST_BYTES:
            self._sent = (header, bundle)

    def told(self, done: StepDone) -> None:
        """The last StepDone that was sent."""
        self._told = done

    def once(self) -> None:
        """Go through the motions."""
        if self._step:
            _, header = decode_step(self._step[0])
            unpack_bundle(header.tensors, self._step[1:])
        if self._done:
            decode_step_done(self._done[0])
        if self._sent is not None:
            pack_bundle(self._sent[1])
            encode_step(_ENVELOPE, self._sent[0])
        if self._told is not None:
            encode_step_done(_ENVELOPE, self._told)


class SchedulerRehearsal:
    """The scheduler's part: an understudy with one request that is always decoding."""

    def __init__(self, stages: int) -> None:
        self._limits = SchedulerLimits(
            num_blocks=64,
            block_size=16,
            max_sequences=1,
            max_model_len=1024,
            max_step_tokens=16,
            max_queued_tokens=1024,
            stages=stages,
        )
        self._trace = (StageTime(1_000_000, 1_000_000),) * stages
        self._now_s = 0.0
        self._begin()

    def once(self) -> None:
        """Schedule one decode step and take its result in."""
        self._now_s += 0.001
        scheduled = self._scheduler.next_step(self._now_s)
        if scheduled is None or not scheduled.header.segments:  # its context is full
            self._begin()
            return
        (segment,) = scheduled.header.segments
        row = RowResult(segment.slot, segment.generation, segment.start + segment.count, (2,))
        done = StepDone(scheduled.header.step, (row,), self._trace)
        self._scheduler.complete(done, self._now_s)

    def _begin(self) -> None:
        self._scheduler = Scheduler(self._limits)
        sampling = Sampling(temperature=0.0, max_tokens=1000, ignore_eos=True)
        self._scheduler.submit(Submit(bytes(16), 1, 1, (2,), sampling), b"")
