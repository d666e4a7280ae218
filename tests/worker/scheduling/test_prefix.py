"""A request begins with what others left: full blocks, computed by all, and never at a cost.

Blocks of four tokens. A driver runs each step at once and answers with one fixed token.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella_contract.wire import (
    NO_SALT,
    Adopt,
    HeldSlot,
    RowResult,
    Sampling,
    StageTime,
    StepDone,
    Submit,
    TokenEvent,
)
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.prefix import PrefixIndex, chain
from lamella_worker.scheduling.scheduler import ScheduledStep, Scheduler

LIMITS = SchedulerLimits(
    num_blocks=16,
    block_size=4,
    max_sequences=4,
    max_model_len=64,
    max_step_tokens=64,
    max_queued_tokens=1000,
    stages=1,
)
TOKEN = 500
SYSTEM = tuple(range(1, 13))  # three blocks


class Driver:
    def __init__(self, limits: SchedulerLimits = LIMITS) -> None:
        self.scheduler = Scheduler(limits)
        self.events: list[TokenEvent] = []
        self.count = 0

    def submit(self, *prompt: int, tokens: int = 1, salt: bytes = NO_SALT) -> None:
        self.count += 1
        name = self.count.to_bytes(16, "big")
        sampling = Sampling(temperature=0.0, max_tokens=tokens)
        self.scheduler.submit(Submit(name, 1, len(prompt), prompt, sampling, salt), b"g")

    def step(self) -> ScheduledStep | None:
        step = self.scheduler.next_step(0.0)
        self.scheduler.check_integrity()
        return step

    def done(self, step: ScheduledStep, error: str = "") -> None:
        rows = tuple(
            RowResult(s.slot, s.generation, s.start + s.count, (TOKEN,))
            for s in step.header.segments
            if s.sample and not error
        )
        done = StepDone(step.header.step, rows, (StageTime(1000, 0),), error)
        self.events += [event for _, event in self.scheduler.complete(done, 0.0)]
        self.scheduler.check_integrity()

    def run(self) -> list[Adopt]:
        """Until nothing is left to do; the adoptions on the way."""
        adopts: list[Adopt] = []
        while (step := self.step()) is not None:
            adopts += step.header.adopts
            self.done(step)
        return adopts

    def ask(self, *prompt: int, tokens: int = 1, salt: bytes = NO_SALT) -> Adopt:
        """One request from its submission to its end."""
        self.submit(*prompt, tokens=tokens, salt=salt)
        (adopt,) = self.run()
        return adopt


@pytest.mark.parametrize(
    ("before", "prompt", "held"),
    [
        pytest.param(SYSTEM, (*SYSTEM, 90, 91), 12, id="a-shared-beginning"),
        pytest.param(SYSTEM, SYSTEM, 8, id="the-same-again-the-last-token-is-computed"),
        pytest.param(SYSTEM, (*SYSTEM[:10], 90, 91), 8, id="only-full-blocks"),
        pytest.param(SYSTEM, SYSTEM[:3], 0, id="less-than-a-block"),
        pytest.param(SYSTEM, (9, *SYSTEM[1:], 90), 0, id="another-first-token"),
        pytest.param(SYSTEM, (*SYSTEM[:2], 9, *SYSTEM[3:], 90), 0, id="a-hole-in-the-first-block"),
        pytest.param(SYSTEM, (*SYSTEM[4:], 90), 0, id="the-same-tokens-elsewhere"),
        pytest.param(SYSTEM[:11], (*SYSTEM[:11], TOKEN, 90), 8, id="the-last-token-has-no-row"),
    ],
)
def test_what_is_found(before: tuple[int, ...], prompt: tuple[int, ...], held: int) -> None:
    driver = Driver()
    driver.ask(*before)
    found = driver.ask(*prompt)
    assert found.held == held
    assert len(found.sources) == held // 4
    assert driver.events[-1].cached == held
    stats = driver.scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (
        len(before) + len(prompt),
        held,
    )


def test_the_next_turn_of_a_chat_takes_its_blocks_over_where_they_lie() -> None:
    driver = Driver()
    driver.ask(*SYSTEM, tokens=6)  # 17 positions have rows
    turn = driver.ask(*SYSTEM, *[TOKEN] * 6, 90, 91)
    assert turn.held == 16
    assert turn.sources == turn.blocks


def test_what_a_running_request_uses_is_copied() -> None:
    driver = Driver()
    driver.submit(*SYSTEM, 90, tokens=9)
    first = driver.step()
    assert first is not None
    driver.done(first)
    driver.submit(*SYSTEM, 91)
    step = driver.step()
    assert step is not None
    (adopt,) = step.header.adopts
    (owner,) = first.header.segments
    assert adopt.sources == owner.new_blocks[:3]
    assert adopt.held == 12
    assert not set(adopt.blocks) & set(owner.new_blocks)


def test_what_is_not_computed_yet_is_not_found() -> None:
    driver = Driver(replace(LIMITS, stages=2))
    driver.submit(*SYSTEM, 90)
    first = driver.step()
    driver.submit(*SYSTEM, 91)
    second = driver.step()
    assert first is not None
    assert second is not None
    assert [adopt.held for adopt in second.header.adopts] == [0]


@pytest.mark.parametrize("error", ["engine: it broke", "out_of_memory: x"])
def test_rows_of_a_failed_step_are_not_found(error: str) -> None:
    driver = Driver()
    driver.submit(*SYSTEM, 90)
    step = driver.step()
    assert step is not None
    driver.done(step, error)
    driver.submit(*SYSTEM, 91)
    step = driver.step()
    assert step is not None
    assert [adopt.held for adopt in step.header.adopts if adopt.ids[-1] == 91] in ([0], [])


def test_salts_keep_requests_apart() -> None:
    driver = Driver()
    one, two = b"1" * 16, b"2" * 16
    assert driver.ask(*SYSTEM, 90, salt=one).held == 0
    assert driver.ask(*SYSTEM, 90).held == 0
    assert driver.ask(*SYSTEM, 90, salt=two).held == 0
    assert driver.ask(*SYSTEM, 91, salt=one).held == 12


def test_what_was_used_least_recently_goes_first_and_ends_go_before_beginnings() -> None:
    driver = Driver()  # 16 blocks
    old, new = tuple(range(100, 120)), tuple(range(200, 220))
    driver.ask(*old)
    driver.ask(*new)
    driver.ask(*old[:4], 7)  # the first block of the old one was used since
    driver.ask(*range(300, 336))  # nine blocks: six were free
    assert driver.ask(*old[:4], 8).held == 4
    assert driver.ask(*new, 8).held == 4


def test_a_full_cache_makes_nobody_wait() -> None:
    driver = Driver()
    for base in (100, 200, 300, 400):
        driver.ask(*range(base, base + 16))
    assert driver.scheduler.stats().kv_tokens_free == LIMITS.kv_tokens
    driver.submit(*range(500, 563))
    step = driver.step()
    assert step is not None
    assert [s.count for s in step.header.segments] == [63]
    assert driver.scheduler.stats().preemptions == 0


def test_copies_are_read_before_the_blocks_are_given_away() -> None:
    """The pool is so full that a newcomer's own sources are among the blocks that it gets."""
    driver = Driver(replace(LIMITS, num_blocks=6))
    driver.ask(*SYSTEM, *range(20, 28))  # five blocks
    adopt = driver.ask(*SYSTEM, *range(30, 38))
    assert adopt.held == 12
    assert len(adopt.sources) == 3


def test_equal_beginnings_are_kept_once() -> None:
    driver = Driver()
    for last in (90, 91, 92, 93):
        driver.submit(*SYSTEM, last, tokens=2)
    driver.run()
    kept = driver.scheduler._compose.running.blocks.kept()
    assert len(kept) == 3


def test_a_preempted_request_goes_on_with_what_it_had() -> None:
    driver = Driver()
    driver.submit(*SYSTEM, 90, tokens=3)
    step = driver.step()
    assert step is not None
    driver.done(step)
    driver.scheduler._compose.give_way()
    (again,) = driver.run()
    assert again.held == 12
    assert again.ids == (*SYSTEM, 90, TOKEN)
    assert driver.events[0].cached == 0, "it was computed for this very request"
    assert [event.finish for event in driver.events] == ["", "", "length"]


@pytest.mark.parametrize(
    ("held", "found"),
    [
        pytest.param((13,), 12, id="stages-hold-all"),
        pytest.param((9,), 8, id="stages-hold-some"),
        pytest.param((0,), 0, id="a-stage-is-new"),
        pytest.param((None,), 0, id="a-stage-never-holds-any"),
    ],
)
def test_a_new_epoch_trusts_what_running_requests_hold_on_all_stages(
    held: tuple[int | None, ...], found: int
) -> None:
    driver = Driver()
    driver.ask(*range(100, 120))
    driver.submit(*SYSTEM, 90, tokens=20)
    step = driver.step()
    assert step is not None
    driver.done(step)
    (segment,) = step.header.segments
    driver.scheduler.restart(
        [
            None if length is None else [HeldSlot(segment.slot, segment.generation, length)]
            for length in held
        ]
    )
    driver.scheduler.check_integrity()
    driver.submit(*SYSTEM, 91)
    driver.submit(*range(100, 120), 91)
    step = driver.step()
    assert step is not None
    of = {adopt.ids[0]: adopt.held for adopt in step.header.adopts if adopt.ids[-1] == 91}
    assert of == {1: found, 100: 0}


def test_what_no_stage_was_told_of_since_the_epoch_began_is_not_left_to_others() -> None:
    """The stages forget it, though they had it when they were asked."""
    driver = Driver()
    driver.submit(*SYSTEM, 90, tokens=20)
    step = driver.step()
    assert step is not None
    driver.done(step)
    (segment,) = step.header.segments
    driver.scheduler.restart([[HeldSlot(segment.slot, segment.generation, 13)]])
    assert driver.scheduler.cancel(b"g", driver.count.to_bytes(16, "big"), 1)
    assert driver.ask(*SYSTEM, 91).held == 0


def test_names_are_of_all_ids_so_far() -> None:
    names: list[bytes] = []
    chain(names, NO_SALT, SYSTEM, 4, 2)
    chain(names, NO_SALT, SYSTEM, 4, 3)
    again: list[bytes] = []
    chain(again, NO_SALT, SYSTEM, 4, 3)
    assert names == again
    other: list[bytes] = []
    chain(other, NO_SALT, (99, *SYSTEM[1:]), 4, 3)
    assert not set(names) & set(other)


def test_the_index_follows_a_run_where_it_can() -> None:
    index = PrefixIndex()
    for block, name in ((3, b"a"), (8, b"a"), (4, b"b"), (9, b"b")):
        index.put(block, name)
    assert index.find(b"b", before=8) == 9
    assert index.find(b"b", before=3) == 4
    assert index.find(b"b", before=0) == 4
    index.drop_doubles([8, 9])
    assert index.find(b"b", before=8) == 4
    index.drop(4)
    assert index.find(b"b", before=3) == -1
    assert len(index) == 1
