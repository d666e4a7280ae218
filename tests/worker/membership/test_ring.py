"""Membership: from nothing to serving, and back after every kind of loss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella_worker.membership.ring import Action, Connect, Pause, Phase, Probe, Ring, Serve

STAGES = 3


def quiet(ring: Ring, now_s: float) -> list[Action]:
    return ring.tick(now_s, oldest_step_age_s=0.0, predicted_step_s=0.0)


def serving(now_s: float = 0.0) -> Ring:
    """A ring of three that serves under epoch 1."""
    ring = Ring(STAGES, suspect_after_s=1.0)
    for stage in range(STAGES):
        assert ring.join(stage, f"p{stage}", f"addr{stage}", now_s) == []
    for stage in range(STAGES - 1):
        assert ring.heard(stage, f"p{stage}", True, now_s) == []
    assert ring.heard(2, "p2", True, now_s) == [Connect(1, ("addr1", "addr2", "addr0"))]
    for stage in range(STAGES - 1):
        assert ring.acknowledged(stage, 1, now_s) == []
    assert ring.acknowledged(2, 1, now_s) == [Probe(1)]
    assert not ring.ready
    assert ring.probed(1, now_s) == [Serve(1)]
    return ring


def everyone_speaks(ring: Ring, now_s: float, *, but: int = -1) -> list[Action]:
    actions: list[Action] = []
    for stage, member in ring.members.items():
        if stage != but:
            actions += ring.heard(stage, member.process, member.loaded, now_s)
    return actions


def test_the_order_of_phases_is_joined_connected_probed_serving() -> None:
    ring = serving()
    assert ring.ready
    assert ring.phase is Phase.SERVING


def test_a_single_stage_dials_itself() -> None:
    ring = Ring(1, suspect_after_s=1.0)
    ring.join(0, "p0", "self", 0.0)
    assert ring.heard(0, "p0", True, 0.0) == [Connect(1, ("self",))]


def test_a_stage_that_is_loading_keeps_the_ring_forming_and_the_reason_names_it() -> None:
    ring = Ring(2, suspect_after_s=1.0)
    ring.join(0, "p0", "addr0", 0.0)
    ring.heard(0, "p0", True, 0.0)
    assert ring.reason == "stage 1 has not joined"
    ring.join(1, "p1", "addr1", 0.1)
    assert ring.heard(1, "p1", False, 0.2) == []
    assert ring.reason == "stage 1 is loading"


def test_silence_pauses_and_the_same_process_coming_back_raises_the_epoch() -> None:
    ring = serving()
    everyone_speaks(ring, 1.0, but=1)
    assert quiet(ring, 1.05) == [Pause("stage 1 has fallen silent")]
    assert not ring.ready
    assert everyone_speaks(ring, 1.5, but=1) == []
    assert ring.heard(1, "p1", True, 3.0) == []  # the others have been silent for 1.5 s by now
    actions = everyone_speaks(ring, 3.0)
    assert actions == [Connect(2, ("addr1", "addr2", "addr0"))]


def test_a_new_process_in_a_stages_place_is_connected_only_when_it_has_loaded() -> None:
    ring = serving()
    pause = ring.join(1, "p1b", "addr1b", 0.5)
    assert pause == [Pause("stage 1 was replaced and is loading")]
    assert ring.heard(1, "p1b", False, 0.6) == []
    assert ring.heard(1, "p1", True, 0.7) == []  # the process of before is not believed
    assert ring.heard(1, "p1b", True, 0.8) == [Connect(2, ("addr1b", "addr2", "addr0"))]


@pytest.mark.parametrize(
    ("age_s", "predicted_s", "overdue"),
    [
        pytest.param(0.9, 0.01, False, id="below-the-floor"),
        pytest.param(1.1, 0.01, True, id="above-the-floor"),
        pytest.param(1.1, 0.5, False, id="long-steps-have-longer"),
        pytest.param(2.1, 0.5, True, id="four-times-the-prediction"),
    ],
)
def test_an_overdue_step_raises_the_epoch(age_s: float, predicted_s: float, overdue: bool) -> None:
    ring = serving()
    actions = ring.tick(0.5, oldest_step_age_s=age_s, predicted_step_s=predicted_s)
    assert (ring.phase is Phase.CONNECTING) == overdue
    assert bool(actions) == overdue


def test_a_broken_link_reconnects_at_once_and_twice_is_once() -> None:
    ring = serving()
    assert ring.broken("a gap", 0.1) == [Pause("a gap"), Connect(2, ("addr1", "addr2", "addr0"))]
    assert ring.broken("a gap", 0.1) == []


def test_a_probe_that_never_returns_is_tried_again_under_a_new_epoch() -> None:
    ring = serving()
    ring.broken("a gap", 0.1)
    for stage in range(STAGES):
        ring.acknowledged(stage, 2, 0.2)
    everyone_speaks(ring, 5.5)
    assert quiet(ring, 5.6) == [Connect(3, ("addr1", "addr2", "addr0"))]


def test_answers_of_an_older_epoch_count_for_nothing() -> None:
    ring = serving()
    ring.broken("a gap", 0.1)
    for stage in range(STAGES):
        assert ring.acknowledged(stage, 1, 0.2) == []
    assert ring.probed(1, 0.2) == []
    assert ring.phase is Phase.CONNECTING


def test_a_stage_number_outside_the_ring_is_ignored() -> None:
    ring = Ring(2, suspect_after_s=1.0)
    assert ring.join(2, "p", "addr", 0.0) == []
    assert ring.members == {}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "heard", "ack", "probed", "broken", "tick"]),
        st.integers(0, STAGES - 1),
        st.sampled_from(["a", "b"]),
        st.booleans(),
        st.floats(0.0, 2.0),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_happens_the_epoch_only_rises_and_a_calm_ring_gets_to_serve(
    events: list[tuple[str, int, str, bool, float]],
) -> None:
    ring = Ring(STAGES, suspect_after_s=1.0)
    now_s, last_epoch, served = 0.0, 0, 0
    for kind, stage, process, loaded, wait_s in events:
        now_s += wait_s
        actions: list[Action] = []
        if kind == "join":
            actions = ring.join(stage, process, f"{process}{stage}", now_s)
        elif kind == "heard":
            actions = ring.heard(stage, process, loaded, now_s)
        elif kind == "ack":
            actions = ring.acknowledged(stage, ring.epoch, now_s)
        elif kind == "probed":
            actions = ring.probed(ring.epoch, now_s)
        elif kind == "broken":
            actions = ring.broken("a gap", now_s)
        else:
            actions = ring.tick(now_s, oldest_step_age_s=wait_s, predicted_step_s=0.1)
        for action in actions:
            if isinstance(action, Connect):
                assert action.epoch > last_epoch
                last_epoch = action.epoch
            if isinstance(action, Serve):
                assert action.epoch > served
                served = action.epoch
        assert ring.ready == (ring.phase is Phase.SERVING)
    assert calm(ring, now_s)


def calm(ring: Ring, now_s: float) -> bool:
    """Everyone joins, loads, speaks and answers: does the ring serve within a few rounds?"""
    for stage in range(STAGES):
        if stage not in ring.members:
            ring.join(stage, "z", f"z{stage}", now_s)
    for round_ in range(40):
        now_s += 0.25
        for stage, member in list(ring.members.items()):
            ring.heard(stage, member.process, True, now_s)
        quiet(ring, now_s)
        for stage in range(STAGES):
            ring.acknowledged(stage, ring.epoch, now_s)
        ring.probed(ring.epoch, now_s)
        if ring.ready and round_ > 2:
            return True
    return False
