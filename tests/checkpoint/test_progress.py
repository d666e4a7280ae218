"""Progress: bytes, speed and time left, by a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from lamella_checkpoint.progress import Progress, ProgressSnapshot


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_speed_and_time_left(clock: Clock) -> None:
    progress = Progress(clock=clock)
    progress.expect(1000)
    assert progress.snapshot() == ProgressSnapshot(0, 1000, 0.0, None)
    for _ in range(4):
        clock.now += 1
        progress.advance(100, fetched=True)
    assert progress.snapshot() == ProgressSnapshot(400, 1000, 100.0, 6.0, fetched_bytes=400)


def test_a_stall_shows_as_falling_speed(clock: Clock) -> None:
    progress = Progress(clock=clock, window_s=10)
    progress.expect(1000)
    for _ in range(20):
        clock.now += 1
        progress.advance(10)
    assert progress.snapshot().bytes_per_s == pytest.approx(10)
    clock.now += 5
    assert progress.snapshot().bytes_per_s == pytest.approx(5)
    clock.now += 6
    snapshot = progress.snapshot()
    assert snapshot.bytes_per_s == 0
    assert snapshot.eta_s is None


def test_finished_and_more_than_expected(clock: Clock) -> None:
    progress = Progress(clock=clock)
    progress.advance(50)
    assert progress.snapshot().bytes_total == 50
    progress.expect(60)
    clock.now += 1
    progress.advance(10)
    assert progress.snapshot().eta_s == 0


def test_a_planned_total_is_not_counted_twice(clock: Clock) -> None:
    progress = Progress(clock=clock)
    progress.plan(100)
    for part in (40, 60):
        progress.expect(part)
        assert progress.snapshot().bytes_total == 100
        progress.advance(part)
    progress.expect(5)
    assert progress.snapshot().bytes_total == 105


def test_calls_are_spaced_and_the_last_one_comes(clock: Clock) -> None:
    seen: list[int] = []
    progress = Progress(lambda now: seen.append(now.bytes_done), interval_s=1, clock=clock)
    progress.expect(100)
    for _ in range(100):
        clock.now += 0.03
        progress.advance(1)
    assert seen[0] == 1
    assert seen[-1] == 100
    assert len(seen) == 4


def test_many_threads() -> None:
    progress = Progress()
    progress.expect(8000)
    threads = [
        threading.Thread(target=lambda: [progress.advance(1) for _ in range(1000)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.snapshot().bytes_done == 8000


def test_a_window_holds_few_marks(clock: Clock) -> None:
    progress = Progress(clock=clock, window_s=10)
    for _ in range(100_000):
        clock.now += 0.001
        progress.advance(1)
    assert len(progress._marks) < 120
    assert progress.snapshot().bytes_per_s == pytest.approx(1000, rel=0.03)
