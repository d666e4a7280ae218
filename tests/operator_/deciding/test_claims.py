"""Claims that a model names: what is refused before a pod is made, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_world import SETTINGS, World, make_body

from lamella_operator import reasons
from lamella_operator.actions import Create, Note, Wait
from lamella_operator.deciding import claims
from lamella_operator.deciding.decide import decide
from lamella_operator.views import ClaimView, Observed

RWX, RWO, RWOP, ROX = "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany"
CACHE: dict[str, Any] = {"cache": {"claimName": "slices"}}
MODEL: dict[str, Any] = {"model": {"uri": "pvc://models/qwen"}}
HERE = {"nodeSelector": {"kubernetes.io/hostname": "gpu-1"}}
APART = {
    "pipeline": {
        "stageSpecs": [
            {"memory": "24Gi", "nodeSelector": {"kubernetes.io/hostname": name}}
            for name in ("gpu-1", "gpu-2")
        ]
    }
}
ONE = {"pipeline": {"stages": 1, "stageMemory": "24Gi"}}
TWO_MODES = (RWO, ROX)


def seen(body: dict[str, Any], *modes: str, exists: bool = True, **more: Any) -> Observed:
    world = World(seed=1)
    model = world.apply("m", make_body(**body))
    name = "models" if "model" in body else "slices"
    return replace(world.observe(model), claims=(ClaimView(name, exists, modes),), **more)


@pytest.mark.parametrize(
    ("body", "modes", "stages", "words"),
    [
        (CACHE, (RWX,), 4, ""),
        (CACHE, (RWO, RWX), 4, ""),
        (CACHE, (RWO,), 2, "slices is ReadWriteOnce, so only one node can mount it, and 2 stages"),
        (CACHE, (RWOP,), 2, "slices is ReadWriteOncePod, so only one pod can mount it"),
        (CACHE, (ROX,), 2, "slices is ReadOnlyMany and a cache is written"),
        (CACHE, TWO_MODES, 2, "slices is ReadWriteOnce and ReadOnlyMany, so only one node"),
        (CACHE | HERE, (RWO,), 2, ""),
        (CACHE | HERE, (RWOP,), 2, "only one pod can mount it"),
        (CACHE | APART, (RWO,), 2, "only one node can mount it"),
        (CACHE | ONE, (RWO,), 1, ""),
        (CACHE | ONE, (RWOP,), 1, ""),
        (CACHE | ONE | {"replicas": 2}, (RWO,), 1, "and 2 stages may lie on several nodes"),
        (CACHE | ONE | {"rollout": {"maxSurge": 1}}, (RWO,), 1, "and 2 stages may"),
        (CACHE | {"replicas": 0}, (RWO,), 2, ""),
        (MODEL, (ROX,), 2, ""),
        (MODEL, (RWX,), 2, ""),
        (MODEL, (RWO,), 2, "models is ReadWriteOnce, and 3 stages and gateways may read it"),
        (MODEL | HERE, (RWO,), 2, ""),
        (MODEL | HERE, (RWOP,), 2, "models is ReadWriteOncePod"),
    ],
)
def test_who_may_mount_it(
    body: dict[str, Any], modes: tuple[str, ...], stages: int, words: str
) -> None:
    note = claims.refused(seen(body, *modes), stages)
    if not words:
        assert note is None
        return
    assert note is not None
    assert note.reason == reasons.CLAIM_NOT_SHARED
    assert words in note.message
    assert "ReadWriteMany claim" in note.message


@pytest.mark.parametrize("body", [CACHE, MODEL], ids=["cache", "model"])
def test_a_cluster_of_one_node_needs_no_more(body: dict[str, Any]) -> None:
    assert claims.refused(seen(body, RWO, one_node=True), 2) is None


@pytest.mark.parametrize("body", [CACHE, MODEL], ids=["cache", "model"])
def test_a_claim_that_is_not_there(body: dict[str, Any]) -> None:
    name = "models" if "model" in body else "slices"
    assert claims.refused(seen(body, exists=False), 2) == Note(
        reasons.VOLUME_NOT_BOUND, f"there is no PersistentVolumeClaim {name} in ai: make it"
    )


def test_a_claim_that_may_not_be_read_refuses_nothing() -> None:
    assert claims.refused(replace(seen(CACHE), claims=()), 4) is None


def test_nothing_is_made_until_the_claim_is_another_one() -> None:
    world = World(seed=1)
    model = world.apply("m", make_body(**CACHE))
    world.settle()
    before = {pod.uid for pod in world.stages("m")}
    world.apply("m", make_body(**CACHE, podLabels={"a": "b"}))
    observed = replace(world.observe(model), claims=(ClaimView("slices", True, (RWO,)),))
    decision = decide(observed, SETTINGS)
    assert decision.actions == (Wait(claims.AGAIN_S),)
    assert decision.situation.refused is not None
    assert decision.situation.plan is not None
    world.pod("m", 0, 1).fail("")
    observed = replace(world.observe(model), claims=observed.claims)
    made = [one for one in decide(observed, SETTINGS).actions if isinstance(one, Create)]
    assert [one.manifest["kind"] for one in made] == ["Pod"]  # what runs is repaired as it was
    world.settle()  # whose claim is well
    after = {pod.uid for pod in world.stages("m")}
    assert len(after) == 2
    assert not after & before


def test_a_model_on_a_missing_claim_is_not_even_inspected() -> None:
    decision = decide(seen(MODEL, exists=False), SETTINGS)
    assert decision.actions == (Wait(claims.AGAIN_S),)
    assert decision.situation.refused is not None
