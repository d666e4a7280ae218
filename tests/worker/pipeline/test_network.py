"""Bad networks between real stages: late, cut, reset, corrupted, replayed. All of it is harmless.

Each fault falls into the middle of four answers. They come out as they would alone, no process is
replaced, and stage 0's probe has told the truth meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

Answer = Callable[[list[int], int], list[int]]

PROMPTS = [([20], 30), (list(range(14, 60)), 12), ([50, 60, 70], 40), ([33] * 40, 25)]
LINKS = ("data-0", "data-1", "data-2", "control-1", "control-2")
DATA = LINKS[:3]


@pytest.fixture
def pods(proxied: Any) -> Iterator[Any]:
    """Healthy before and after; every process is the same."""
    proxied.wait_until(proxied.is_ready)
    pids = [proxied.pid(stage) for stage in range(3)]
    yield proxied
    proxied.heal()
    # ZeroMQ does not dial again by itself after what was no ZeroMQ: the stage does, after a while
    proxied.wait_until(lambda: all(link.connections for link in proxied.proxy.links))
    proxied.wait_until(proxied.is_ready)
    assert [proxied.pid(stage) for stage in range(3)] == pids
    assert proxied.status(0)["lost"] is None


def answers_are_exact(pods: Any, answer: Answer, hurt: Callable[[], None]) -> None:
    """Four requests, hurt in their middle."""
    wanted = {pods.submit(prompt, count): (prompt, count) for prompt, count in PROMPTS}
    done: list[bool] = []

    def once(event: Any) -> None:
        if event.position == 5 and not done:
            done.append(True)
            hurt()

    found = pods.collect(set(wanted), once)
    assert done
    for request, (prompt, count) in wanted.items():
        assert found[request] == (answer(prompt, count), "length")


@pytest.mark.parametrize("name", LINKS)
def test_late_frames(pods: Any, toy_answer: Answer, name: str) -> None:
    epoch = pods.status(0)["epoch"]

    def hurt() -> None:
        pods.link(name).delay_s = 0.02

    answers_are_exact(pods, toy_answer, hurt)
    assert pods.status(0)["epoch"] == epoch, "late is not lost"


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        *((name, ("forth", "back")) for name in LINKS),
        *((name, ("forth",)) for name in LINKS),
        ("control-1", ("back",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_cut(pods: Any, toy_answer: Answer, name: str, ways: tuple[str, ...]) -> None:
    """What is cut in one direction is cut: stage 0 does not serve until it is whole."""
    epoch = pods.status(0)["epoch"]

    def hurt() -> None:
        pods.link(name).hold(*ways)
        pods.wait_until(lambda: not pods.is_ready())
        pods.heal()

    answers_are_exact(pods, toy_answer, hurt)
    pods.wait_until(pods.is_ready)
    assert pods.status(0)["epoch"] > epoch


@pytest.mark.parametrize("name", DATA)
def test_a_cut_of_the_way_that_carries_nothing(pods: Any, toy_answer: Answer, name: str) -> None:
    answers_are_exact(pods, toy_answer, lambda: pods.link(name).hold("back"))


@pytest.mark.parametrize("name", LINKS)
def test_a_connection_that_is_reset(pods: Any, toy_answer: Answer, name: str) -> None:
    made = pods.link(name).made

    def hurt() -> None:
        pods.link(name).reset()

    answers_are_exact(pods, toy_answer, hurt)
    pods.wait_until(lambda: pods.link(name).made > made)


@pytest.mark.parametrize("at", [-1, 1], ids=["in-the-box", "in-a-length"])
@pytest.mark.parametrize(
    ("name", "way"), [*((name, "forth") for name in LINKS), ("control-2", "back")]
)
def test_bits_that_flip(pods: Any, toy_answer: Answer, name: str, way: str, at: int) -> None:
    """The connection ends, since nothing of it can be trusted; the pipeline goes on."""
    link = pods.link(name)
    corrupted = link.corrupted

    def hurt() -> None:
        link.corrupt(way, at)
        pods.wait_until(lambda: link.corrupted > corrupted or not pods.is_ready())

    answers_are_exact(pods, toy_answer, hurt)
    pods.wait_until(lambda: link.corrupted > corrupted)
    pods.wait_until(pods.is_ready)
    answers_are_exact(pods, toy_answer, lambda: None)


@pytest.mark.parametrize("name", LINKS)
def test_a_connection_that_comes_twice(pods: Any, toy_answer: Answer, name: str) -> None:
    """Recorded and sent again: without the session's keys nothing of it is taken."""
    epoch = pods.status(0)["epoch"]
    answers_are_exact(pods, toy_answer, lambda: pods.link(name).replay())
    assert pods.status(0)["epoch"] == epoch


@pytest.mark.parametrize("name", DATA)
def test_frames_of_an_older_epoch_that_come_late(pods: Any, toy_answer: Answer, name: str) -> None:
    """The old connection is stuck, a new epoch dials anew, then the old one delivers."""
    link, stage = pods.link(name), int(name[-1])
    stale, epoch = pods.status(stage)["frames_stale"], pods.status(0)["epoch"]

    def hurt() -> None:
        link.hold_present()
        pods.wait_until(lambda: pods.status(0)["epoch"] > epoch and pods.is_ready())
        link.heal()
        pods.wait_until(lambda: pods.status(stage)["frames_stale"] > stale)

    answers_are_exact(pods, toy_answer, hurt)


@pytest.mark.parametrize("name", ["control-2"])
def test_a_connection_that_is_dead_and_does_not_say_so(
    pods: Any, toy_answer: Answer, name: str
) -> None:
    """The stage dials anew by itself, and takes its old name over."""
    made = pods.link(name).made

    def hurt() -> None:
        pods.link(name).hold_present()
        pods.wait_until(lambda: not pods.is_ready())
        pods.wait_until(pods.is_ready)

    answers_are_exact(pods, toy_answer, hurt)
    assert pods.link(name).made > made
