"""From a manifest to a profile, through inspector pods that may fail."""

from __future__ import annotations

from typing import Any

import pytest
from operator_world import World, make_body, make_profile

from lamella_contract.errors import (
    AuthRequired,
    CorruptModel,
    GatedModel,
    HubUnreachable,
    LamellaError,
    ModelNotFound,
    RateLimited,
    UnsupportedFamily,
)
from lamella_contract.names import ROLE_INSPECTOR
from lamella_operator import reasons

FAILURES = {  # error, reason, whether another try is made
    "no such model": (ModelNotFound("404"), reasons.MODEL_NOT_FOUND, False),
    "no token": (AuthRequired("401"), reasons.AUTH_REQUIRED, False),
    "gated": (GatedModel("403"), reasons.GATED_MODEL, False),
    "unknown family": (UnsupportedFamily("rwkv"), reasons.UNSUPPORTED_FAMILY, False),
    "slow down": (RateLimited("429"), reasons.RATE_LIMITED, True),
    "hub away": (HubUnreachable("no route"), reasons.HUB_UNREACHABLE, True),
    "corrupt": (CorruptModel("cut off"), reasons.CORRUPT_MODEL, True),
    "something else": (LamellaError("what?"), reasons.INSPECTION_FAILED, True),
}


def tries(world: World, seconds: int) -> int:
    """How many inspector pods are made within that time."""
    model, names = world.models["m"], set()
    for _ in range(seconds):
        world.reconcile(model)
        names |= {pod.name for pod in world.of(model, ROLE_INSPECTOR)}
        world.tick()
    return len(names)


@pytest.mark.parametrize(("error", "reason", "again"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_told_and_tried_again_where_that_may_help(
    error: LamellaError, reason: str, again: bool
) -> None:
    world = World()
    model = world.apply("m", make_body())
    world.profile = error
    assert tries(world, 300) == (5 if again else 1)
    situation = world.reconcile(model).situation
    assert situation.unresolved is not None
    assert situation.unresolved.reason == reason
    assert str(error) in situation.unresolved.message
    assert situation.degraded == situation.unresolved
    assert world.stages("m") == []
    assert len(world.of(model, ROLE_INSPECTOR)) == 1, "the evidence stays"
    world.profile = make_profile()
    if not again:
        assert tries(world, 700) == 1
        model.annotations["lamella.dev/resume"] = "now"
    world.settle()
    assert world.reconcile(model).situation.replicas[0].state == "Ready"
    assert world.of(model, ROLE_INSPECTOR) == []


def test_a_hub_that_is_away_for_long_is_asked_every_ten_minutes() -> None:
    world = World()
    world.apply("m", make_body())
    world.profile = HubUnreachable("no route")
    assert tries(world, 200) == 5
    assert tries(world, 1300) == 3  # the fifth is still there


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"uri": "hf://Qwen/Qwen3", "revision": "v2"}},
        {"pipeline": {"quantization": "int8", "device": "cpu"}},
        {"images": {"gateway": "registry.test/mended:2"}},  # it may never have started
        {"nodeSelector": {"disk": "fast"}},
    ],
    ids=["model", "quantization", "image", "nodes"],
)
def test_a_changed_manifest_is_resolved_anew(change: dict[str, Any]) -> None:
    world = World()
    model = world.apply("m", make_body())
    world.profile = ModelNotFound("404")
    tries(world, 30)
    world.profile = make_profile()
    world.apply("m", make_body(**change))
    world.settle()
    assert world.reconcile(model).situation.replicas[0].state == "Ready"


def test_a_profile_that_somebody_edited_is_read_again() -> None:
    world = World()
    model = world.apply("m", make_body())
    world.settle()
    pods = {pod.uid for pod in world.stages("m")}
    model.status["profile"]["data"] = model.status["profile"]["data"][:-9]
    world.settle()
    assert world.reconcile(model).situation.profile == make_profile()
    assert {pod.uid for pod in world.stages("m")} == pods


@pytest.mark.parametrize("reason", ["Evicted", "DeadlineExceeded", "UnexpectedAdmissionError"])
def test_an_inspector_that_could_not_speak_is_replaced(reason: str) -> None:
    world = World()
    model = world.apply("m", make_body())
    world.reconcile(model)
    [pod] = world.of(model, ROLE_INSPECTOR)
    pod.fail(reason)
    world.settle()
    assert world.reconcile(model).situation.replicas[0].state == "Ready"


def test_tries_are_counted_though_the_status_was_never_written() -> None:
    world = World()
    model = world.apply("m", make_body())
    world.profile = HubUnreachable("no route")
    for _ in range(400):
        world.reconcile(model)
        model.status = {}
        world.tick()
    situation = world.reconcile(model).situation
    assert situation.inspect_attempts == 5


def test_going_back_needs_no_hub() -> None:
    world = World()
    model = world.apply("m", make_body())
    world.settle()
    first = world.reconcile(model).situation.revision
    world.apply("m", make_body(model={"uri": "hf://Qwen/Other"}))
    world.settle()
    assert world.reconcile(model).situation.revision != first
    world.profile = HubUnreachable("no route")
    world.apply("m", make_body())
    for _ in range(100):
        situation = world.reconcile(model).situation
        world.tick()
    assert (situation.revision, situation.unresolved, situation.degraded) == (first, None, None)
    assert [one.state for one in situation.replicas] == ["Ready"]
    world.profile = make_profile()
    world.settle()
    assert world.reconcile(model).situation.profile == make_profile()
    assert world.of(model, ROLE_INSPECTOR) == []
