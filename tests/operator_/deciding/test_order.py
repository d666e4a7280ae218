"""In which order things are done, and that doing them twice makes them once."""

from __future__ import annotations

import pytest
from operator_world import SETTINGS, World, make_body

from lamella_operator.actions import Create, Delete, EnsureKeys, Wait
from lamella_operator.deciding.decide import decide
from lamella_operator.desired.configs import roles


def resolved() -> World:
    """A model whose profile has just been read."""
    world = World()
    model = world.apply("m", make_body())
    for _ in range(4):
        world.reconcile(model, crash_after=99)
        world.tick()
        if any(pod.over for pod in world.pods.values()):
            return world
    pytest.fail("the inspector never ended")


def test_revision_then_keys_then_pods_of_one_group() -> None:
    world = resolved()
    actions = decide(world.observe(world.models["m"]), SETTINGS).actions
    what = [
        f"create {one.manifest['kind']}" if isinstance(one, Create) else type(one).__name__
        for one in actions
    ]
    assert what[:4] == ["create ControllerRevision", "EnsureKeys", "create Pod", "create Pod"]
    assert actions[1] == EnsureKeys(roles(2))
    assert {one.group for one in actions[2:4] if isinstance(one, Create)} == {"replica-0"}
    assert isinstance(actions[-1], Wait)


def test_every_delete_names_a_uid_and_a_reason() -> None:
    world = resolved()
    world.settle()
    world.scale("m", 0)
    world.pod("m", 0, 1).fail("Evicted")
    actions = decide(world.observe(world.models["m"]), SETTINGS).actions
    deletes = [one for one in actions if isinstance(one, Delete)]
    assert deletes
    assert all(one.uid and one.why for one in deletes)


def test_a_replacement_is_named_after_what_it_replaces() -> None:
    world = resolved()
    world.settle()
    world.now_s += 100
    world.pod("m", 0, 1).fail("Evicted")
    observed = world.observe(world.models["m"])
    names = {
        one.manifest["metadata"]["name"]
        for _ in range(3)
        for one in decide(observed, SETTINGS).actions
        if isinstance(one, Create)
    }
    assert len(names) == 1


@pytest.mark.parametrize("after", range(12))
def test_a_crash_after_any_action_converges_to_the_same(after: int) -> None:
    world = resolved()
    world.reconcile(world.models["m"], crash_after=after)
    world.settle()
    assert [(pod.replica, pod.stage, pod.ready) for pod in world.stages("m")] == [
        (0, 0, True),
        (0, 1, True),
    ]
    assert world.reconcile(world.models["m"]).actions == ()
