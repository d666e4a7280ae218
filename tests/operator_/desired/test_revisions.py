"""What makes a new revision, and what does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from lamella_contract.spec import ShardedModelSpec
from lamella_operator.desired import revisions
from lamella_operator.revision import Revision
from lamella_operator.settings import GIB, Settings

BODY: dict[str, Any] = {
    "model": {"uri": "hf://Qwen/Qwen3"},
    "pipeline": {"stages": 4},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
}
SAME: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 5},
    "paused": {"paused": True},
    "rollout": {"rollout": {"maxSurge": 1}},
    "maxRestarts": {"recovery": {"maxRestarts": 1}},
    "timeout": {"scheduling": {"timeoutSeconds": 30}},
    "gateway.replicas": {"gateway": {"replicas": 7}},
    "history": {"revisionHistoryLimit": 1},
    "a default written out": {"drainSeconds": 30, "cache": {"emptyDir": {}}, "tolerations": []},
}
OTHER: dict[str, dict[str, Any]] = {
    "model": {"model": {"uri": "hf://Qwen/Qwen4"}},
    "served name": {"model": {"uri": "hf://Qwen/Qwen3", "servedName": "x"}},
    "stages": {"pipeline": {"stages": 2}},
    "context": {"context": {"maxLength": 2048}},
    "resources": {"resources": {"limits": {"nvidia.com/gpu": 2}}},
    "node selector": {"nodeSelector": {"a": "b"}},
    "cache": {"cache": {"claimName": "c"}},
    "image": {"images": {"worker": "other:2"}},
    "drain": {"drainSeconds": 31},
    "replace after": {"recovery": {"replaceAfterSeconds": 11}},
    "topology": {"scheduling": {"topologyKey": "rack"}},
    "deadline": {"gateway": {"requestDeadlineSeconds": 5}},
    "disruption": {"disruption": "Never"},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_changes_no_pod_makes_no_revision(
    make: Callable[..., Any], change: dict[str, Any]
) -> None:
    assert make({**BODY, **change}).revision.hash == make(BODY).revision.hash


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_changes_a_pod_makes_a_revision(
    make: Callable[..., Any], change: dict[str, Any]
) -> None:
    first, second = make(BODY).revision, make({**BODY, **change}).revision
    assert first.hash != second.hash
    assert (first.pods, first.gateway) != (second.pods, second.gateway)


def test_another_commit_makes_a_revision(make: Callable[..., Any]) -> None:
    first = make(BODY)
    moved = dataclasses.replace(first.profile, commit="f" * 40)
    assert make(BODY, profile=moved).revision.hash != first.revision.hash


def test_another_operator_makes_none(make: Callable[..., Any]) -> None:
    other = Settings(
        worker_image="worker:2",
        operator_image="operator:2",
        device_runtime_bytes=3 * GIB,
        priority_class="x",
    )
    assert make(BODY, settings=other).revision.hash == make(BODY).revision.hash


def test_a_field_that_only_a_later_operator_knows_changes_no_hash(make: Callable[..., Any]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Later(ShardedModelSpec):
        added: str = "a default"

    spec = make(BODY).model.spec
    later = Later(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)})
    assert revisions.revision_parts(later) == revisions.revision_parts(spec)


def test_the_object_gives_the_revision_back(make: Callable[..., Any]) -> None:
    made = make(BODY)
    stored = revisions.revision_object(made.model, made.revision, 4)
    read = json.loads(json.dumps(stored))
    assert read["revision"] == 4
    assert Revision.from_document(read["data"]) == made.revision


@pytest.mark.parametrize("stages", [1, 4, 64])
def test_a_revision_is_small_enough_to_be_stored(make: Callable[..., Any], stages: int) -> None:
    profile = make(BODY).profile
    layers = profile.layers * 16
    large = dataclasses.replace(profile, layers=layers, allowed_cuts=tuple(range(1, len(layers))))
    made = make({**BODY, "pipeline": {"stages": stages}}, profile=large)
    stored = json.dumps(revisions.revision_object(made.model, made.revision, 1))
    assert len(stored) < 1_000_000  # the API server takes 1.5 MB


def test_parts_are_plain_and_sparse(make: Callable[..., Any]) -> None:
    assert revisions.revision_parts(make(BODY).model.spec) == {
        "model": {"uri": "hf://Qwen/Qwen3", "revision": None, "served_name": "qwen3"},
        "pipeline": {"stages": 4},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
