"""Which events wake a model: echoes of own writes do not, whenever they come. In virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from operator_virtual_time import play

from lamella_operator.reconciling.client import TO_THE_END
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.running.wakes import Wakes
from lamella_operator.running.workqueue import WorkQueue

KEY = ModelKey("ai", "tiny", "uid-m")
OTHER = ModelKey("ai", "large", "uid-l")


class Story:
    """Wakes over a queue; each step is awaited in virtual time."""

    def __init__(self) -> None:
        self.queue: WorkQueue[ModelKey] = WorkQueue(jitter=lambda: 0.5)
        self.wakes = Wakes(self.queue)

    def told(self, uid: str, version: str, *, gone: bool = False) -> None:
        self.wakes.told(KEY, uid, version, gone=gone)

    async def begin(self) -> None:
        self.queue.add(KEY)
        assert await self.queue.get() == KEY

    def end(self) -> None:
        self.wakes.rested(KEY)
        self.queue.done(KEY)

    @property
    def awake(self) -> bool:
        return len(self.queue) + self.queue.delayed > 0


def tell(told: Callable[[Story], Awaitable[None]]) -> None:
    async def story() -> None:
        await told(Story())

    play(story())


def test_an_echo_after_the_round_wakes_nobody_and_only_once() -> None:
    async def story(now: Story) -> None:
        await now.begin()
        now.wakes.wrote("u", "7")
        now.end()
        now.told("u", "7")
        assert not now.awake
        now.told("u", "7")
        assert now.awake

    tell(story)


def test_an_echo_before_the_answer_wakes_nobody() -> None:
    async def story(now: Story) -> None:
        await now.begin()
        now.told("u", "7")
        now.wakes.wrote("u", "7")
        now.end()
        assert not now.awake

    tell(story)


@pytest.mark.parametrize("version", ["6", "8"], ids=["before ours", "after ours"])
@pytest.mark.parametrize("at_work", [True, False])
def test_what_others_wrote_wakes(version: str, at_work: bool) -> None:
    async def story(now: Story) -> None:
        await now.begin()
        now.wakes.wrote("u", "7")
        if at_work:
            now.told("u", "7")
            now.told("u", version)
            now.end()
        else:
            now.end()
            now.told("u", version)
            now.told("u", "7")
        assert now.awake

    tell(story)


@pytest.mark.parametrize("at_work", [True, False])
def test_the_end_of_what_we_wrote_wakes(at_work: bool) -> None:
    async def story(now: Story) -> None:
        await now.begin()
        now.wakes.wrote("u", "7")
        if at_work:
            now.told("u", "7", gone=True)
            now.end()
        else:
            now.end()
            now.told("u", "7", gone=True)
        assert now.awake

    tell(story)


def test_of_what_is_over_nothing_wakes_until_it_is_gone() -> None:
    async def story(now: Story) -> None:
        await now.begin()
        now.wakes.wrote("u", TO_THE_END)
        now.told("u", "8")
        now.end()
        now.told("u", "9", gone=True)
        assert not now.awake
        now.told("u", "9")
        assert now.awake

    tell(story)


def test_other_models_are_woken_while_one_is_at_work() -> None:
    async def story(now: Story) -> None:
        await now.begin()
        now.wakes.told(OTHER, "v", "1", gone=False)
        assert await now.queue.get() == OTHER

    tell(story)
