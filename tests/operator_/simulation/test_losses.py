"""Every way to lose a stage, in a running cluster: it comes back, and nobody else notices."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from operator_losses import LOSSES, Lose, wedged
from operator_world import SETTINGS, World, make_body

from lamella_operator import reasons
from lamella_operator.actions import Wait
from lamella_operator.deciding.decide import decide
from lamella_operator.views import Exit


@pytest.fixture
def world() -> World:
    world = World(seed=1)
    world.apply("m", make_body(replicas=2))
    world.settle()
    world.now_s += 700
    world.settle()
    world.deletes.clear()
    return world


def uids(world: World) -> dict[tuple[int, int], str]:
    return {(pod.replica, pod.stage): pod.uid for pod in world.stages("m")}


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_exactly_the_lost_stage_is_replaced(world: World, lose: Lose, stage: int) -> None:
    before = uids(world)
    lose(world, world.pod("m", 1, stage))
    world.settle()
    after = uids(world)
    assert len(world.stages("m")) == 4
    assert {place for place in before if before[place] != after[place]} == {(1, stage)}
    assert all(pod.ready for pod in world.stages("m"))


def test_a_wedged_stage_is_deleted_by_force_and_replaced(world: World) -> None:
    before = uids(world)
    lost = world.pod("m", 1, 1)
    wedged(world, lost)
    world.settle()
    after = uids(world)
    assert {place for place in before if before[place] != after[place]} == {(1, 1)}
    assert world.deletes == [lost.uid]


def test_a_node_that_dies_takes_its_stages_and_no_others() -> None:
    world = World(seed=3, nodes=3, gpus=3)
    world.apply("m", make_body(replicas=2))
    world.settle()
    before = {(pod.replica, pod.stage): (pod.uid, pod.node) for pod in world.stages("m")}
    dead = world.pod("m", 0, 0).node
    world.nodes[dead].ready = False
    world.settle()
    for pod in world.stages("m"):
        uid, node = before[pod.replica, pod.stage]
        assert (pod.uid != uid) == (node == dead), pod.name
        assert pod.ready, pod.name


def test_a_node_that_is_only_cut_off_from_the_api_server_loses_nothing(world: World) -> None:
    before = uids(world)
    pod = world.pod("m", 0, 1)
    model = world.models["m"]
    observed = world.observe(model)
    world.nodes[pod.node].ready = False  # as its status says; the ring hears all its stages
    seen = replace(
        observed,
        pods=tuple(replace(one, node_ready=False, ready=False) for one in observed.pods),
    )
    actions = [one for one in decide(seen, SETTINGS).actions if not isinstance(one, Wait)]
    assert actions == []
    assert uids(world) == before


def test_one_container_exit_restarts_in_its_place(world: World) -> None:
    before = uids(world)
    pod = world.pod("m", 0, 1)
    pod.end(1, "Error", "boom", world.now_s)
    world.settle()
    assert uids(world) == before
    assert world.pod("m", 0, 1).restart_count == 1


def test_a_stage_that_always_crashes_is_given_up_with_evidence_and_resumed() -> None:
    world = World(seed=5)
    model = world.apply("m", make_body(recovery={"maxRestarts": 2}))
    world.crashing[0, 1] = '{"kind": "engine", "message": "CUDA error: illegal address"}'
    world.settle()
    made = world.created
    situation = world.reconcile(model).situation
    assert situation.degraded is not None
    assert situation.degraded.reason == reasons.RETRIES_EXHAUSTED
    assert "3 failures in a row" in situation.degraded.message
    assert "CUDA error: illegal address" in situation.degraded.message
    head = world.pod("m", 0, 0).uid
    world.now_s += 10_000
    world.settle()
    assert world.created == made
    world.crashing.clear()
    model.annotations["lamella.dev/resume"] = "1"
    world.settle()
    assert all(pod.ready for pod in world.stages("m"))
    assert world.pod("m", 0, 0).uid == head
    assert world.reconcile(model).situation.degraded is None


def test_retries_come_after_growing_pauses() -> None:
    world = World(seed=6)
    world.apply("m", make_body(recovery={"maxRestarts": 5}))
    world.failing.add((0, 1))
    seen: dict[str, float] = {}
    model = world.models["m"]
    for _ in range(400):
        world.reconcile(model)
        world.tick()
        for pod in world.stages("m"):
            if pod.stage == 1:
                seen.setdefault(pod.uid, pod.created_s)
    times = list(seen.values())
    assert len(times) == 6
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    lives = min(gaps)  # until its second exit
    assert [round(gap - lives) for gap in gaps] == [0, 10, 20, 40, 80]


def test_ten_ready_minutes_forgive_what_was_before() -> None:
    world = World(seed=7)
    model = world.apply("m", make_body(recovery={"maxRestarts": 2}))
    world.settle()
    for _ in range(6):
        world.pod("m", 0, 1).fail("UnexpectedAdmissionError", "flaky device plugin")
        world.settle()
        world.now_s += 700
        world.settle()
        assert world.reconcile(model).situation.degraded is None
        assert all(pod.ready for pod in world.stages("m"))


def test_a_bad_image_waits_for_the_user_and_heals_by_itself() -> None:
    world = World(seed=8)
    model = world.apply("m", make_body(images={"worker": "registry.test/nope:1"}))
    world.broken_images.add("registry.test/nope:1")
    world.settle()
    made = world.created
    world.now_s += 100
    situation = world.reconcile(model).situation
    assert situation.degraded is not None
    assert situation.degraded.reason == reasons.IMAGE_PULL
    assert "registry.test/nope:1" in situation.degraded.message
    world.broken_images.clear()
    world.settle()
    assert world.created == made + 0
    assert all(pod.ready for pod in world.stages("m"))


def test_a_hopeless_failure_is_not_tried_again() -> None:
    world = World(seed=9)
    model = world.apply("m", make_body())
    world.crashing[0, 1] = '{"kind": "unsupported_family", "message": "no such mixer"}'
    world.settle()
    situation = world.reconcile(model).situation
    assert situation.degraded is not None
    assert situation.degraded.reason == reasons.UNSUPPORTED_FAMILY
    assert "no such mixer" in situation.degraded.message
    assert sum(pod.stage == 1 for pod in world.stages("m")) == 1


def test_a_pod_whose_node_never_lets_it_go_holds_nothing_up() -> None:
    world = World(seed=10, nodes=3)
    world.apply("m", make_body())
    world.settle()
    pod = world.pod("m", 0, 1)
    world.nodes[pod.node].ready = False
    pod.immortal = True
    world.settle()
    assert all(one.ready for one in world.stages("m"))
    assert pod.uid not in world.pods


def test_exits_of_long_ago_are_forgotten(world: World) -> None:
    pod = world.pod("m", 0, 1)
    before = uids(world)
    pod.last_exit = Exit(1, "Error", "", world.now_s - 5000, world.now_s - 4000)
    pod.restart_count, pod.ready = 7, False
    world.settle()
    assert uids(world) == before
