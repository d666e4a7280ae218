"""What the ring's times say: bubbles, hops, and what the stages' own steps would allow."""

from __future__ import annotations

import pytest

from lamella_contract.wire import StageTime
from lamella_worker.process.ring_times import HOP_BUCKETS_NS, RingTimes, allowed, interpolated

MS = 1_000_000


def trace(*compute_ms: float, idle_ms: float = 1.0) -> tuple[StageTime, ...]:
    return tuple(StageTime(int(ms * MS), int(idle_ms * MS)) for ms in compute_ms)


def test_idle_time_after_a_rest_is_no_bubble() -> None:
    times = RingTimes()
    times.add(trace(10, 8, idle_ms=5000), rows=0, rested=True, round_ns=0)
    times.add(trace(10, 8, idle_ms=2), rows=1, rested=False, round_ns=0)
    assert times.idle_ns == [5002 * MS, 5002 * MS]
    assert times.bubble_ns == [2 * MS, 2 * MS]
    assert times.compute_ns == [20 * MS, 16 * MS]


def test_steps_that_only_decode_are_kept_by_their_rows() -> None:
    times = RingTimes()
    for compute in (10, 12):
        times.add(trace(compute, 8), rows=4, rested=False, round_ns=0)
    times.add(trace(50, 40), rows=0, rested=False, round_ns=0)
    assert times.decode_s() == {4: (pytest.approx(0.011), pytest.approx(0.008))}


@pytest.mark.parametrize(
    ("round_ms", "bucket"),
    [(8.0, 0), (8.3, 3), (8.0 + 400, len(HOP_BUCKETS_NS)), (7.0, 0)],
    ids=["no time at all", "150 us a hop", "beyond the last", "clocks disagree"],
)
def test_a_hop_is_what_a_lone_step_took_beyond_computing(round_ms: float, bucket: int) -> None:
    times = RingTimes()
    times.add(trace(10, 8), rows=1, rested=False, round_ns=int(round_ms * MS))
    assert [count for count, n in enumerate(times.hop_counts) if n] == [bucket]


def test_steps_that_queued_and_pipelines_of_one_stage_say_nothing_of_hops() -> None:
    times = RingTimes()
    times.add(trace(10, 8), rows=1, rested=False, round_ns=0)
    assert sum(times.hop_counts) == 0
    alone = RingTimes()
    alone.add(trace(10), rows=1, rested=False, round_ns=11 * MS)
    assert sum(alone.hop_counts) == 0


@pytest.mark.parametrize(
    ("requests", "times", "want"),
    [
        (1, {1: (0.010, 0.010)}, 50.0),
        (2, {1: (0.010, 0.010), 2: (0.010, 0.010)}, 100.0),
        (2, {1: (0.010, 0.006), 2: (0.018, 0.010)}, 2 / 0.020),
        (16, {8: (0.010, 0.012), 16: (0.015, 0.018)}, 16 / 0.024),
        (4, {4: (0.020,)}, 200.0),
        (3, {}, 0.0),
        (32, {16: (0.010, 0.010)}, 32 / 0.020),
    ],
    ids=[
        "one request waits for both",
        "merging and splitting are alike when weights are all",
        "splitting pays",
        "two cohorts of eight",
        "one stage",
        "nothing is known",
        "a step of 32 was never seen",
    ],
)
def test_what_the_step_times_allow(
    requests: int, times: dict[int, tuple[float, ...]], want: float
) -> None:
    assert allowed(requests, times) == pytest.approx(want)


@pytest.mark.parametrize(
    ("requests", "want"), [(16, 16 / 0.033), (32, 32 / 0.066)], ids=["one step", "two in turn"]
)
def test_what_the_step_times_allow_where_stages_compute_in_turn(requests: int, want: float) -> None:
    times = {8: (0.010, 0.012), 16: (0.015, 0.018)}
    assert allowed(requests, times, in_turn=True) == pytest.approx(want)


@pytest.mark.parametrize(
    ("rows", "want"), [(1, 0.010), (4, 0.010), (10, 0.015), (16, 0.020), (64, 0.020)]
)
def test_times_between_those_measured(rows: int, want: float) -> None:
    assert interpolated(rows, {4: (0.010,), 16: (0.020,)}) == (pytest.approx(want),)


def test_the_document_of_status() -> None:
    times = RingTimes()
    times.add(trace(10, 10), rows=1, rested=False, round_ns=21 * MS)
    document = times.snapshot()
    assert document["decode_ms"] == {"1": [10.0, 10.0]}
    assert document["roofline"] == {"1": 50.0, "2": 100.0}
    assert (document["hops"], document["hop_ns"]) == (1, 5_500_000)
