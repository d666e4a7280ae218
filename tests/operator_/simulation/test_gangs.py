"""Pipelines that Kueue, Volcano or the coscheduling plugin place: all of one or nothing of it.

Half-placed pipelines of those models give way to nobody; a lost stage is replaced while the others
run; nothing is held for ever.
"""

from __future__ import annotations

from typing import Any

import pytest
from operator_losses import LOSSES, Lose
from operator_world import World, make_body

from lamella_contract.spec_cluster import COSCHEDULING, KUEUE, VOLCANO
from lamella_operator.actions import Delete
from lamella_operator.desired import gangs

GANGS = (KUEUE, VOLCANO, COSCHEDULING)
BY_OBJECT = (VOLCANO, COSCHEDULING)


def body(gang: str, **changes: Any) -> dict[str, Any]:
    queue = {"queueName": "team"} if gang == KUEUE else {}
    return make_body(scheduling={"gang": gang, "timeoutSeconds": 20, **queue}, **changes)


def groups(world: World) -> list[str]:
    return sorted(name for kind, name in world.objects if kind.startswith(gangs.POD_GROUP))


def serving(world: World, name: str = "m") -> list[bool]:
    return [pod.ready for pod in world.stages(name)]


@pytest.fixture(params=GANGS)
def gang(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_pipeline_is_a_group_of_its_own(gang: str) -> None:
    world = World(seed=1)
    world.apply("m", body(gang, replicas=2))
    world.settle()
    assert serving(world) == [True] * 4
    named = {
        (pod.replica, pod.manifest["metadata"][gangs.SYSTEMS[gang].part][gangs.SYSTEMS[gang].key])
        for pod in world.stages("m")
    }
    assert len(named) == 2
    assert groups(world) == (sorted(name for _, name in named) if gang in BY_OBJECT else [])


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_exactly_the_lost_stage_is_replaced(gang: str, lose: Lose, stage: int) -> None:
    world = World(seed=1)
    world.apply("m", body(gang, replicas=2))
    world.settle()
    world.now_s += 700
    world.settle()
    before = {(pod.replica, pod.stage): pod.uid for pod in world.stages("m")}
    lose(world, world.pod("m", 1, stage))
    world.settle()
    after = {(pod.replica, pod.stage): pod.uid for pod in world.stages("m")}
    assert serving(world) == [True] * 4
    assert {place for place in before if before[place] != after[place]} == {(1, stage)}


def test_a_node_that_dies_keeps_no_stage_from_coming_back(gang: str) -> None:
    world = World(seed=3, nodes=3, gpus=3)
    world.apply("m", body(gang, replicas=2))
    world.settle()
    world.nodes[world.pod("m", 0, 0).node].ready = False
    world.settle()
    assert serving(world) == [True] * 4


def test_two_models_for_one_place_wait_in_turn_and_nobody_gives_way(gang: str) -> None:
    world = World(seed=5, nodes=1, gpus=3)
    for name in ("a", "b"):
        world.apply(name, body(gang))
    yields: list[Delete] = []
    for _ in range(120):
        for model in world.models.values():
            actions = world.reconcile(model).actions
            yields += [one for one in actions if isinstance(one, Delete) and one.kind == "Pod"]
        world.tick()
    placed = [[bool(pod.node) for pod in world.stages(name)] for name in ("a", "b")]
    assert sorted(placed) == [[False, False], [True, True]]
    assert [one for one in yields if "gives way" in one.why] == []
    first = "a" if placed[0][0] else "b"
    world.scale(first, 0)
    world.settle()
    assert world.stages(first) == []
    assert serving(world, "b" if first == "a" else "a") == [True, True]


def test_a_change_makes_new_groups_and_takes_the_old_ones_away(gang: str) -> None:
    world = World(seed=7)
    world.apply("m", body(gang, replicas=2))
    world.settle()
    old = groups(world)
    world.apply("m", body(gang, replicas=2, podLabels={"team": "search"}))
    world.settle()
    assert serving(world) == [True] * 4
    assert len(groups(world)) == len(old)
    assert not set(old) & set(groups(world))


def test_without_the_gang_no_group_is_left(gang: str) -> None:
    world = World(seed=7)
    world.apply("m", body(gang, revisionHistoryLimit=0))
    world.settle()
    world.apply("m", make_body(revisionHistoryLimit=0))
    world.settle()
    assert serving(world) == [True, True]
    assert groups(world) == []


def test_what_somebody_deletes_in_a_paused_model_goes() -> None:
    world = World(seed=7)
    world.apply("m", body(KUEUE))
    world.settle()
    world.apply("m", body(KUEUE, paused=True))
    world.delete(world.pod("m", 0, 1))
    world.settle()
    assert [pod.stage for pod in world.stages("m")] == [0]
