"""When a stage that ended is started again."""

from __future__ import annotations

import pytest

from lamella_worker.process.restarts import (
    EXIT_PERMANENT,
    LONGEST_DELAY_S,
    STABLE_AFTER_S,
    Restarts,
)


def test_the_first_crash_costs_nothing_and_later_ones_back_off() -> None:
    restarts = Restarts()
    delays = [restarts.delay_s(1, 1.0) for _ in range(9)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_DELAY_S, LONGEST_DELAY_S]
    assert restarts.total == 9


def test_a_long_life_forgives() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.delay_s(-9, 1.0)
    assert restarts.delay_s(-9, STABLE_AFTER_S) == 0.0


@pytest.mark.parametrize("crashes", [0, 3])
def test_what_cannot_work_is_not_started_again(crashes: int) -> None:
    restarts = Restarts()
    for _ in range(crashes):
        restarts.delay_s(1, 1.0)
    assert restarts.delay_s(EXIT_PERMANENT, 1.0) is None
