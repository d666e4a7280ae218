"""The compute thread of every stage but the first: receive a step, check it, compute it, send it.

Knows no scheduler and no clients. What a step means is decided by stage 0 and written in its
header; this loop checks that the frame belongs to the present epoch and is the next of its link,
applies frees and adoptions, runs the engine and passes the result on, a failed step too, so that
order is never lost. `StepRunner` is the part that stage 0 shares.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import zmq

from lamella_contract.errors import EngineError, LamellaError, OutOfMemory, WireError
from lamella_contract.wire import (
    NO_INCARNATION,
    HeldSlot,
    RowResult,
    StageTime,
    StepDone,
    StepHeader,
    decode_step,
)
from lamella_worker.batch import Bundle, Segment, StepBatch
from lamella_worker.links import InGate, OutLink, relink
from lamella_worker.membership.channel import ChannelEnd
from lamella_worker.membership.orders import Order, Relink, Report
from lamella_worker.oom import is_out_of_memory
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.rehearsal import FrameRehearsal
from lamella_worker.sampling import FAILED_ROW, Sampler
from lamella_worker.scheduling.slots import SlotTable
from lamella_worker.tensors import pack_bundle, unpack_bundle
from lamella_worker.transport import PullLink
from lamella_worker.waiting import Waiter

log = logging.getLogger(__name__)

POLL_S = 0.2
"""The longest wait without looking whether the process was told to stop."""


class StageEngine(Protocol):
    """What the loop asks of an engine: `TorchDynamicShardInferenceEngine`, or a test's toy."""

    def step(self, batch: StepBatch, bundle: Bundle) -> Bundle:
        """Compute one step's rows; the bundle for the next stage, or the sampled rows' logits."""
        ...

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy what is in the first cache blocks to the second; all are read before any is
        written.
        """
        ...

    def release(self, slot: int) -> None:
        """A sequence is done."""
        ...

    def reset(self) -> None:
        """Every sequence is done."""
        ...

    @property
    def rewindable(self) -> bool:
        """Whether a step may go on from any position that was computed: blocks hold all there is.

        Where not, every sequence is forgotten at each epoch.
        """
        ...

    def memory(self) -> dict[str, int]:
        """Bytes by what they are for."""
        ...


class StepRunner:
    """What every stage does with one step: its tables, its engine, and on the last its sampler."""

    def __init__(
        self,
        engine: StageEngine,
        slots: SlotTable,
        sampler: Sampler | None,
        telemetry: Telemetry,
        pulse: Pulse,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._sampler = sampler
        self._telemetry = telemetry
        self._pulse = pulse
        self._clock_ns = clock_ns
        self._idle_since_ns = clock_ns()
        self._incarnation = NO_INCARNATION

    def enter(self, incarnation: bytes) -> tuple[HeldSlot, ...] | None:
        """A new epoch; what is kept of sequences, for the scheduler to go on from. None: never any.

        Another incarnation keeps nothing but weights and pages. The sampler is always begun anew:
        it is a fold over ids, which come again.
        """
        same, self._incarnation = incarnation == self._incarnation, incarnation
        rewindable = self._engine.rewindable
        if not same or not rewindable:
            self.reset()
            return () if rewindable else None
        if self._sampler is not None:
            self._sampler.reset()
        for slot in self._slots.live():
            self._engine.release(slot)
        self._slots.rest()
        return self._slots.held()

    def reset(self) -> None:
        """Forget every sequence; weights and pages stay."""
        self._slots.reset()
        self._engine.reset()
        if self._sampler is not None:
            self._sampler.reset()

    def run(
        self, header: StepHeader, inputs: Bundle
    ) -> tuple[Bundle, tuple[RowResult, ...], StageTime, str]:
        """Compute one step: (bundle for the next stage, rows if this is the last, time, failure).

        WireError when the header contradicts this stage's tables: the frame is not to be trusted.
        """
        began_ns = self._clock_ns()
        idle_ns = began_ns - self._idle_since_ns
        self._pulse.busy()
        self._telemetry.computing = True
        try:
            bundle, rows, failed = self._compute(header, inputs)
        finally:
            self._pulse.idle()
            self._telemetry.computing = False
            self._idle_since_ns = self._clock_ns()
        spent = StageTime(self._idle_since_ns - began_ns, idle_ns)
        counters = self._telemetry.counters
        counters.steps += 1
        counters.compute_ns += spent.compute_ns
        counters.idle_ns += spent.idle_ns
        counters.steps_failed += bool(failed) and not header.failed
        return bundle, rows, spent, failed

    def _compute(
        self, header: StepHeader, inputs: Bundle
    ) -> tuple[Bundle, tuple[RowResult, ...], str]:
        try:
            return self._follow(header, inputs)
        except WireError:
            self._slots.reset()  # half applied: nothing of it is to be trusted
            raise

    def _follow(
        self, header: StepHeader, inputs: Bundle
    ) -> tuple[Bundle, tuple[RowResult, ...], str]:
        skipped = header.through < self._telemetry.stage
        segments = self._slots.apply(header, skipped=skipped)
        for free in header.frees:
            self._engine.release(free.slot)
        if self._sampler is not None:
            for free in header.frees:
                self._sampler.free(free)
            for adopt in header.adopts:
                self._sampler.adopt(adopt)
        if header.failed and not skipped:
            self._slots.doubt(header)
        if header.failed or not segments or skipped:
            return {}, (), header.failed
        batch = StepBatch(tuple(Segment(*s) for s in segments), self._slots.block_size)
        self._telemetry.counters.rows += batch.tokens
        try:
            for adopt in header.adopts:
                if adopt.sources:
                    self._engine.copy_blocks(adopt.sources, adopt.blocks[: len(adopt.sources)])
            outputs = self._engine.step(batch, inputs)
            rows = self._sample(header, batch, outputs) if self._sampler is not None else ()
        except WireError:
            raise
        except LamellaError as error:
            self._slots.doubt(header)
            log.error("a step could not be computed", extra={"error": str(error)})
            return {}, (), f"{error.kind}: {error}"
        except Exception as error:  # the edge of one step: only its requests may suffer
            self._slots.doubt(header)
            log.exception("a step failed", extra={"step": header.step})
            kind = OutOfMemory.kind if is_out_of_memory(error) else EngineError.kind
            return {}, (), f"{kind}: {type(error).__name__}: {error}"
        is_end = self._sampler is not None or header.through == self._telemetry.stage
        return ({} if is_end else outputs), rows, ""

    def _sample(
        self, header: StepHeader, batch: StepBatch, outputs: Bundle
    ) -> tuple[RowResult, ...]:
        assert self._sampler is not None
        sampled = [s for s in header.segments if s.sample]
        if not sampled:  # a prompt's chunk: not every runner makes logits of no rows
            return ()
        slots = np.array([s.slot for s in sampled], np.int64)
        positions = np.array([s.start + s.count for s in sampled], np.int64)
        ids = self._sampler.sample_rows(outputs["logits"], slots, positions)
        return tuple(
            RowResult(s.slot, s.generation, s.start + s.count, () if i == FAILED_ROW else (i,))
            for s, i in zip(sampled, ids.tolist(), strict=True)
        )


class StageLoop:
    """Runs until `stopping` is set."""

    def __init__(
        self,
        runner: StepRunner,
        out: OutLink,
        data: PullLink,
        channel: ChannelEnd[Report, Order],
        telemetry: Telemetry,
        config_hash: bytes,
        *,
        is_last: bool,
        awake: bool,
    ) -> None:
        self._runner = runner
        self._rehearsal = FrameRehearsal()
        self._waiter = Waiter(
            (data.socket, channel.socket),
            awake=awake,
            ring=data.ring,
            rehearse=self._rehearsal.once,
        )
        self._out = out
        self._data = data
        self._channel = channel
        self._gate = InGate(config_hash, channel, telemetry, what="frame")
        self._is_last = is_last
        self.stopping = False

    def run(self) -> None:
        """Serve steps; every wait is bounded, so `stopping` is seen within POLL_S."""
        while not self.stopping:
            self.turn(self._waiter.wait(POLL_S))

    def turn(self, ready: Collection[zmq.Socket[bytes]]) -> None:
        """Carry out what the control thread asks for, then take one frame if there is one."""
        if self._channel.socket in ready:
            for order in self._channel.drain():
                if isinstance(order, Relink):
                    held = self._runner.enter(order.incarnation)
                    relink(order, self._gate, self._out, self._channel, held)
        if (parts := self._data.receive()) is not None:
            self._waiter.arrived()
            self._take(parts)
            self._waiter.worked()

    def _take(self, parts: Sequence[memoryview]) -> None:
        try:
            envelope, header = decode_step(parts[0])
            if self._gate.admits(envelope):
                self._step(header, parts[1:])
                self._rehearsal.came(step=parts)
        except WireError as error:
            self._gate.refuse(error)

    def _step(self, header: StepHeader, parts: Sequence[memoryview]) -> None:
        inputs = {} if header.failed else unpack_bundle(header.tensors, parts)
        bundle, rows, spent, failed = self._runner.run(header, inputs)
        trace = (*header.trace, spent)
        if self._is_last:
            done = StepDone(header.step, rows, trace, failed)
            sent = self._out.send_done(done)
            self._rehearsal.told(done)
        else:
            tensors, views = pack_bundle(bundle)
            onward = dataclasses.replace(header, tensors=tensors, trace=trace, failed=failed)
            sent = self._out.send_step(onward, views)
            self._rehearsal.went(onward, bundle)
        if not sent:
            self._gate.shut("the next stage takes no frame")
