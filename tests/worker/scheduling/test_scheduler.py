"""Full sequences of steps, row by row, and what each answer to a gateway must be.

A step is written ``-0.1 +0.2 | 0.2[0:3)*+5,6``: frees as ``-slot.generation``, adoptions as ``+``,
then segments with their rows, ``*`` when a token is asked for, and the blocks that are new. A
tenure that goes on in a new epoch is ``+slot.generation<held:blocks``; ``@1`` is a step through
stage 1.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace

import pytest

from lamella_contract.errors import (
    InvalidConfig,
    InvalidRequest,
    LamellaError,
    Overloaded,
    PromptTooLong,
    WireError,
)
from lamella_contract.wire import (
    EVERY_STAGE,
    HeldSlot,
    RowResult,
    Sampling,
    StageTime,
    StepDone,
    Submit,
    TokenEvent,
)
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.requests import OwnedEvent
from lamella_worker.scheduling.scheduler import ScheduledStep, Scheduler

SMALL = SchedulerLimits(
    num_blocks=8,
    block_size=4,
    max_sequences=4,
    max_model_len=32,
    max_step_tokens=8,
    max_queued_tokens=40,
    stages=1,
    eos_token_ids=(99,),
)
TWO_STAGES = replace(SMALL, stages=2)


def request_id(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def written(step: ScheduledStep | None) -> str:
    if step is None:
        return "none"
    header = step.header
    told = [f"-{free.slot}.{free.generation}" for free in header.frees]
    for adopt in header.adopts:
        kept = f"<{adopt.held}:{','.join(map(str, adopt.blocks))}" if adopt.blocks else ""
        told.append(f"+{adopt.slot}.{adopt.generation}{kept}")
    rows = []
    for slot, generation, start, count, sample, new_blocks in header.segments:
        blocks = "+" + ",".join(map(str, new_blocks)) if new_blocks else ""
        mark = "*" if sample else ""
        rows.append(f"{slot}.{generation}[{start}:{start + count}){mark}{blocks}")
    through = "" if header.through == EVERY_STAGE else f"@{header.through} "
    return through + " ".join(told) + " | " + " ".join(rows)


def kept(answer: str) -> list[HeldSlot]:
    """A stage's answer, written ``slot.generation.length,...`` or ``none``."""
    held = answer.replace("none", "").split(",")
    return [HeldSlot(*map(int, one.split("."))) for one in held if one]


class Bench:
    """A scheduler driven by hand: steps queue up here until `done` answers the oldest."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.scheduler = Scheduler(limits)
        self.flying: list[ScheduledStep] = []
        self.now_s = 0.0

    def submit(self, name: str, prompt_len: int, max_tokens: int = 8, **more: object) -> None:
        ids = tuple(range(1, prompt_len + 1))
        sampling = Sampling(max_tokens=max_tokens, **more)  # type: ignore[arg-type]
        self.scheduler.submit(Submit(request_id(name), 0, prompt_len, ids, sampling), b"g")

    def cancel(self, name: str) -> bool:
        return self.scheduler.cancel(b"g", request_id(name), 0)

    def step(self) -> str:
        step = self.scheduler.next_step(self.now_s)
        if step is not None:
            self.flying.append(step)
        self.scheduler.check_integrity()
        return written(step)

    def done(self, *ids: int | tuple[int, ...], error: str = "") -> list[str]:
        """Answer the oldest step, row by row; the events as ``name@position ids finish``."""
        self.now_s += 0.1
        header = self.flying.pop(0).header
        sampled = [segment for segment in header.segments if segment.sample]
        rows = tuple(
            RowResult(
                s.slot, s.generation, s.start + s.count, new if isinstance(new, tuple) else (new,)
            )
            for s, new in zip(sampled, ids, strict=not error)
        )
        done = StepDone(header.step, rows, (StageTime(1000, 0),), error)
        events = self.scheduler.complete(done, self.now_s)
        self.scheduler.check_integrity()
        return [self.told(event) for event in events]

    def told(self, owned: OwnedEvent) -> str:
        event = owned.event
        name = event.request_id.rstrip(b"\0").decode()
        ids = ",".join(map(str, event.ids))
        return f"{name}@{event.position} {ids} {event.finish}".strip()


# Each line is an action and what must come of it.
SEQUENCES = {
    "one request, prompt to end": (
        SMALL,
        [
            ("submit a 3 2", None),
            ("step", "+0.1 | 0.1[0:3)*+0"),
            ("step", "none"),
            ("done 10", ["a@0 10"]),
            ("step", " | 0.1[3:4)*"),
            ("done 11", ["a@1 11 length"]),
            ("step", "-0.1 | "),
            ("done", []),
            ("step", "none"),
        ],
    ),
    "end of sequence ends the answer and is told": (
        SMALL,
        [
            ("submit a 1", None),
            ("step", "+0.1 | 0.1[0:1)*+0"),
            ("done 99", ["a@0 99 stop"]),
        ],
    ),
    "the context ends the answer": (
        replace(SMALL, max_model_len=6),
        [
            ("submit a 4 9", None),
            ("step", "+0.1 | 0.1[0:4)*+0"),
            ("done 5", ["a@0 5"]),
            ("step", " | 0.1[4:5)*+1"),
            ("done 6", ["a@1 6 length"]),
        ],
    ),
    "a long prompt goes in chunks, one at a time on one stage": (
        SMALL,
        [
            ("submit a 20 2", None),
            ("step", "+0.1 | 0.1[0:8)+0,1"),
            ("step", "none"),
            ("done", []),
            ("step", " | 0.1[8:16)+2,3"),
            ("done", []),
            ("step", " | 0.1[16:20)*+4"),
            ("done 7", ["a@0 7"]),
        ],
    ),
    "chunks follow each other into a pipeline, at most one more than stages": (
        TWO_STAGES,
        [
            ("submit a 30 2", None),
            ("step", "+0.1 | 0.1[0:8)+0,1"),
            ("step", " | 0.1[8:16)+2,3"),
            ("step", " | 0.1[16:24)+4,5"),
            ("step", "none"),
            ("done", []),
            ("step", " | 0.1[24:30)*+6,7"),
            ("done", []),
            ("done", []),
            ("step", "none"),
            ("done 7", ["a@0 7"]),
            ("step", " | 0.1[30:31)*"),
        ],
    ),
    "decode rows first, then prompts by age fill the step": (
        SMALL,
        [
            ("submit a 2", None),
            ("step", "+0.1 | 0.1[0:2)*+0"),
            ("submit b 5", None),
            ("submit c 9", None),
            ("submit d 1", None),
            ("done 10", ["a@0 10"]),
            ("step", "+1.1 +2.1 | 0.1[2:3)* 1.1[0:5)*+3,4 2.1[0:2)+7"),
            ("done 11 20", ["a@1 11", "b@0 20"]),
            ("step", " | 0.1[3:4)* 1.1[5:6)* 2.1[2:8)+2"),
        ],
    ),
    "a cancel with nothing running makes an empty step at once": (
        SMALL,
        [
            ("submit a 3", None),
            ("step", "+0.1 | 0.1[0:3)*+0"),
            ("done 10", ["a@0 10"]),
            ("cancel a", True),
            ("step", "-0.1 | "),
            ("done", []),
            ("step", "none"),
            ("cancel a", False),
        ],
    ),
    "a cancel in flight frees with the next step, and the result is dropped": (
        TWO_STAGES,
        [
            ("submit a 3", None),
            ("step", "+0.1 | 0.1[0:3)*+0"),
            ("cancel a", True),
            ("submit b 2", None),
            ("step", "-0.1 +0.2 | 0.2[0:2)*+0"),
            ("done 10", []),
            ("done 20", ["b@0 20"]),
        ],
    ),
    "rows that bring several ids are fed back together": (
        SMALL,
        [
            ("submit a 2 8", None),
            ("step", "+0.1 | 0.1[0:2)*+0"),
            ("done 10,11,12", ["a@0 10,11,12"]),
            ("step", " | 0.1[2:5)*+1"),
            ("done 13,99,14", ["a@3 13,99 stop"]),
        ],
    ),
    "a failed step fails its requests only": (
        TWO_STAGES,
        [
            ("submit a 3", None),
            ("step", "+0.1 | 0.1[0:3)*+0"),
            ("submit b 3", None),
            ("step", "+1.1 | 1.1[0:3)*+3"),
            ("error", ["a@0  error"]),
            ("step", "-0.1 | "),
            ("done 20", ["b@0 20"]),
        ],
    ),
    "out of blocks: the youngest gives way, waits, and goes on with its ids": (
        replace(SMALL, num_blocks=4, max_sequences=2),
        [
            ("submit a 7 6", None),
            ("submit b 4 6", None),
            ("step", "+0.1 +1.1 | 0.1[0:7)*+0,1 1.1[0:1)+3"),
            ("done 10", ["a@0 10"]),
            ("step", " | 0.1[7:8)* 1.1[1:4)*"),
            ("done 11 20", ["a@1 11", "b@0 20"]),
            ("step", "-1.1 | 0.1[8:9)*+2"),
            ("done 12,13,14,15", ["a@2 12,13,14,15 length"]),
            ("step", "-0.1 +0.2<4:1 | 0.2[4:5)*+2"),
            ("done 21", ["b@1 21"]),
        ],
    ),
    "preempted in flight and back in the same slot: the earlier tenure's result is dropped": (
        replace(TWO_STAGES, num_blocks=4, max_sequences=2),
        [
            ("submit c 1", None),
            ("submit a 7", None),
            ("step", "+0.1 +1.1 | 0.1[0:1)*+0 1.1[0:7)*+3,2"),
            ("cancel c", True),
            ("done 9 20", ["a@0 20"]),
            ("step", "-0.1 | 1.1[7:8)*"),
            ("submit b 4", None),
            ("step", "+0.2 | 0.2[0:4)*+0"),
            ("done 21,22,23,24,25,26", ["a@1 21,22,23,24,25,26"]),
            ("step", "-0.2 | 1.1[8:14)*+0,1"),
            ("cancel a", True),
            ("step", "-1.1 +0.3 | 0.3[0:4)*+0"),
            ("done 30", []),
            ("done 27", []),
            ("done 30", ["b@0 30"]),
        ],
    ),
    "what nobody kept is computed again from the ids, in the same slots and blocks": (
        TWO_STAGES,
        [
            ("submit a 3", None),
            ("submit b 2", None),
            ("step", "+0.1 +1.1 | 0.1[0:3)*+0 1.1[0:2)*+3"),
            ("done 10 20", ["a@0 10", "b@0 20"]),
            ("step", " | 0.1[3:4)* 1.1[2:3)*"),
            ("cancel b", True),
            ("restart", None),
            ("step", "+0.1<0:0 | 0.1[0:4)*"),
            ("done 11", ["a@1 11"]),
        ],
    ),
    "what all stages kept is not computed again": (
        TWO_STAGES,
        [
            ("submit a 3", None),
            ("submit b 2", None),
            ("step", "+0.1 +1.1 | 0.1[0:3)*+0 1.1[0:2)*+3"),
            ("done 10 20", ["a@0 10", "b@0 20"]),
            ("step", " | 0.1[3:4)* 1.1[2:3)*"),
            ("restart 0.1.4,1.1.3 0.1.3,1.1.2", None),
            ("step", "+0.1<3:0 +1.1<2:3 | 0.1[3:4)* 1.1[2:3)*"),
            ("restart 0.1.4,1.1.3 0.1.4,1.1.3", None),  # only the answer was lost
            ("step", "+0.1<3:0 +1.1<2:3 | 0.1[3:4)* 1.1[2:3)*"),
            ("done 11 21", ["a@1 11", "b@1 21"]),
        ],
    ),
    "the stages after one that died compute nothing that they hold": (
        TWO_STAGES,
        [
            ("submit a 6", None),
            ("submit b 2", None),
            ("step", "+0.1 +1.1 | 0.1[0:6)*+0,1 1.1[0:2)*+4"),
            ("done 10 20", ["a@0 10", "b@0 20"]),
            ("step", " | 0.1[6:7)* 1.1[2:3)*"),
            ("restart none 0.1.6,1.1.2", None),
            ("step", "@0 +0.1<0:0,1 +1.1<0:4 | 0.1[0:6) 1.1[0:2)"),
            ("step", " | 0.1[6:7)* 1.1[2:3)*"),
            ("done", []),
            ("done 11 21", ["a@1 11", "b@1 21"]),
        ],
    ),
    "another tenure's KV is not trusted, and one that has ended is not told again": (
        TWO_STAGES,
        [
            ("submit a 3", None),
            ("submit b 2", None),
            ("step", "+0.1 +1.1 | 0.1[0:3)*+0 1.1[0:2)*+3"),
            ("cancel b", True),
            ("restart 0.7.3,1.1.2 0.1.3,1.1.2", None),
            ("cancel a", True),
            ("step", "none"),
        ],
    ),
    "a step without memory is tried again with half the rows, three times": (
        SMALL,
        [
            ("submit a 5", None),
            ("submit b 2", None),
            ("step", "+0.1 +1.1 | 0.1[0:5)*+0,1 1.1[0:2)*+4"),
            ("error out_of_memory: big", []),
            ("step", "-0.1 -1.1 +0.2<0:0,1 +1.2<0:4 | 0.2[0:3)"),
            ("done", []),
            ("step", " | 0.2[3:5)* 1.2[0:1)"),
            ("error out_of_memory: big", []),
            ("step", "-0.2 -1.2 +0.3<0:0,1 +1.3<0:4 | 0.3[0:1)"),
            ("error out_of_memory: big", []),
            ("step", "-0.3 +0.4<0:0,1 | 1.3[0:1)"),
            ("done", []),
            ("step", " | 1.3[1:2)*"),
            ("done 20", ["b@0 20"]),
            ("step", " | 0.4[0:1)"),
            ("error out_of_memory: big", ["a@0  error"]),
            ("step", "-0.4 | 1.3[2:3)*"),
        ],
    ),
    "what is tried again keeps its tokens, and a new one gives it new tries": (
        SMALL,
        [
            ("submit a 3", None),
            ("step", "+0.1 | 0.1[0:3)*+0"),
            ("error out_of_memory: big", []),
            ("step", "-0.1 +0.2<0:0 | 0.2[0:1)"),
            ("error out_of_memory: big", []),
            ("step", "-0.2 +0.3<0:0 | 0.3[0:1)"),
            ("done", []),
            ("step", " | 0.3[1:2)"),
            ("done", []),
            ("step", " | 0.3[2:3)*"),
            ("done 10", ["a@0 10"]),
            ("step", " | 0.3[3:4)*"),
            ("error out_of_memory: big", []),
            ("step", "-0.3 +0.4<0:0 | 0.4[0:1)"),
            ("error out_of_memory: big", []),
            ("step", "-0.4 +0.5<0:0 | 0.5[0:1)"),
            ("error out_of_memory: big", []),
            ("step", "-0.5 +0.6<0:0 | 0.6[0:1)"),
            ("error out_of_memory: big", ["a@1  error"]),
        ],
    ),
    "who shares a step with what followed a failed one is tried again": (
        TWO_STAGES,
        [
            ("submit a 12", None),
            ("submit b 2", None),
            ("step", "+0.1 | 0.1[0:8)+0,1"),
            ("step", "+1.1 | 0.1[8:12)*+2 1.1[0:2)*+5"),
            ("error engine: nan", ["a@0  error"]),
            ("error engine: its state stands at 0", []),
            ("step", "-0.1 -1.1 +1.2<0:5 | 1.2[0:2)*"),
            ("done 20", ["b@0 20"]),
        ],
    ),
    "an epoch may end while something is tried again": (
        TWO_STAGES,
        [
            ("submit a 3", None),
            ("step", "+0.1 | 0.1[0:3)*+0"),
            ("error out_of_memory: big", []),
            ("restart 0.1.0 0.1.0", None),
            ("step", "+0.2<0:0 | 0.2[0:1)"),
            ("restart none 0.2.1", None),
            ("step", "@0 +0.2<0:0 | 0.2[0:1)"),
        ],
    ),
    "a request that is tried again may be cancelled": (
        SMALL,
        [
            ("submit a 3", None),
            ("submit b 1", None),
            ("step", "+0.1 +1.1 | 0.1[0:3)*+0 1.1[0:1)*+3"),
            ("error out_of_memory: big", []),
            ("cancel a", True),
            ("step", "-0.1 -1.1 +1.2<0:3 | 1.2[0:1)*"),
            ("done 20", ["b@0 20"]),
        ],
    ),
}


@pytest.mark.parametrize(("limits", "lines"), SEQUENCES.values(), ids=SEQUENCES.keys())
def test_sequence(limits: SchedulerLimits, lines: list[tuple[str, object]]) -> None:
    bench = Bench(limits)
    for line, expected in lines:
        action, *words = line.split()
        result: object = None
        if action == "submit":
            bench.submit(words[0], *map(int, words[1:]))
        elif action == "step":
            result = bench.step()
        elif action == "done":
            result = bench.done(*(tuple(map(int, word.split(","))) for word in words))
        elif action == "error":
            result = bench.done(error=" ".join(words) or "out of memory")
        elif action == "cancel":
            result = bench.cancel(words[0])
        else:
            bench.scheduler.restart([kept(word) for word in words])
            bench.flying.clear()
        assert result == expected, line


def test_a_stale_step_done_is_ignored_after_a_restart() -> None:
    bench = Bench(TWO_STAGES)
    bench.submit("a", 3)
    bench.step()
    bench.scheduler.restart()
    assert bench.done(10) == []
    assert bench.step() == "+0.1<0:0 | 0.1[0:3)*"
    assert bench.done(10) == ["a@0 10"]


def row(slot: int = 0, generation: int = 1, position: int = 3, ids: tuple[int, ...] = (5,)):  # type: ignore[no-untyped-def]
    return RowResult(slot, generation, position, ids)


@pytest.mark.parametrize(
    ("done", "message"),
    [
        pytest.param(StepDone(2, (row(),)), "got 2, want 1", id="another step"),
        pytest.param(StepDone(1), "got 0 rows, want 1", id="a row is missing"),
        pytest.param(StepDone(1, (row(), row())), "got 2 rows", id="a row too many"),
        pytest.param(StepDone(1, (row(slot=1),)), "want the row of", id="another slot"),
        pytest.param(StepDone(1, (row(generation=2),)), "want the row of", id="generation"),
        pytest.param(StepDone(1, (row(position=4),)), "want the row of", id="another position"),
    ],
)
def test_a_step_done_that_does_not_match_is_refused_and_changes_nothing(
    done: StepDone, message: str
) -> None:
    bench = Bench(SMALL)
    bench.submit("a", 3)
    bench.step()
    with pytest.raises(WireError, match=message):
        bench.scheduler.complete(done, 1.0)
    assert bench.done(10) == ["a@0 10"]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("out_of_memory: 3 GiB wanted", "out_of_memory", "3 GiB wanted"),
        ("engine: nan", "engine", "nan"),
        ("stage 1: lost", "engine", "stage 1: lost"),
        ("something", "engine", "something"),
    ],
)
def test_a_failed_step_tells_the_kind_of_its_error(error: str, kind: str, message: str) -> None:
    bench = Bench(SMALL)
    bench.submit("a", 3)
    events: list[OwnedEvent] = []
    while not events:
        bench.step()
        number = bench.flying[-1].header.step
        events = bench.scheduler.complete(StepDone(number, (), (), error), 1.0)
    ((_, event),) = events
    assert (event.finish, event.error_kind, event.error) == ("error", kind, message)


def test_a_row_without_ids_fails_its_request_only() -> None:
    bench = Bench(SMALL)
    bench.submit("a", 3)
    bench.submit("b", 3)
    bench.step()
    assert bench.done((), 20) == ["a@0  error", "b@0 20"]
    assert bench.step() == "-0.1 | 1.1[3:4)*"


def submission(ids: tuple[int, ...], prompt_len: int, max_tokens: int = 4) -> Submit:
    return Submit(request_id("x"), 0, prompt_len, ids, Sampling(max_tokens=max_tokens))


@pytest.mark.parametrize(
    ("submit", "error", "message"),
    [
        pytest.param(submission((), 0), InvalidRequest, "prompt_len: got 0", id="no ids"),
        pytest.param(submission((1,), 2), InvalidRequest, "prompt_len: got 2", id="prompt_len"),
        pytest.param(submission((1,), 1, 0), InvalidRequest, "max_tokens: got 0", id="max_tokens"),
        pytest.param(submission((1, 500), 2), InvalidRequest, "got token 500", id="a high id"),
        pytest.param(submission((-1, 5), 2), InvalidRequest, "got token -1", id="a negative id"),
        pytest.param(
            submission((1,) * 32, 32), PromptTooLong, "got 32 tokens, want less than 32", id="long"
        ),
        pytest.param(submission((1, 99), 1), InvalidRequest, "has ended", id="after its end"),
        pytest.param(submission((1,) * 5, 1), InvalidRequest, "has ended", id="all its tokens"),
    ],
)
def test_a_bad_request_is_refused(submit: Submit, error: type[LamellaError], message: str) -> None:
    scheduler = Scheduler(replace(SMALL, vocab_size=100))
    with pytest.raises(error, match=message):
        scheduler.submit(submit, b"g")
    assert scheduler.next_step(0.0) is None


def test_a_prompt_that_no_pool_holds_is_too_long() -> None:
    scheduler = Scheduler(replace(SMALL, num_blocks=2))
    with pytest.raises(PromptTooLong, match="KV cache 8 tokens"):
        scheduler.submit(submission((1,) * 8, 8), b"g")


@pytest.mark.parametrize(
    ("field", "value"),
    [("stages", 0), ("num_blocks", 0), ("max_step_tokens", -1), ("step_limit_s", 0.0)],
)
def test_limits_that_cannot_work_are_named(field: str, value: float) -> None:
    with pytest.raises(InvalidConfig, match=field):
        replace(SMALL, **{field: value})


def test_too_many_queued_tokens_are_refused_with_a_time_from_the_measured_rate() -> None:
    bench = Bench(replace(SMALL, max_queued_tokens=40))
    bench.submit("a", 24)
    bench.submit("b", 16)
    with pytest.raises(Overloaded, match="40 tokens wait already") as first:
        bench.submit("c", 20)
    assert first.value.retry_after_s == 1.0  # nothing measured yet
    bench.step()
    bench.done()  # 8 tokens in 0.1 s
    with pytest.raises(Overloaded, match="32 tokens wait already") as second:
        bench.submit("c", 31)
    assert second.value.retry_after_s == 1.0
    with pytest.raises(Overloaded):
        bench.submit("c", 25)
    bench.now_s = 9.9
    bench.step()
    bench.done()  # 8 tokens more, but none for long: the step was sent at 9.9
    bench.submit("c", 16)
    assert bench.scheduler.stats().queued_tokens == 40


def test_the_time_to_retry_grows_with_the_excess_and_is_bounded() -> None:
    bench = Bench(replace(SMALL, max_queued_tokens=8, max_model_len=1000, num_blocks=250))
    bench.submit("a", 100)
    bench.step()
    bench.done()  # 80 tokens a second
    seconds = []
    for length in (1, 156, 956):
        with pytest.raises(Overloaded) as refused:
            bench.submit("b", length)
        seconds.append(refused.value.retry_after_s)
    assert seconds == [pytest.approx(s) for s in ((85 / 80), (240 / 80), (1040 / 80))]


def test_a_request_that_holds_output_is_never_overloaded() -> None:
    bench = Bench(replace(SMALL, max_queued_tokens=8))
    bench.submit("a", 8)
    resumed = Submit(request_id("b"), 1, 6, (1, 2, 3, 4, 5, 6, 50, 51), Sampling(max_tokens=4))
    bench.scheduler.submit(resumed, b"g")
    assert bench.step() == "+0.1 | 0.1[0:8)*+0,1"
    bench.done(10)
    assert bench.step() == "+1.1<4:4 | 0.1[8:9)*+2 1.1[4:8)*+5"
    assert bench.done(11, 52) == ["a@1 11", "b@2 52"]


def test_an_empty_queue_takes_a_prompt_beyond_the_limit_of_the_queue() -> None:
    bench = Bench(replace(SMALL, max_queued_tokens=4))
    bench.submit("a", 20)
    assert bench.step() == "+0.1 | 0.1[0:8)+0,1"


def test_a_higher_attempt_replaces_and_older_ones_are_ignored() -> None:
    bench = Bench(SMALL)
    scheduler = bench.scheduler
    bench.submit("a", 3)
    bench.step()
    bench.done(10)
    again = Submit(request_id("a"), 2, 3, (1, 2, 3, 10), Sampling(max_tokens=8))
    scheduler.submit(again, b"g")
    scheduler.submit(replace(again, attempt=1), b"g")
    assert not bench.cancel("a"), "attempt 0 is gone"
    assert bench.step() == "-0.1 +0.2 | 0.2[0:4)*+0"
    flying = bench.flying[0].header.adopts[0]
    assert (flying.prompt_len, flying.ids) == (3, (1, 2, 3, 10))
    assert bench.done(11) == ["a@1 11"]


def test_replay() -> None:
    bench = Bench(SMALL)
    scheduler = bench.scheduler
    bench.submit("a", 3, 3)
    bench.step()
    bench.done(10)
    bench.step()
    bench.done(11)
    a, other = request_id("a"), request_id("other")

    def replay(name: bytes, attempt: int, position: int) -> list[TokenEvent]:
        return [event for _, event in scheduler.replay(b"g", name, attempt, position)]

    assert replay(a, 0, 0) == [TokenEvent(a, 0, 0, (10, 11))]
    assert replay(a, 0, 1) == [TokenEvent(a, 0, 1, (11,))]
    assert replay(a, 0, 2) == []
    assert replay(a, 0, 9) == []
    bench.step()
    bench.done(12)
    assert replay(a, 0, 2) == [TokenEvent(a, 0, 2, (12,), "length")]
    assert replay(a, 0, 3) == [TokenEvent(a, 0, 3, (), "length")]
    for name, attempt in ((other, 0), (a, 1)):
        (lost,) = replay(name, attempt, 2)
        assert (lost.finish, lost.error_kind, lost.position) == ("error", "stage_lost", 2)


def test_fail_all_and_drop_owner_leave_nothing() -> None:
    bench = Bench(SMALL)
    for name in "abc":
        bench.submit(name, 3)
    bench.step()
    events = bench.scheduler.fail_all("the pipeline is gone")
    assert [event.finish for _, event in events] == ["error"] * 3
    assert {event.error_kind for _, event in events} == {"pipeline_unavailable"}
    bench.submit("d", 3)
    assert bench.scheduler.drop_owner(b"g") == 1
    assert bench.scheduler.drop_owner(b"g") == 0
    stats = bench.scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_free) == (0, 0, 32)


def test_requests_that_wait_cost_nothing_per_step() -> None:
    """A step's Python calls are the same in number with none and with 1,000 queued."""

    def calls_of_a_step(queued: int) -> int:
        bench = Bench(replace(SMALL, max_sequences=2, max_queued_tokens=10**6, num_blocks=64))
        bench.submit("x", 3, 20)
        bench.submit("y", 3, 20)
        bench.step()
        bench.done(1, 1)
        for i in range(queued):
            bench.submit(f"q{i}", 5)
        calls = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        scheduler = bench.scheduler
        gc.disable()  # others' callbacks of a collection are none of the scheduler's calls
        sys.setprofile(count)
        try:
            step = scheduler.next_step(1.0)
            assert step is not None
            rows = tuple(
                RowResult(s.slot, s.generation, s.start + 1, (2,)) for s in step.header.segments
            )
            scheduler.complete(StepDone(step.header.step, rows), 1.1)
        finally:
            sys.setprofile(None)
            gc.enable()
        assert len(rows) == 2
        return calls

    assert calls_of_a_step(1000) == calls_of_a_step(1)


def test_it_imports_no_torch_socket_or_server() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'zmq', 'transformers', 'prometheus_client'):\n"
        "    sys.modules[name] = None\n"
        "import lamella_worker.scheduling.scheduler, lamella_worker.scheduling.slots\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
