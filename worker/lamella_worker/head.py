"""The compute thread of stage 0: it schedules steps, runs its own layers, and takes results in.

Knows no clients and no text. One turn of the loop:

1. carry out the control thread's orders (requests, cancels, a new epoch);
2. take in every StepDone that has come: tokens go to the gateways, blocks come free;
3. schedule one step, compute its rows, push it to stage 1 (with one stage: sample at once).

A probe is a real step of one token through all stages under a new epoch, before any request's.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import zmq
from numpy.typing import NDArray

from lamella_contract.errors import Overloaded, PipelineUnavailable, RequestError, WireError
from lamella_contract.wire import (
    Adopt,
    Cancel,
    Free,
    Replay,
    Sampling,
    SegmentHeader,
    StepDone,
    StepHeader,
    Submit,
    TokenEvent,
    decode_step_done,
)
from lamella_worker.links import InGate, OutLink, relink
from lamella_worker.membership.channel import ChannelEnd
from lamella_worker.membership.orders import (
    DropOwner,
    FromGateway,
    Order,
    Probed,
    Relink,
    Report,
    Resume,
    ToGateway,
)
from lamella_worker.membership.ring import Pause, Probe, Serve
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.rehearsal import FrameRehearsal, SchedulerRehearsal
from lamella_worker.scheduling.requests import OwnedEvent
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.stage import POLL_S, StepRunner
from lamella_worker.tensors import pack_bundle
from lamella_worker.transport import PullLink
from lamella_worker.waiting import Waiter

log = logging.getLogger(__name__)

PROBE_STEP = (1 << 64) - 2
"""Step numbers that no scheduler reaches: the probe, and the step that frees its slot. The probe's
generation is the epoch: an earlier probe, whose end a stage may have missed, is another tenure."""

UNKNOWN_STEP_S = 15.0
"""Taken as a step's predicted time while the cost model knows nothing: first steps touch memory,
fill caches and choose kernels, and must not look overdue."""

STATS_EVERY_S = 0.05
"""Seconds between two looks at the scheduler's counts while steps follow one another."""


class InFlight(NamedTuple):
    """A step that was sent and has not come back."""

    step: int
    sent_s: float  # monotonic
    predicted_s: float
    rows: int  # of a step that only decodes; 0 of others
    rested: bool  # there was nothing to do before it
    alone: bool  # no other step was on the way


class HeadLoop:
    """Runs until `stopping` is set. `done` is None when this is the only stage."""

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        out: OutLink | None,
        done: PullLink | None,
        channel: ChannelEnd[Report, Order],
        telemetry: Telemetry,
        config_hash: bytes,
        *,
        probe_slot: int,
        awake: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        sockets = [channel.socket] if done is None else [done.socket, channel.socket]
        self._frames = FrameRehearsal()
        self._understudy = SchedulerRehearsal(scheduler.limits.stages)
        self._waiter = Waiter(
            sockets, awake=awake, ring=done.ring if done else None, rehearse=self._rehearse
        )
        self._clock = clock
        self._probe_slot = probe_slot
        self._scheduler = scheduler
        self._out = out
        self._done = done
        self._channel = channel
        self._telemetry = telemetry
        self._gate = InGate(config_hash, channel, telemetry, what="StepDone")
        self._serving = False  # the ring's word; while the gate is shut nothing is scheduled
        self._in_flight: deque[InFlight] = deque()
        self._rested = True
        self._published_s = 0.0
        self._held: list[OwnedEvent] = []
        self.stopping = False
        self._drained_s = float("inf")

    def drain(self, patience_s: float) -> None:
        """Take nothing new, and end once nothing is live or after `patience_s` seconds.

        Gateways give what comes now to another pipeline, and at the end what is still live.
        """
        self._drained_s = self._clock() + patience_s
        self._telemetry.draining = True

    def run(self) -> None:
        """Serve; every wait is bounded, so `stopping` is seen within POLL_S."""
        worked = False
        while not self.stopping:
            worked = self.turn(self._waiter.wait(0.0 if worked else POLL_S))

    def turn(self, ready: Collection[zmq.Socket[bytes]]) -> bool:
        """Orders, results, one step; whether there was a step to be made."""
        if self._channel.socket in ready:
            for order in self._channel.drain():
                self._obey(order)
            # a long step may follow, and gateways take back what an idle pipeline does not know
            self._telemetry.scheduler = self._scheduler.stats()
        if self._done is not None:
            while (parts := self._done.receive()) is not None:
                self._waiter.arrived()
                self._take(parts)
            self._hurry()
        worked = self._serving and self._gate.is_open and self._schedule()
        self._flush()
        self._publish(worked)
        return worked

    def _obey(self, order: Order) -> None:
        match order:
            case FromGateway(owner, Submit() as submit):
                self._submit(owner, submit)
            case FromGateway(owner, Cancel(request_id, attempt)):
                self._scheduler.cancel(owner, request_id, attempt)
            case FromGateway(owner, Replay(request_id, attempt, position)):
                self._emit(self._scheduler.replay(owner, request_id, attempt, position))
            case DropOwner(owner):
                self._scheduler.drop_owner(owner)
            case Relink():
                self._relink(order)
            case Resume(epoch, held) if epoch == self._gate.epoch:
                self._scheduler.restart(held)
            case Probe(epoch) if epoch == self._gate.epoch:
                self._probe()
            case Serve(epoch) if epoch == self._gate.epoch:
                self._serving = True
            case Pause():
                self._serving = False

    def _submit(self, owner: bytes, submit: Submit) -> None:
        try:
            if self._telemetry.draining:
                raise PipelineUnavailable("the pipeline is draining")
            self._scheduler.submit(submit, owner)
        except (RequestError, PipelineUnavailable) as error:
            retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
            event = TokenEvent(
                submit.request_id,
                submit.attempt,
                max(0, len(submit.ids) - submit.prompt_len),
                (),
                "error",
                str(error),
                error.kind,
                retry_after_s,
            )
            self._channel.put(ToGateway(owner, (event,)))

    def _relink(self, order: Relink) -> None:
        """A new epoch: what was in flight is forgotten; `Resume` tells from where to go on."""
        self._serving = False
        self._in_flight.clear()
        self._rested = True  # what an outage cost is no bubble
        held = self._runner.enter(order.incarnation)
        relink(order, self._gate, self._out, self._channel, held)

    def _probe(self) -> None:
        greedy = Sampling(temperature=0.0, max_tokens=1)
        slot, generation = self._probe_slot, self._gate.epoch
        block = self._scheduler.lend_block()
        header = StepHeader(
            PROBE_STEP,
            adopts=(Adopt(slot, generation, 1, (0,), greedy),),
            segments=(SegmentHeader(slot, generation, 0, 1, True, (block,)),),
        )
        self._run(header, np.zeros(1, np.int32), UNKNOWN_STEP_S)

    def _schedule(self) -> bool:
        """One step, if there is one to be made; True when there was."""
        scheduled = self._scheduler.next_step(self._clock())
        if scheduled is None:
            self._rested = self._rested or not self._in_flight
            return False
        predicted_s = scheduled.predicted_s or UNKNOWN_STEP_S
        self._run(scheduled.header, scheduled.token_ids, predicted_s)
        self._waiter.worked()
        return True

    def _run(self, header: StepHeader, token_ids: NDArray[np.int32], predicted_s: float) -> None:
        inputs = {"token_ids": torch.from_numpy(token_ids.astype(np.int64))}
        try:
            bundle, rows, spent, failed = self._runner.run(header, inputs)
        except WireError as error:  # our own tables disagree: start the epoch anew
            self._gate.shut(f"stage 0: {error}")
            return
        decoding = len(header.segments) if len(header.segments) == len(token_ids) else 0
        alone, now_s = not self._in_flight, self._clock()
        flight = InFlight(header.step, now_s, predicted_s, decoding, self._rested, alone)
        self._in_flight.append(flight)
        self._rested = False
        if self._out is None:
            self._finish(StepDone(header.step, rows, (spent,), failed))
            return
        tensors, views = pack_bundle(bundle)
        onward = dataclasses.replace(header, tensors=tensors, trace=(spent,), failed=failed)
        if not self._out.send_step(onward, views):
            self._gate.shut("stage 1 takes no frame")
        self._frames.went(onward, bundle)

    def _rehearse(self) -> None:
        self._frames.once()
        self._understudy.once()

    def _take(self, parts: Sequence[memoryview]) -> None:
        try:
            envelope, done = decode_step_done(parts[0])
        except WireError as error:
            self._gate.refuse(error)
            return
        if self._gate.admits(envelope):
            self._finish(done)
            self._frames.came(done=parts)

    def _finish(self, done: StepDone) -> None:
        if not self._in_flight or self._in_flight[0].step != done.step:
            self._gate.shut(f"step {done.step} is done out of order")
            return
        flight = self._in_flight.popleft()
        if done.step >= PROBE_STEP:
            self._probe_done(done)
            return
        alone = flight.alone and not self._in_flight
        round_ns = int(1e9 * (self._clock() - flight.sent_s)) if alone else 0
        self._telemetry.ring.add(
            done.trace, rows=flight.rows, rested=flight.rested, round_ns=round_ns
        )
        try:
            self._held += self._scheduler.complete(done, self._clock())
        except WireError as error:
            self._gate.shut(str(error))

    def _probe_done(self, done: StepDone) -> None:
        if done.error:
            self._gate.shut(f"the probe failed: {done.error}")
        elif done.step == PROBE_STEP:
            free = Free(self._probe_slot, self._gate.epoch)
            header = StepHeader(PROBE_STEP + 1, frees=(free,))
            self._run(header, np.zeros(0, np.int32), UNKNOWN_STEP_S)
        else:
            self._channel.put(Probed(self._gate.epoch))

    def _hurry(self) -> None:
        """Tell first and last tokens before the next step is computed.

        All others are told while the next stage computes, when this one has nothing to do: a token
        comes as often, and the step that follows it begins earlier.
        """
        if any(event.position == 0 or event.finish for _, event in self._held):
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, []
        self._emit(held)

    def _emit(self, owned: Iterable[OwnedEvent]) -> None:
        """One message per gateway and step."""
        by_owner: dict[bytes, list[TokenEvent]] = {}
        for item in owned:
            by_owner.setdefault(item.owner, []).append(item.event)
            self._telemetry.counters.tokens += len(item.event.ids)
        for owner, events in by_owner.items():
            self._channel.put(ToGateway(owner, tuple(events)))

    def _publish(self, worked: bool) -> None:
        telemetry = self._telemetry
        oldest = self._in_flight[0] if self._in_flight else None
        telemetry.predicted_step_s = oldest.predicted_s if oldest else 0.0
        telemetry.oldest_step_sent_s = oldest.sent_s if oldest else 0.0
        now_s = self._clock()
        if not worked or now_s - self._published_s > STATS_EVERY_S:
            self._published_s = now_s
            telemetry.scheduler = stats = self._scheduler.stats()
            if telemetry.draining:
                idle = not (stats.running or stats.waiting)
                self.stopping = self.stopping or idle or now_s > self._drained_s
