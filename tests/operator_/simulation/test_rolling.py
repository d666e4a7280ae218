"""Scaling, rolling, pausing and racing in the simulated cluster, step by step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from operator_world import SETTINGS, Node, World, make_body

from lamella_contract import names
from lamella_operator import reasons
from lamella_operator.actions import Decision, Wait
from lamella_operator.deciding.decide import decide

NEW = {"context": {"maxLength": 2048}}  # changes the model's hash
KEYS = {"keyGeneration": 2}  # the model is the same, and no old gateway can speak to it
SAME_HASH = {"podLabels": {"team": "search"}}  # changes pods, not what gateways compare


def served(world: World, name: str) -> dict[int, str]:
    """Each pipeline that serves and its revision."""
    found: dict[int, str] = {}
    for replica, pods in itertools.groupby(world.stages(name), key=lambda pod: pod.replica):
        every = list(pods)
        if all(pod.ready and pod.deleted_s is None for pod in every):
            found[replica] = every[0].labels[names.LABEL_REVISION]
    return found


def revision(world: World, name: str) -> str:
    return world.reconcile(world.models[name]).situation.revision


def gateways(world: World, name: str) -> str:
    """Whom the gateways can serve."""
    item = world.objects["Deployment", f"{name}-gateway"]
    return str(item["metadata"]["annotations"]["lamella.dev/link-hash"])


def start(seed: int = 1, **changes: object) -> World:
    world = World(seed=seed)
    world.apply("m", make_body(**changes))
    world.settle()
    return world


def steps(world: World, count: int = 90) -> list[tuple[set[int], Decision]]:
    """Which pipelines serve before each of ``count`` reconciles, and what was decided."""
    seen = []
    for _ in range(count):
        serving = set(served(world, "m"))
        seen.append((serving, world.reconcile(world.models["m"])))
        world.tick()
    return seen


def real(decision: Decision) -> list[object]:
    return [action for action in decision.actions if not isinstance(action, Wait)]


def test_a_quiet_model_needs_nothing() -> None:
    world = start(replicas=2)
    for _ in range(3):
        decision = world.reconcile(world.models["m"])
        assert decision.actions == ()
        assert decision.situation.rolling is None
        assert [one.state for one in decision.situation.replicas] == ["Ready", "Ready"]


@pytest.mark.parametrize(
    "counts", [(3, 0, 1), (0, 2), (4, 1, 4), (1, 3, 1)], ids=lambda c: "-".join(map(str, c))
)
def test_scaling(counts: tuple[int, ...]) -> None:
    world = start()
    for count in counts:
        world.scale("m", count)
        world.settle()
        assert len(served(world, "m")) == count
        kept = {pod.replica for pod in world.stages("m")}
        assert kept == set(range(count))
        rings = {name for kind, name in world.objects if kind == "Service"}
        assert rings == {"m", "m-heads"} | {f"m-ring-{replica}" for replica in kept}


def test_scaling_down_drains_stage_0_before_the_rest() -> None:
    world = start(replicas=2)
    world.scale("m", 1)
    head, tail = world.pod("m", 1, 0), world.pod("m", 1, 1)
    head.immortal = True  # it still has requests
    world.reconcile(world.models["m"])
    assert head.deleted_s == world.now_s + head.grace_s
    world.tick()
    assert real(world.reconcile(world.models["m"])) == []
    assert tail.deleted_s is None
    head.immortal = False
    world.settle()
    assert set(served(world, "m")) == {0}


@pytest.mark.parametrize("change", [NEW, KEYS, SAME_HASH], ids=["model", "keys", "labels"])
@pytest.mark.parametrize(
    ("replicas", "unavailable", "surge"),
    [(1, 1, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (3, 0, 1), (3, 2, 0), (2, 0, 2)],
)
def test_a_change_rolls_within_its_bounds(
    replicas: int, unavailable: int, surge: int, change: dict[str, object]
) -> None:
    rollout = {"maxUnavailable": unavailable, "maxSurge": surge}
    world = start(replicas=replicas, rollout=rollout)
    old = revision(world, "m")
    world.apply("m", make_body(replicas=replicas, rollout=rollout, **change))
    for serving, decision in steps(world):
        assert len(serving) >= replicas - unavailable
        assert len(decision.situation.replicas) <= replicas + surge
    new = revision(world, "m")
    assert new != old
    assert set(served(world, "m").values()) == {new}
    assert len(served(world, "m")) == replicas


@pytest.mark.parametrize("change", [NEW, KEYS], ids=["model", "keys"])
def test_gateways_change_before_the_last_old_pipeline_is_drained(change: dict[str, object]) -> None:
    world = start(replicas=1, rollout={"maxUnavailable": 1, "maxSurge": 0})
    old = gateways(world, "m")
    world.apply("m", make_body(rollout={"maxUnavailable": 1, "maxSurge": 0}, **change))
    for _ in range(50):
        pods = world.stages("m")
        begun = any(pod.deleted_s is not None for pod in pods) or not pods
        world.reconcile(world.models["m"])
        if any(pod.deleted_s is not None for pod in world.stages("m")) and not begun:
            assert gateways(world, "m") != old
            running = world.of(world.models["m"], names.ROLE_GATEWAY)
            assert [pod.ready for pod in running] == [True]
            break
        world.tick()
    else:
        pytest.fail("the old pipeline was never drained")


def test_a_broken_new_image_leaves_the_old_pipelines_serving() -> None:
    rollout = {"maxUnavailable": 1, "maxSurge": 0}
    world = start(replicas=2, rollout=rollout)
    world.broken_images.add("registry.test/nope:1")
    body = make_body(replicas=2, rollout=rollout)
    world.apply("m", {**body, "images": {"worker": "registry.test/nope:1"}})
    for serving, _ in steps(world):
        assert serving
    situation = world.reconcile(world.models["m"]).situation
    assert situation.rolling is not None
    assert situation.rolling.reason == reasons.ROLLING_OUT
    world.apply("m", body)  # back again
    world.settle()
    assert len(served(world, "m")) == 2
    assert len(set(served(world, "m").values())) == 1


def test_a_broken_revision_can_be_replaced_by_one_that_works() -> None:
    world = World(seed=2)
    world.broken_images.add("registry.test/nope:1")
    world.apply("m", make_body(replicas=2, images={"worker": "registry.test/nope:1"}))
    world.settle()
    world.apply("m", make_body(replicas=2))
    world.settle()
    assert len(served(world, "m")) == 2


def test_going_back_finds_the_stored_revision() -> None:
    world = start()
    first = revision(world, "m")
    world.apply("m", make_body(**NEW))
    world.settle()
    assert revision(world, "m") != first
    world.apply("m", make_body())
    world.settle()
    assert revision(world, "m") == first
    assert len(world.revisions) == 2


def test_going_back_at_once_disturbs_nothing() -> None:
    world = start(replicas=2)
    before = {pod.uid for pod in world.stages("m")}
    world.apply("m", make_body(replicas=2, **NEW, rollout={"maxUnavailable": 0, "maxSurge": 1}))
    world.reconcile(world.models["m"])
    world.tick()
    world.apply("m", make_body(replicas=2))
    world.settle()
    assert {pod.uid for pod in world.stages("m")} == before


def test_old_revisions_go_beyond_the_limit() -> None:
    world = start(revisionHistoryLimit=1)
    for sequences in (1, 2, 3, 4):
        body = make_body(revisionHistoryLimit=1, context={"maxSequences": sequences})
        world.apply("m", body)
        world.settle()
    assert len(world.revisions) == 2


def test_paused_changes_nothing_not_even_a_lost_stage() -> None:
    world = start(replicas=2)
    world.apply("m", make_body(replicas=1, paused=True, **NEW))
    world.pod("m", 0, 1).fail("Evicted")
    decision = world.reconcile(world.models["m"])
    assert decision.actions == ()
    assert decision.situation.paused
    world.apply("m", make_body(replicas=2))
    world.settle()
    assert len(served(world, "m")) == 2


def test_a_manifest_that_does_not_parse_freezes_what_runs() -> None:
    world = start(replicas=2)
    old = revision(world, "m")
    world.apply("m", make_body(replicas=1, pipeline={"newField": 1}))
    lost = world.pod("m", 1, 1)
    lost.fail("Evicted")
    world.objects.pop(("Service", "m"))
    world.settle()
    decision = world.reconcile(world.models["m"])
    assert decision.situation.refused is not None
    assert decision.situation.refused.reason == reasons.INVALID_SPEC
    assert "newField" in decision.situation.refused.message
    assert served(world, "m") == {0: old, 1: old}
    assert ("Service", "m") not in world.objects


def test_a_plan_that_cannot_be_keeps_what_runs() -> None:
    world = start()
    old = revision(world, "m")
    world.apply("m", make_body(pipeline={"stages": 2, "stageMemory": "1Gi"}))
    world.settle()
    situation = world.reconcile(world.models["m"]).situation
    assert situation.unplanned is not None
    assert situation.unplanned.reason == reasons.DOES_NOT_FIT
    assert "GiB" in situation.unplanned.message
    assert served(world, "m") == {0: old}
    world.pod("m", 0, 0).fail("Evicted")
    world.settle()
    assert served(world, "m") == {0: old}


def test_no_pod_exists_before_there_is_a_plan() -> None:
    world = World()
    world.apply("m", make_body(pipeline={"stages": 2, "stageMemory": "1Gi"}))
    world.settle()
    assert world.stages("m") == []
    assert world.objects == {}


def test_deleting_a_model_leaves_nothing() -> None:
    world = start()
    world.models["m"].deleting = True
    assert world.reconcile(world.models["m"]).actions == ()
    del world.models["m"]
    world.tick()
    assert not world.pods
    assert not world.objects
    assert not world.revisions


def test_edits_by_hand_are_undone() -> None:
    world = start()
    world.objects["Service", "m"]["spec"]["ports"][0]["port"] = 1
    world.objects["PodDisruptionBudget", "m-0"]["spec"]["minAvailable"] = 0
    del world.objects["NetworkPolicy", "m"]
    world.settle()
    assert world.objects["Service", "m"]["spec"]["ports"][0]["port"] == names.PORT_HTTP
    assert world.objects["PodDisruptionBudget", "m-0"]["spec"]["minAvailable"] == 1
    assert ("NetworkPolicy", "m") in world.objects


def test_a_refused_pipeline_is_made_whole_or_not_at_all() -> None:
    world = World(seed=3)
    world.quota = 1  # the inspector's
    model = world.apply("m", make_body(gateway={"replicas": 1}))
    for _ in range(60):
        world.reconcile(model)
        assert len(world.stages("m")) == 0
        world.tick()
    status = model.status["pipelines"][0]
    assert status["state"] == "Yielded"
    assert status["reason"] == reasons.QUOTA_EXCEEDED
    assert "exceeded quota" in status["message"]
    assert world.created < 10  # it does not spin
    world.quota = None
    world.settle()
    assert set(served(world, "m")) == {0}


@pytest.mark.parametrize("seed", range(6))
def test_two_models_that_race_for_the_last_gpus_end_up_served(seed: int) -> None:
    world = World(seed=seed, nodes=2, gpus=2)
    body = make_body(
        pipeline={"stages": 3, "stageMemory": "24Gi"}, scheduling={"timeoutSeconds": 60}
    )
    world.apply("a", body)
    world.apply("b", body)
    for _ in range(400):
        for model in world.models.values():
            world.reconcile(model)
        world.tick()
    first = [name for name in "ab" if served(world, name)]
    assert len(first) == 1, "exactly one has all it needs"
    world.nodes["node-9"] = Node(2)
    world.settle()
    assert served(world, "a")
    assert served(world, "b")


def test_a_half_placed_pipeline_alone_waits_for_nodes() -> None:
    world = World(seed=4, nodes=1, gpus=1)
    model = world.apply("m", make_body(scheduling={"timeoutSeconds": 60}))
    for _ in range(200):
        world.reconcile(model)
        world.tick()
    made = [pod.uid for pod in world.stages("m")]
    assert len(made) == 2
    situation = world.reconcile(model).situation
    note = situation.replicas[0].note
    assert note is not None
    assert note.reason == reasons.INSUFFICIENT_GPU
    assert "no node has 1 free nvidia.com/gpu: 1 of 2 stages are placed; 0/1 nodes" in note.message
    world.nodes["node-1"] = Node(1)
    world.settle()
    assert [pod.uid for pod in world.stages("m")] == made


def test_an_operator_that_is_upgraded_touches_no_pod() -> None:
    world = start(replicas=2)
    before = {pod.uid for pod in world.stages("m")}
    newer = replace(
        SETTINGS,
        worker_image="registry.test/worker:2",
        operator_image="registry.test/op:2",
        device_runtime_bytes=SETTINGS.device_runtime_bytes * 2,
        priority_class="high",
    )
    decision = decide(world.observe(world.models["m"]), newer)
    assert real(decision) == []
    assert {pod.uid for pod in world.stages("m")} == before


def test_a_foreign_object_with_our_labels_is_left_alone() -> None:
    world = start()
    service = world.objects["Service", "m-ring-0"]
    meta = {**service["metadata"], "name": "theirs", "ownerReferences": []}
    world.objects["Service", "theirs"] = {**service, "metadata": meta}
    world.settle()
    assert ("Service", "theirs") in world.objects


def test_a_pod_that_not_even_force_removes_holds_nothing_up() -> None:
    world = start()
    ghost = world.pod("m", 0, 1)
    ghost.held = True
    world.delete(ghost)
    for _ in range(300):
        world.reconcile(world.models["m"])
        world.tick()
    pods = world.stages("m")
    assert [(pod.replica, pod.stage) for pod in pods if pod.ready and pod.deleted_s is None] == [
        (0, 0),
        (0, 1),
    ]
    for count in (0, 1):
        world.scale("m", count)
        for _ in range(300):
            world.reconcile(world.models["m"])
            world.tick()
    serving = [pod for pod in world.stages("m") if pod.ready and pod.deleted_s is None]
    assert [(pod.replica, pod.stage) for pod in serving] == [(1, 0), (1, 1)]
