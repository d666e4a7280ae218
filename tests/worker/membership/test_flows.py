"""A lost frame with none behind it is found, and nobody who computes is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from lamella_contract.wire import Flow
from lamella_worker.membership.flows import Flows

STAGES = 3
BEAT_S = 0.25
MIB = 1 << 20

Beats = Callable[[int], Iterable[Flow]]
"""What the stages say at their n-th heartbeat."""


def missed(beats: Beats, *, for_s: float = 30.0) -> tuple[int, float] | None:
    """(stage, when) as soon as a frame is missed."""
    flows = Flows()
    for number in range(round(for_s / BEAT_S)):
        now_s = number * BEAT_S
        for stage, flow in enumerate(beats(number)):
            flows.heard(stage, (stage - 1) % STAGES, flow, now_s)
        if (stage := flows.lost(now_s)) is not None:
            return stage, now_s
    return None


def lost_on_the_way_to(stage: int, largest: int = 100) -> Beats:
    """The ninth frame of the epoch never comes to a stage."""

    def beats(number: int) -> list[Flow]:
        whole = [Flow(8, 9, largest), Flow(9, 9, largest), Flow(9, 9, largest)]
        for after in range(stage or STAGES, STAGES):
            whole[after] = Flow(8, 8, largest)
        return whole

    return beats


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_frame_lost_on_any_link_is_missed_within_two_seconds(stage: int) -> None:
    found = missed(lost_on_the_way_to(stage))
    assert found is not None
    assert found[0] == stage
    assert found[1] <= 2.0


def test_a_large_frame_has_time_to_cross_a_slow_link() -> None:
    assert missed(lost_on_the_way_to(1, largest=8 * MIB), for_s=8.0) is None
    assert missed(lost_on_the_way_to(1, largest=8 * MIB)) is not None


NOBODY: dict[str, Beats] = {
    "all-idle": lambda n: [Flow(9, 9), Flow(9, 9), Flow(9, 9)],
    "nothing-was-sent-yet": lambda n: [Flow(), Flow(), Flow()],
    "stage-0-computes-for-long": lambda n: [Flow(8, 8, 0, True), Flow(8, 8), Flow(8, 8)],
    "stage-1-computes-for-long": lambda n: [Flow(8, 9), Flow(9, 8, 0, True), Flow(8, 8)],
    "a-frame-waits-behind-a-long-step": lambda n: [Flow(8, 10), Flow(9, 8, 0, True), Flow(8, 8)],
    "the-last-computes-for-long": lambda n: [Flow(8, 9), Flow(9, 9), Flow(9, 8, 0, True)],
    "results-wait-while-stage-0-computes": lambda n: [Flow(7, 9, 0, True), Flow(9, 9), Flow(9, 9)],
    "all-are-busy-and-always-seen-between-two-steps": lambda n: [
        Flow(n, n + 3),
        Flow(n + 2, n + 2),
        Flow(n + 1, n + 1),
    ],
    "one-that-is-seen-busy-now-and-then": lambda n: [
        Flow(8, 9),
        Flow(8, 8, 0, n % 4 == 3),
        Flow(8, 8),
    ],
}


@pytest.mark.parametrize("beats", NOBODY.values(), ids=NOBODY)
def test_nobody_is_blamed_who_computes_or_waits_for_one_who_does(beats: Beats) -> None:
    assert missed(beats) is None


def test_one_late_look_is_not_a_long_wait() -> None:
    flows = Flows()
    for now_s in (0.0, 5.0, 5.1):
        flows.heard(0, 2, Flow(8, 9), now_s)
        flows.heard(1, 0, Flow(8, 8), now_s)
        assert flows.lost(now_s) is None


def test_another_epoch_counts_anew() -> None:
    flows = Flows()
    for number in range(4):
        flows.heard(0, 2, Flow(8, 9), number * 0.25)
        flows.heard(1, 0, Flow(8, 8), number * 0.25)
    flows.clear()
    for number in range(4, 20):
        flows.heard(1, 0, Flow(0, 0), number * 0.25)
        assert flows.lost(number * 0.25) is None
