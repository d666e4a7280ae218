"""What every stage does next: requests in, steps out, results back, events to their gateways.

Knows no tensor, no socket and no clock (the time is told to it). It lives on stage 0 and decides
for all stages: a step's header carries every decision, so no other stage schedules anything.
In the flow: gateways' messages come in by `submit`, `cancel` and `replay`; the stage loop takes
`next_step`, runs it down the line, and gives each `StepDone` to `complete`, in order, which
returns the events to send.

What lies where: `requests` the records, `running` slots and blocks, `prefix` what can be found
again, `compose` the choice of rows, `cost` the learned times, `cohorts` how rows that decode are
dealt out, `chunks` how prompts are cut, `flights` the steps under way, `pressure` what is tried
again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamella_contract.errors import InvalidRequest, Overloaded, PipelineUnavailable, WireError
from lamella_contract.wire import HeldSlot, StepDone, StepHeader, Submit
from lamella_worker.scheduling.compose import Composer
from lamella_worker.scheduling.cost import CostModel, DrainRate
from lamella_worker.scheduling.draft import Draft, ScheduledStep
from lamella_worker.scheduling.flights import Flight, Flights
from lamella_worker.scheduling.limits import SchedulerLimits, SchedulerStats
from lamella_worker.scheduling.pressure import try_again
from lamella_worker.scheduling.requests import (
    LiveRequest,
    OwnedEvent,
    RequestBook,
    check_submit,
    live_request,
)
from lamella_worker.scheduling.resync import Kept
from lamella_worker.scheduling.running import RunningSet


class Scheduler:
    """Decides each step and follows each request from `submit` to its last event."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._book = RequestBook()
        self._cost = CostModel(limits.stages, limits.most_cohorts)
        self._drain = DrainRate()
        self._compose = Composer(
            RunningSet(
                num_blocks=limits.num_blocks,
                block_size=limits.block_size,
                max_sequences=limits.max_sequences,
            ),
            self._cost,
            max_step_tokens=limits.max_step_tokens,
            step_limit_s=limits.step_limit_s,
        )
        self._eos = frozenset(limits.eos_token_ids)
        self._flights = Flights()
        self._arrivals = 0
        self._steps = 0
        self._completed_s = 0.0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._busy_ns = [0] * limits.stages
        self._idle_ns = [0] * limits.stages

    # What gateways say

    def submit(self, request: Submit, owner: bytes) -> None:
        """Take a request in; ids beyond the prompt are output that its client has already.

        A higher attempt replaces the one known, an attempt that is known or older is ignored.
        Raises `InvalidRequest`, `PromptTooLong`, or `Overloaded` when too many tokens wait; a
        request that holds output is never overloaded: its client is reading it.
        """
        key = (owner, request.request_id)
        if request.attempt <= self._book.newest_attempt(key):
            return
        check_submit(request, self.limits)
        old = self._book.get(key)
        if old is not None:
            self._remove(old)
        self._arrivals += 1
        live = live_request(
            request,
            owner,
            eos=self._eos,
            longest=self.limits.longest,
            arrival=self._arrivals,
        )
        if live.has_ended:
            raise InvalidRequest("ids: the answer they hold has ended, want one to go on with")
        if not live.output_len:
            self._check_load(len(live.ids))
        self._book.add(live)
        self._compose.enqueue(live)

    def _check_load(self, tokens: int) -> None:
        queued = self._compose.queued_tokens
        excess = queued + tokens - self.limits.max_queued_tokens
        if queued and excess > 0:
            raise Overloaded(
                f"{queued} tokens wait already, {tokens} more would pass "
                f"max_queued_tokens={self.limits.max_queued_tokens}",
                retry_after_s=self._drain.retry_after_s(excess),
            )

    def cancel(self, owner: bytes, request_id: bytes, attempt: int) -> bool:
        """Drop a request of this attempt or an older one; its slot is freed by the next header.

        Whether there was one.
        """
        live = self._book.get((owner, request_id))
        if live is None or live.attempt > attempt:
            return False
        self._remove(live)
        return True

    def drop_owner(self, owner: bytes) -> int:
        """Drop all requests of a gateway that is gone; how many."""
        dropped = self._book.of_owner(owner)
        for live in dropped:
            self._remove(live)
        return len(dropped)

    def replay(
        self, owner: bytes, request_id: bytes, attempt: int, position: int
    ) -> list[OwnedEvent]:
        """The events of an attempt again, from output ``position`` on; see `RequestBook.replay`."""
        return self._book.replay((owner, request_id), attempt, position)

    # Steps

    @property
    def max_in_flight(self) -> int:
        """Most steps between `next_step` and `complete` at any time: the credit of the links."""
        return self.limits.stages + 1

    def next_step(self, now_s: float) -> ScheduledStep | None:
        """The next step, or None when nothing can run or enough is in flight.

        A step without rows tells the stages what to free, as soon as there is something. One stage
        has one step with rows at a time, as have stages that compute in turn; others have one more
        than there are stages, so that a prompt's chunk is at hand while results travel back.
        """
        flights, compose = self._flights, self._compose
        if len(flights) >= self.max_in_flight:
            return None
        draft = Draft()
        if self.limits.most_cohorts > 1 or not flights.have_rows:
            if compose.takes_turn_to_replay():
                compose.add_replays(draft)
            else:
                compose.add_decodes(
                    draft, steps_in_flight=flights.decode_steps, rows_in_flight=flights.decode_rows
                )
                compose.add_prefills(draft, steps_in_flight=flights.steps_with_rows)
                if not draft.segments:
                    compose.add_replays(draft)
        frees = compose.running.take_frees()
        adopts = compose.running.take_adopts() + draft.adopts
        if not draft.segments and not frees and not adopts:
            return None
        self._steps += 1
        header = StepHeader(
            step=self._steps,
            frees=frees,
            adopts=tuple(adopts),
            segments=tuple(draft.segments),
            through=draft.through,
        )
        work = draft.work
        flights.send(header.step, draft, work, now_s)
        predicted_s = self._cost.ring_s(work) if work.tokens else 0.0
        return ScheduledStep(header, np.array(draft.ids, dtype=np.int32), predicted_s)

    def complete(self, done: StepDone, now_s: float) -> list[OwnedEvent]:
        """Take a step's results in; the events that follow, at most one per request.

        A step with an error fails its requests and no others, unless `pressure` has them tried
        again. A step from before a `restart` is ignored. A row without ids fails its request.
        Raises `WireError`, and changes nothing, for a step out of order and for rows that are not
        those the step asked for.
        """
        flight = self._flights.oldest()
        oldest = flight.step if flight else self._steps + 1
        if done.step < oldest:
            return []
        if done.step > oldest or flight is None:
            raise WireError(f"step done: got {done.step}, want {oldest}, the oldest in flight")
        rows = [] if done.error else flight.landed(done)
        self._flights.land()
        self._account(flight, done, now_s)
        if done.error:
            return [self._fail(r, done.error) for r in try_again(flight, done.error, self._compose)]
        for request, end in flight.full():
            request.landed = end
            self._compose.running.name_blocks(request)
        events: list[OwnedEvent] = []
        ready = self._compose.ready
        for request, new in rows:
            if not new:
                events.append(self._fail(request, "engine: no token could be drawn"))
                continue
            event = request.accept(new)
            self._output_tokens += len(event.event.ids)
            events.append(event)
            if request.finish:
                self._remove(request)
            else:
                ready[request.arrival] = request
        return events

    def _fail(self, request: LiveRequest, error: str) -> OwnedEvent:
        event = request.fail_as(error)
        self._remove(request)
        return event

    def _account(self, flight: Flight, done: StepDone, now_s: float) -> None:
        """Learn from a step that came back."""
        busy_s = max(0.0, now_s - max(self._completed_s, flight.sent_s))
        self._completed_s = now_s
        self._drain.observe(flight.prompt_tokens, busy_s)
        self._prompt_tokens += flight.prompt_tokens
        self._pace(flight, done, now_s)
        if done.error or len(done.trace) != self.limits.stages:
            return
        for stage, time in enumerate(done.trace):
            self._busy_ns[stage] += time.compute_ns
            self._idle_ns[stage] += time.idle_ns
        work = flight.work
        if work.tokens:
            self._compose.budget.went_well()
        if work.tokens and flight.is_typical:
            self._cost.observe(work, [time.compute_ns * 1e-9 for time in done.trace])

    def _pace(self, flight: Flight, done: StepDone, now_s: float) -> None:
        """Tell a step that has rows, or had to be tried again, to who counts cohorts."""
        if flight.decode_step is not None and not done.error:
            self._compose.cohorts.landed(flight.decode_step, now_s)
        elif flight.work.tokens:
            self._compose.cohorts.interrupted()

    def _remove(self, request: LiveRequest) -> None:
        self._compose.withdraw(request)
        self._book.remove(request)

    # Membership

    def restart(self, answers: Sequence[Sequence[HeldSlot] | None] = ()) -> None:
        """A new epoch: every running request goes on from what all stages hold of it.

        ``answers`` has one entry per stage: what it kept, None if it never can (then no request
        begins with what another left, either); without them nobody kept anything. Known
        ids beyond are computed again, none is sampled again. Steps in flight are forgotten; their
        StepDone, should one still come, is ignored. The first header tells the stages of all
        tenures that go on; what else they had is to rest until it is overwritten.
        """
        self._flights.clear()
        self._compose.cohorts.interrupted()
        self._compose.restart(Kept(self.limits.stages, answers))

    def lend_block(self) -> int:
        """A block for the probe: one that holds nothing of anyone.

        When all are in use, the youngest request gives way as to any other.
        """
        block = self._compose.running.lend()
        if block < 0:
            self._compose.give_way()
            block = self._compose.running.lend()
        return block

    def fail_all(self, reason: str, kind: str = PipelineUnavailable.kind) -> list[OwnedEvent]:
        """End every live request with an error; the events that say so."""
        events = []
        for request in list(self._book):
            events.append(request.fail(reason, kind))
            self._remove(request)
        return events

    def stats(self) -> SchedulerStats:
        """Counts for /metrics and for a gateway's choice of replica."""
        compose = self._compose
        return SchedulerStats(
            running=len(compose.running),
            waiting=len(compose.waiting),
            in_flight=len(self._flights),
            queued_tokens=compose.queued_tokens,
            kv_tokens=self.limits.kv_tokens,
            kv_tokens_free=compose.running.blocks.free_blocks * self.limits.block_size,
            cohorts=compose.cohort_count,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            preemptions=compose.preemptions,
            rows_replayed=compose.rows_replayed,
            prefix_cache_queries=compose.tokens_asked,
            prefix_cache_hits=compose.tokens_found,
            stage_busy_s=tuple(ns * 1e-9 for ns in self._busy_ns),
            stage_idle_s=tuple(ns * 1e-9 for ns in self._idle_ns),
        )

    def tables(self) -> dict[int, tuple[int, int, tuple[int, ...]]]:
        """Slot -> (generation, computed length, blocks), as every stage's `SlotTable` has it."""
        return {
            request.slot: (request.generation, request.computed, tuple(request.lease.blocks))
            for request in self._compose.running
            if request.lease is not None
        }

    def check_integrity(self) -> None:
        """Assert that nothing is lost or held twice; O(live + pool), for tests and idle times."""
        compose = self._compose
        compose.check_integrity()
        assert len(self._book) == len(compose.running) + len(compose.waiting)
        awaited = self._flights.awaited()
        queued = compose.prefilling.keys() | compose.ready.keys() | compose.replaying.keys()
        assert awaited.isdisjoint(compose.ready)
        assert awaited | queued == {request.arrival for request in compose.running}
