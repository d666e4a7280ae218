"""The queue of keys: each once, one at a time, in order, with back-off. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_virtual_time import play

from lamella_operator.running.workqueue import LAST_BACKOFF_S, SPACING_S, WorkQueue

Queue = WorkQueue[str]
Story = Callable[[Queue], Awaitable[None]]


def tell(story: Story) -> None:
    async def told() -> None:
        await story(WorkQueue(jitter=lambda: 0.5))

    play(told())


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def got(queue: Queue, within_s: float = 0.0) -> str | None:
    try:
        async with asyncio.timeout(within_s):
            return await queue.get()
    except TimeoutError:
        return None


def test_first_come_first_served_and_each_once() -> None:
    async def story(queue: Queue) -> None:
        for key in "abacbd":
            queue.add(key)
        assert len(queue) == 4
        assert [await queue.get() for _ in range(4)] == ["a", "b", "c", "d"]
        assert await got(queue, 100) is None

    tell(story)


def test_a_key_at_work_is_not_given_twice_and_comes_again() -> None:
    async def story(queue: Queue) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert await got(queue, 10) is None
        assert queue.at_work == 1
        queue.done("a")
        before_s = now_s()
        assert await queue.get() == "a"
        assert now_s() - before_s == pytest.approx(SPACING_S)
        queue.done("a")
        assert await got(queue, 1000) is None

    tell(story)


def test_the_earliest_alarm_wins_and_news_win_over_alarms() -> None:
    async def story(queue: Queue) -> None:
        began_s = now_s()
        queue.add("a", 30)
        queue.add("a", 10)
        queue.add("a", 20)
        assert queue.delayed == 1
        assert await queue.get() == "a"
        assert now_s() - began_s == pytest.approx(10)
        queue.done("a", 60)
        await asyncio.sleep(1)
        queue.add("a")
        assert await got(queue) == "a"
        queue.done("a")
        assert await got(queue, 1000) is None  # the alarm of 60 s was answered by the news

    tell(story)


def test_a_waiting_getter_is_woken_by_an_earlier_alarm() -> None:
    async def story(queue: Queue) -> None:
        queue.add("late", 100)
        getter = asyncio.ensure_future(queue.get())
        await asyncio.sleep(1)
        began_s = now_s()
        queue.add("soon", 2)
        assert await getter == "soon"
        assert now_s() - began_s == pytest.approx(2)

    tell(story)


def test_failures_back_off_for_that_key_only_and_success_forgets() -> None:
    async def story(queue: Queue) -> None:
        pauses = []
        queue.add("bad")
        for _ in range(10):
            assert await queue.get() == "bad"
            pauses.append(queue.failed("bad"))
            queue.add("good")
            assert await got(queue, SPACING_S) == "good"
            queue.done("good")
        assert pauses == [0.5, 1, 2, 4, 8, 16, *[LAST_BACKOFF_S] * 4]
        assert await queue.get() == "bad"
        queue.done("bad")
        queue.add("bad")
        assert await queue.get() == "bad"
        assert queue.failed("bad") == 0.5

    tell(story)


def test_news_during_a_failure_do_not_shorten_its_back_off() -> None:
    async def story(queue: Queue) -> None:
        queue.add("a")
        await queue.get()
        queue.add("a")
        pause_s = queue.failed("a")
        began_s = now_s()
        assert await queue.get() == "a"
        assert now_s() - began_s == pytest.approx(pause_s)

    tell(story)


def test_a_forgotten_key_leaves_nothing_behind() -> None:
    async def story(queue: Queue) -> None:
        for number in range(100):
            key = f"model-{number}"
            queue.add(key)
            await queue.get()
            queue.forget(key)
        for memory in (queue._rested_s, queue._failures, queue._due_s, queue._working):
            assert not memory

    tell(story)


def test_news_of_a_key_that_is_being_forgotten_are_kept() -> None:
    async def story(queue: Queue) -> None:
        queue.add("a")
        await queue.get()
        queue.add("a")
        queue.forget("a")
        assert await got(queue) == "a"

    tell(story)


def test_it_says_how_long_things_take() -> None:
    async def story(queue: Queue) -> None:
        assert (queue.oldest_s(), queue.longest_s()) == (0.0, 0.0)
        queue.add("a")
        queue.add("b")
        await asyncio.sleep(3)
        assert queue.oldest_s() == 3
        await queue.get()
        assert queue.waited_s == 3
        await asyncio.sleep(5)
        assert queue.longest_s() == 5
        assert queue.oldest_s() == 8

    tell(story)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.floats(0, 5), st.floats(0, 3), st.booleans()),
        max_size=40,
    )
)
def test_no_key_is_lost_or_worked_on_twice(wishes: list[tuple[str, float, float, bool]]) -> None:
    async def story(queue: Queue) -> None:
        busy: set[str] = set()
        worked: list[tuple[str, float]] = []
        last: dict[str, float] = {}

        async def worker() -> None:
            for turn in range(10_000):
                key = await queue.get()
                assert key not in busy
                busy.add(key)
                worked.append((key, now_s()))
                await asyncio.sleep(turn % 3 / 2)
                busy.discard(key)
                queue.failed(key) if turn % 5 == 4 else queue.done(key)

        workers = [asyncio.ensure_future(worker()) for _ in range(3)]
        for key, after_s, pause_s, _ in wishes:
            queue.add(key, after_s)
            last[key] = now_s()
            await asyncio.sleep(pause_s)
        await asyncio.sleep(600)
        for key, asked_s in last.items():
            assert any(one == key and at_s >= asked_s for one, at_s in worked)
        assert not len(queue)
        assert not queue.at_work
        assert not queue.delayed
        for one in workers:
            one.cancel()

    tell(story)
