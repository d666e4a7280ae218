"""Whatever happens, every request gets the tokens that it would get alone, once each.

A toy pipeline runs the scheduler's steps: each stage follows the headers with its own `SlotTable`
and keeps "KV" (the ids themselves) in blocks, so a wrong block table gives wrong tokens, and so
does a block that is copied or gone on from though it holds something else. Hypothesis submits,
cancels, resubmits, restarts, fails steps, starves the pool and delivers results late.
"""

from __future__ import annotations

from collections import deque
from dataclasses import astuple, dataclass, field, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from lamella_contract.errors import InvalidRequest, Overloaded, PromptTooLong
from lamella_contract.wire import (
    NO_SALT,
    Adopt,
    Free,
    HeldSlot,
    RowResult,
    Sampling,
    SegmentHeader,
    StageTime,
    StepDone,
    StepHeader,
    Submit,
)
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.requests import OwnedEvent
from lamella_worker.scheduling.scheduler import ScheduledStep, Scheduler
from lamella_worker.scheduling.slots import SlotSegment, SlotTable

VOCABULARY = 50
EOS = 7


def next_token(ids: list[int]) -> int:
    """The toy model: any id anywhere changes it."""
    state = len(ids)
    for token in ids:
        state = (state * 31 + token + 1) % 1_000_003
    return state % VOCABULARY


LIKE_OTHERS = st.builds(
    lambda base, length, rest: tuple((base + 3 * i) % VOCABULARY for i in range(length)) + rest,
    st.sampled_from([0, 0, 0, 1]),
    st.integers(1, 24),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6).map(tuple),
)
"""Prompts that often begin alike."""


def alone(prompt: tuple[int, ...], sampling: Sampling, longest: int) -> tuple[list[int], str]:
    """(output, finish) of a request run by itself."""
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS})
    ids = list(prompt)
    while True:
        ids.append(next_token(ids))
        output = ids[len(prompt) :]
        if ids[-1] in stops:
            return output, "stop"
        if len(output) >= sampling.max_tokens or len(ids) >= longest:
            return output, "length"


@dataclass
class ToyStage:
    """One stage: its table, its KV, and the steps on their way to it."""

    table: SlotTable
    kv: np.ndarray
    place: int
    known: dict[int, list[int]] = field(default_factory=dict)  # by slot
    broken: set[int] = field(default_factory=set)  # slots with a step that failed
    copied: int = 0  # blocks
    inbox: deque[tuple[StepHeader, np.ndarray]] = field(default_factory=deque)

    def run(self, header: StepHeader, ids: np.ndarray) -> list[SlotSegment]:
        skipped = header.through < self.place
        segments = self.table.apply(header, skipped=skipped)
        for adopt in header.adopts:
            self.known[adopt.slot] = list(adopt.ids)
            self.broken.discard(adopt.slot)
        if skipped:
            for segment in segments:
                assert self.context(segment) == self.ids(segment), "kept, but not what was computed"
            return segments
        if header.failed:
            self.table.doubt(header)
            self.broken.update(segment.slot for segment in segments)
            return segments
        size, offset = self.table.block_size, 0
        pages = self.kv.reshape(-1, size)
        for adopt in header.adopts:
            self.copied += len(adopt.sources)
            pages[list(adopt.blocks[: len(adopt.sources)])] = pages[list(adopt.sources)]
        for segment in segments:
            for place in range(segment.start, segment.start + segment.count):
                row = segment.blocks[place // size] * size + place % size
                self.kv[row] = ids[offset]
                if place >= len(self.known[segment.slot]):
                    self.known[segment.slot].append(int(ids[offset]))
                offset += 1
            if segment.slot not in self.broken:  # else the scheduler will fail it
                assert self.context(segment) == self.ids(segment), "computed on what is not there"
        assert offset == len(ids)
        return segments

    def ids(self, segment: SlotSegment) -> list[int]:
        """What the context must be."""
        return self.known[segment.slot][: segment.start + segment.count]

    def held(self) -> tuple[HeldSlot, ...]:
        """What it answers in a new epoch; it is really there."""
        for slot, _, length in map(astuple, self.table.held()):
            blocks = np.array(self.table.blocks_of(slot), np.int32)
            segment = SlotSegment(slot, 0, length, blocks, False)
            assert self.context(segment) == self.ids(segment), "held, but not what was computed"
        return self.table.held()

    def context(self, segment: SlotSegment) -> list[int]:
        size = self.table.block_size
        places = range(segment.start + segment.count)
        return [int(self.kv[segment.blocks[p // size] * size + p % size]) for p in places]


class ToyPipeline:
    """Stages in a row; `advance(k)` lets stage k take its next step, results queue up in `done`."""

    def __init__(self, limits: SchedulerLimits, token_ns: int = 100) -> None:
        self.limits = limits
        self.token_ns = token_ns  # low: merged cohorts are cheapest, high: split ones
        self.stages = [
            ToyStage(
                SlotTable(
                    num_blocks=limits.num_blocks,
                    block_size=limits.block_size,
                    max_sequences=limits.max_sequences + 1,  # and the probe
                    max_model_len=limits.max_model_len,
                ),
                np.full(limits.kv_tokens, -1, np.int64),
                place,
            )
            for place in range(limits.stages)
        ]
        self.done: deque[StepDone] = deque()

    def send(self, step: ScheduledStep) -> None:
        self.stages[0].inbox.append((step.header, step.token_ids))

    def restart(self, keep: tuple[bool, ...]) -> list[tuple[HeldSlot, ...]]:
        """A new epoch, in which some stages are new processes; what the others answer."""
        self.done.clear()
        for stage, kept in zip(self.stages, keep, strict=True):
            stage.inbox.clear()
            if kept:
                stage.table.rest()
            else:
                stage.table.reset()
                stage.kv[:] = -1
        return [stage.held() for stage in self.stages]

    def advance(self, k: int, *, fail: str = "", ids_per_row: int = 1) -> bool:
        if not self.stages[k].inbox:
            return False
        header, ids = self.stages[k].inbox.popleft()
        if fail and header.segments:
            header = StepHeader(
                header.step,
                header.frees,
                header.adopts,
                header.segments,
                failed=f"{fail} at stage {k}",
                through=header.through,
            )
        segments = self.stages[k].run(header, ids)
        if k + 1 < len(self.stages):
            self.stages[k + 1].inbox.append((header, ids))
            return True
        rows = []
        for segment, told in zip(segments, header.segments, strict=True):
            if segment.sample and not header.failed:
                context = self.stages[k].context(segment)
                new = []
                for _ in range(ids_per_row):
                    new.append(next_token([*context, *new]))
                position = segment.start + segment.count
                rows.append(RowResult(segment.slot, told.generation, position, tuple(new)))
        trace = tuple(StageTime(10_000 + self.token_ns * len(ids), 5) for s in range(k + 1))
        self.done.append(StepDone(header.step, tuple(rows), trace, header.failed))
        return True


@dataclass
class Client:
    """What a gateway knows of one request."""

    owner: bytes
    submit: Submit
    expected: list[int]
    finish: str
    received: list[int] = field(default_factory=list)
    ended: str = ""


class SchedulerMachine(RuleBasedStateMachine):
    """Random histories; `teardown` lets all that is left run to its end."""

    @initialize(
        stages=st.integers(1, 3),
        depth=st.integers(0, 1),
        block_size=st.integers(1, 4),
        num_blocks=st.integers(4, 14),
        max_sequences=st.integers(1, 5),
        max_step_tokens=st.integers(1, 24),
        max_model_len=st.integers(8, 40),
        token_ns=st.sampled_from([100, 1_000_000]),
    )
    def start(self, token_ns: int = 100, **sizes: int) -> None:
        self.limits = SchedulerLimits(
            **sizes, max_queued_tokens=40, eos_token_ids=(EOS,), vocab_size=VOCABULARY
        )
        self.scheduler = Scheduler(self.limits)
        self.pipeline = ToyPipeline(self.limits, token_ns)
        self.mirror = ToyPipeline(self.limits).stages[0].table
        self.clients: dict[bytes, Client] = {}
        self.tenures: set[tuple[int, int]] = set()
        self.may_come_again: set[tuple[int, int]] = set()
        self.now_s = 0.0
        self.count = 0

    def live(self) -> list[Client]:
        return [client for client in self.clients.values() if not client.ended]

    @rule(
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30).map(tuple)
        | LIKE_OTHERS,
        max_tokens=st.integers(1, 12),
        stop=st.lists(st.integers(0, VOCABULARY - 1), max_size=2).map(tuple),
        ignore_eos=st.booleans(),
        owner=st.sampled_from([b"a", b"b"]),
        salt=st.sampled_from([NO_SALT, NO_SALT, NO_SALT, b"s" * 16]),
    )
    def submit(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        stop: tuple[int, ...],
        ignore_eos: bool,
        owner: bytes,
        salt: bytes = NO_SALT,
    ) -> None:
        self.count += 1
        request_id = self.count.to_bytes(16, "little")
        sampling = Sampling(max_tokens=max_tokens, stop_token_ids=stop, ignore_eos=ignore_eos)
        submit = Submit(request_id, 0, len(prompt), prompt, sampling, salt)
        queued = self.scheduler.stats().queued_tokens
        try:
            self.scheduler.submit(submit, owner)
        except PromptTooLong:
            assert len(prompt) >= self.limits.longest
            return
        except Overloaded:
            assert queued
            assert queued + len(prompt) > self.limits.max_queued_tokens
            return
        expected, finish = alone(prompt, sampling, self.limits.longest)
        self.clients[request_id] = Client(owner, submit, expected, finish)

    def pick(self, data: st.DataObject) -> Client:
        return data.draw(st.sampled_from(self.live()))

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def resubmit(self, data: st.DataObject) -> None:
        """A gateway sends all that it knows once more, under a higher attempt."""
        client = self.pick(data)
        old = client.submit
        ids = old.ids[: old.prompt_len] + tuple(client.received)
        client.submit = replace(old, attempt=old.attempt + 1, ids=ids)
        try:
            self.scheduler.submit(client.submit, client.owner)
        except Overloaded:
            assert not client.received
            client.ended = "refused"

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        """The same attempt twice changes nothing."""
        client = self.pick(data)
        self.scheduler.submit(client.submit, client.owner)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        client = self.pick(data)
        submit = client.submit
        assert not self.scheduler.cancel(b"nobody", submit.request_id, submit.attempt)
        assert not self.scheduler.cancel(client.owner, submit.request_id, submit.attempt - 1)
        assert self.scheduler.cancel(client.owner, submit.request_id, submit.attempt)
        client.ended = "cancelled"

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), position=st.integers(0, 12))
    def replay(self, data: st.DataObject, position: int) -> None:
        client = data.draw(st.sampled_from(list(self.clients.values())))
        if client.ended in ("cancelled", "refused") or position > len(client.received):
            return
        submit = client.submit
        events = self.scheduler.replay(client.owner, submit.request_id, submit.attempt, position)
        ids = [token for event in events for token in event.event.ids]
        assert ids == client.received[position:]
        assert all(event.event.position == position for event in events)
        assert (events[-1].event.finish if events else "") == client.ended

    @rule(keep=st.tuples(*[st.booleans()] * 3), answered=st.integers(0, 3))
    def restart(self, keep: tuple[bool, ...], answered: int) -> None:
        """An epoch ends, perhaps twice, and any stages lose all."""
        if not answered:  # the epoch ended again before stage 0 heard from all
            self.pipeline.restart(keep[: self.limits.stages])
        self.resync((keep[1:] + keep[:1])[: self.limits.stages] if not answered else keep)

    def resync(self, keep: tuple[bool, ...]) -> None:
        keep = keep[: self.limits.stages]
        self.scheduler.restart(self.pipeline.restart(keep))
        self.mirror.rest()
        self.may_come_again = set(self.tenures)

    @rule(what=st.sampled_from(["probe", "fail all", "drop a", "drop b"]))
    def disaster(self, what: str) -> None:
        if what == "probe":
            self.resync((True, True, True))
            block = self.scheduler.lend_block()
            slot, generation = self.limits.max_sequences, self.count + 1
            adopt = Adopt(slot, generation, 1, (-2,), Sampling())
            segment = SegmentHeader(slot, generation, 0, 1, False, (block,))
            begin = StepHeader(0, adopts=(adopt,), segments=(segment,))
            end = StepHeader(0, frees=(Free(slot, generation),))
            for stage in self.pipeline.stages:
                stage.run(begin, np.array([-2]))
                stage.run(end, np.array([]))
            self.mirror.apply(begin)
            self.mirror.apply(end)
            self.count += 1
        elif what == "fail all":
            self.take(self.scheduler.fail_all("the stages are gone"))
            assert not self.live()
        else:
            owner = what[-1].encode()
            mine = [client for client in self.live() if client.owner == owner]
            assert self.scheduler.drop_owner(owner) == len(mine)
            for client in mine:
                client.ended = "cancelled"

    @rule(
        moves=st.lists(st.sampled_from(["send", "done", "0", "1", "2"]), min_size=1, max_size=40),
        ids_per_row=st.sampled_from([1, 1, 1, 2, 3]),
    )
    def work(self, moves: list[str], ids_per_row: int) -> None:
        """The stages and the scheduler move in any order."""
        for move in moves:
            if move == "send":
                self.send_one()
            elif move == "done":
                self.complete()
            else:
                self.pipeline.advance(int(move) % self.limits.stages, ids_per_row=ids_per_row)

    @rule(rounds=st.integers(1, 6))
    def go_round(self, rounds: int) -> None:
        """The stages keep up with the scheduler."""
        for _ in range(rounds):
            self.send_one()
            for k in range(self.limits.stages):
                self.pipeline.advance(k)
            self.complete()

    def send_one(self) -> bool:
        step = self.scheduler.next_step(self.now_s)
        if step is None:
            return False
        header = step.header
        assert len(step.token_ids) == sum(segment.count for segment in header.segments)
        assert len(step.token_ids) <= self.limits.max_step_tokens
        slots = [segment.slot for segment in header.segments]
        assert len(set(slots)) == len(slots)
        for adopt in header.adopts:
            tenure = (adopt.slot, adopt.generation)
            assert tenure not in self.tenures or tenure in self.may_come_again
            self.may_come_again.discard(tenure)
            self.tenures.add(tenure)
        self.mirror.apply(header)
        assert self.mirror.live() == self.scheduler.tables()
        self.scheduler.check_integrity()
        self.pipeline.send(step)
        return True

    @rule(k=st.integers(0, 2), how=st.sampled_from(["row only", "engine: nan", "out_of_memory: x"]))
    def fail_step(self, k: int, how: str) -> None:
        if how == "row only":
            self.pipeline.advance(self.limits.stages - 1, ids_per_row=0)
        else:
            self.pipeline.advance(k % self.limits.stages, fail=how)

    def complete(self) -> None:
        if self.pipeline.done:
            self.now_s += 0.01
            self.take(self.scheduler.complete(self.pipeline.done.popleft(), self.now_s))

    def take(self, events: list[OwnedEvent]) -> None:
        for owner, event in events:
            client = self.clients[event.request_id]
            assert owner == client.owner
            assert not client.ended, "an event after the end"
            assert event.attempt == client.submit.attempt
            assert event.position == len(client.received), "a token lost or doubled"
            client.received.extend(event.ids)
            client.ended = event.finish
            assert client.received == client.expected[: len(client.received)]
            if event.finish in ("stop", "length"):
                assert (client.received, event.finish) == (client.expected, client.finish)
            if event.finish == "error":
                assert event.error
                assert event.error_kind

    @invariant()
    def nothing_is_lost_or_held_twice(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    @invariant()
    def idle_stages_have_equal_tables(self) -> None:
        if hasattr(self, "scheduler") and not any(s.inbox for s in self.pipeline.stages):
            first, *others = (stage.table.live() for stage in self.pipeline.stages)
            assert all(table == first for table in others)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(3000):
            moved = self.send_one()
            for k in range(self.limits.stages):
                moved |= self.pipeline.advance(k)
            while self.pipeline.done:
                moved = True
                self.complete()
            if not moved:
                break
        self.scheduler.check_integrity()
        assert not self.live(), "a request hangs"
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.in_flight, stats.queued_tokens) == (0, 0, 0, 0)
        assert stats.kv_tokens_free == stats.kv_tokens
        for stage in self.pipeline.stages:
            assert stage.table.live() == {}


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("stages", [1, 2, 4], ids=lambda n: f"{n}-stages")
def test_many_requests_under_pressure_all_end_as_if_alone(stages: int) -> None:
    limits = SchedulerLimits(
        num_blocks=24,
        block_size=4,
        max_sequences=8,
        max_model_len=60,
        max_step_tokens=16,
        max_queued_tokens=100_000,
        stages=stages,
        eos_token_ids=(EOS,),
    )
    machine = SchedulerMachine()
    machine.start(
        **{
            name: getattr(limits, name)
            for name in (
                "stages",
                "block_size",
                "num_blocks",
                "max_sequences",
                "max_step_tokens",
                "max_model_len",
            )
        }
    )
    machine.limits = limits
    machine.scheduler = Scheduler(limits)
    for i in range(60):
        prompt = tuple((i * 7 + j * 3) % VOCABULARY for j in range(1 + i * 5 % 40))
        machine.submit(prompt, 1 + i % 25, (), True, b"a")
    machine.teardown()
    assert machine.scheduler.stats().preemptions > 0
    assert all(client.ended == client.finish for client in machine.clients.values())


def test_ids_that_hold_a_whole_answer_are_refused() -> None:
    limits = SchedulerLimits(4, 4, 1, 16, 16, 16, 1, (EOS,))
    submit = Submit(bytes(16), 1, 1, (1, EOS), Sampling(max_tokens=5))
    with pytest.raises(InvalidRequest, match="has ended"):
        Scheduler(limits).submit(submit, b"a")
