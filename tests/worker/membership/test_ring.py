"""Membership: from nothing to serving, and back after every kind of loss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella_contract.wire import Flow
from lamella_worker.membership.ring import Action, Connect, Pause, Phase, Probe, Refuse, Ring, Serve

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


def test_a_frame_that_an_idle_stage_never_took_raises_the_epoch() -> None:
    ring = serving()
    now_s, actions = 0.0, []
    while not actions and now_s < 10.0:
        now_s += 0.25
        for stage, taken, sent in ((0, 7, 8), (1, 8, 8), (2, 7, 7)):
            flow = Flow(taken, sent)
            ring.heard(stage, f"p{stage}", True, now_s, flow=flow)
        actions = ring.tick(now_s, oldest_step_age_s=now_s, predicted_step_s=15.0)
    reason = "a frame to stage 2 was lost"
    assert actions == [Pause(reason), Connect(2, ("addr1", "addr2", "addr0"))]
    assert now_s <= 2.0


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


def joined(ring: Ring, *processes: str) -> list[list[Action]]:
    """What stage 1's processes are told when they join one after another."""
    return [ring.join(1, process, f"addr-{process}", 0.5) for process in processes]


NEWER = "stage 1 has a newer process"
PAUSE = [Pause("stage 1 was replaced and is loading")]


@pytest.mark.parametrize(
    ("processes", "told"),
    [
        pytest.param(["a.1", "a.2"], [[], PAUSE], id="the-same-pod-starts-another"),
        pytest.param(
            ["a.1", "a.2", "a.1"],
            [[], PAUSE, [Refuse(1, "a.1", NEWER)]],
            id="what-the-dead-one-had-sent-comes-late",
        ),
        pytest.param(
            ["a.1", "b.1", "a.1", "b.1"],
            [[], PAUSE, [Refuse(1, "a.1", NEWER)], []],
            id="a-stopped-pod-is-back",
        ),
        pytest.param(
            ["a.1", "b.1", "a.2"],
            [[], PAUSE, [Refuse(1, "a.2", NEWER)]],
            id="its-parent-forks-another-child",
        ),
        pytest.param(
            ["a.1", "b.1", "c.1", "b.2", "a.3", "c.2"],
            [[], PAUSE, PAUSE, [Refuse(1, "b.2", NEWER)], [Refuse(1, "a.3", NEWER)], PAUSE],
            id="all-pods-of-before",
        ),
    ],
)
def test_a_replaced_process_and_all_of_a_replaced_pod_are_refused(
    processes: list[str], told: list[list[Action]]
) -> None:
    ring = Ring(STAGES, suspect_after_s=1.0)
    assert joined(ring, *processes) == told


def test_other_stages_of_a_refused_pods_name_are_not_meant() -> None:
    ring = Ring(STAGES, suspect_after_s=1.0)
    joined(ring, "a.1", "b.1")
    assert ring.join(2, "a.7", "addr2", 0.6) == []


@pytest.mark.parametrize(
    ("speakers", "wanted"),
    [
        pytest.param({0: "ready", 1: "ready", 2: "ready"}, None, id="all-speak"),
        pytest.param({0: "ready", 2: "ready"}, 1, id="one-is-silent"),
        pytest.param({0: "ready"}, 1, id="the-first-of-two"),
        pytest.param({0: "ready", 1: "loading", 2: "ready"}, None, id="loading-takes-its-time"),
        pytest.param({0: "ready", 1: "ready", 2: "failed"}, 2, id="one-says-it-failed"),
        pytest.param({1: "ready", 2: "ready"}, None, id="stage-0-never-blames-itself"),
    ],
)
def test_who_is_lost(speakers: dict[int, str], wanted: int | None) -> None:
    ring = serving()
    now_s = 0.0
    while now_s < 12.0:
        now_s += 0.25
        for stage, state in speakers.items():
            loaded, failed = state == "ready", state == "failed"
            ring.heard(stage, f"p{stage}", loaded, now_s, failed=failed)
        quiet(ring, now_s)
    assert ring.lost(now_s, 10.0) == wanted
    assert ring.lost(5.0, 10.0) == (wanted if "failed" in speakers.values() else None)


def test_a_stage_that_has_not_joined_is_not_lost() -> None:
    ring = Ring(STAGES, suspect_after_s=1.0)
    ring.join(0, "p0", "addr0", 0.0)
    for tick in range(100):
        quiet(ring, tick * 0.25)
    assert ring.lost(25.0, 10.0) is None


def test_a_new_process_ends_the_loss() -> None:
    ring = serving()
    ring.heard(1, "p1", False, 0.5, failed=True)
    assert ring.lost(0.6, 10.0) == 1
    assert ring.reason == "stage 1 has failed"
    ring.join(1, "q1", "addr", 0.7)
    assert ring.lost(0.8, 10.0) is None


def test_a_ring_that_was_stopped_itself_blames_nobody() -> None:
    ring = serving()
    quiet(ring, 0.25)
    quiet(ring, 60.0)  # the first look after a minute
    assert ring.lost(60.0, 10.0) is None
    assert ring.lost(69.0, 10.0) is None
    for tick in range(1, 50):
        quiet(ring, 60.0 + tick * 0.25)
    assert ring.lost(72.25, 10.0) == 1


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
