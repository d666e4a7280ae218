"""Documents of the API server as views: whole, odd, and as fuzzed as JSON can be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_contract import names
from lamella_operator.reconciling import parse, stage0
from lamella_operator.reconciling.kinds import POD
from lamella_operator.reconciling.observe import owned_by
from lamella_operator.running.resync import listed
from lamella_operator.views import Exit, MemberView, PodView, RingView

NOON = 1764072000.0  # 2025-11-25T12:00:00Z


def pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "tiny-0-1-abc",
            "uid": "u",
            "creationTimestamp": "2025-11-25T12:00:00Z",
            "labels": {
                names.LABEL_ROLE: "stage",
                names.LABEL_REPLICA: "0",
                names.LABEL_STAGE: "1",
                names.LABEL_REVISION: "r1",
            },
            "annotations": {
                names.ANNOTATION_RESTARTS: "2",
                names.ANNOTATION_PREDECESSOR: "p",
                names.ANNOTATION_RESUME: "x",
            },
        },
        "spec": {"nodeName": "node-1"},
        "status": status,
    }


BASE: dict[str, Any] = {
    "name": "tiny-0-1-abc",
    "uid": "u",
    "role": "stage",
    "revision": "r1",
    "stage": 1,
    "created_s": NOON,
    "node": "node-1",
    "scheduled": True,
    "restarts": 2,
    "predecessor": "p",
    "resume": "x",
}
ENDED = {
    "exitCode": 78,
    "reason": "Error",
    "message": "{}",
    "startedAt": "2025-11-25T12:00:00Z",
    "finishedAt": "2025-11-25T12:00:01Z",
}
EXIT = Exit(78, "Error", "{}", NOON, NOON + 1)

PODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "new": ({}, {}),
    "ready": (
        {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "lastTransitionTime": "2025-11-25T12:00:00Z",
                }
            ],
            "containerStatuses": [
                {"state": {"running": {"startedAt": "2025-11-25T12:00:00Z"}}, "restartCount": 1}
            ],
        },
        {
            "phase": "Running",
            "ip": "10.0.0.1",
            "ready": True,
            "ready_since_s": NOON,
            "running": True,
            "started_s": NOON,
            "restart_count": 1,
        },
    ),
    "waiting": (
        {
            "containerStatuses": [
                {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
            ]
        },
        {"waiting_reason": "ImagePullBackOff", "waiting_message": "no such image"},
    ),
    "ended": (
        {"phase": "Failed", "containerStatuses": [{"state": {"terminated": ENDED}}]},
        {"phase": "Failed", "last_exit": EXIT},
    ),
    "restarted": (
        {
            "containerStatuses": [
                {"state": {"running": {}}, "lastState": {"terminated": ENDED}, "restartCount": 1}
            ]
        },
        {"running": True, "last_exit": EXIT, "restart_count": 1},
    ),
    "evicted": (
        {"phase": "Failed", "reason": "Evicted", "message": "low on memory"},
        {"phase": "Failed", "reason": "Evicted", "message": "low on memory"},
    ),
}


@pytest.mark.parametrize(("status", "wanted"), PODS.values(), ids=PODS.keys())
def test_pods(status: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert parse.pod(pod(**status)) == PodView(**{**BASE, **wanted})


def test_a_pod_without_a_node() -> None:
    document = pod(
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu",
            }
        ]
    )
    del document["spec"]["nodeName"]
    view = parse.pod(document, {})
    assert view is not None
    assert not view.scheduled
    assert view.node_ready
    assert view.unschedulable.startswith("0/2 nodes")


@pytest.mark.parametrize(
    ("nodes", "ready"),
    [(None, True), ({"node-1": True}, True), ({"node-1": False}, False), ({"node-2": True}, False)],
    ids=["unknown", "ready", "not ready", "gone"],
)
def test_whether_its_node_is_well(nodes: dict[str, bool] | None, ready: bool) -> None:
    view = parse.pod(pod(), nodes)
    assert view is not None
    assert view.node_ready is ready


def test_the_printed_table_of_nodes() -> None:
    table = {
        "columnDefinitions": [{"name": "Name"}, {"name": "Status"}, {"name": "Roles"}],
        "rows": [
            {"cells": ["a", "Ready", ""]},
            {"cells": ["b", "NotReady,SchedulingDisabled", ""]},
            {"cells": ["c", "Ready,SchedulingDisabled", ""]},
            {"cells": ["d"]},
        ],
    }
    assert parse.nodes(table) == {"a": True, "b": False, "c": True}
    assert parse.nodes({"columnDefinitions": "odd"}) == {}


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "tiny", "namespace": "ai", "uid": "u", "generation": 3,
                     "managedFields": [{}], "finalizers": ["x"], "labels": {"a": "b"}},
        "spec": spec,
        "status": {"ready": "0/1"},
    }  # fmt: skip


def test_a_model() -> None:
    view = parse.model(manifest(model={"uri": "hf://a/b"}))
    assert view is not None
    assert view.spec is not None
    assert (view.name, view.namespace, view.uid, view.generation) == ("tiny", "ai", "u", 3)
    assert view.status == {"ready": "0/1"}
    assert not view.deleting


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"model": {"uri": "hf://a/b"}, "later": 1}, "later"),
        ({"model": {"uri": 5}}, "uri"),
        ({}, "spec.model"),
    ],
    ids=["a field of a later version", "a wrong type", "nothing"],
)
def test_a_model_that_does_not_parse_says_where(spec: dict[str, Any], problem: str) -> None:
    view = parse.model(manifest(**spec))
    assert view is not None
    assert view.spec is None
    assert problem in view.problem


def test_what_has_no_identity_is_left_out() -> None:
    assert parse.model({}) is None
    assert parse.pod({"metadata": {"name": "a"}}) is None
    assert parse.live("Service", "v1", {"metadata": {"uid": "u"}}) is None
    assert parse.readable([None, 1, None]) == (1,)


def test_an_applied_object_says_what_it_is_and_not_who_managed_it() -> None:
    document = {"metadata": {"name": "s", "uid": "u", "managedFields": [1]}, "spec": {}}
    view = parse.live("Service", "v1", document)
    assert view is not None
    assert view.manifest == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "uid": "u"},
        "spec": {},
    }


RING = {
    "ready": False,
    "reason": "stage 2 is silent",
    "members": [
        {"stage": 1, "state": "loading", "bytes_done": 5, "bytes_total": 10, "bytes_per_s": 2},
        {"stage": 2, "state": "silent", "error": "no word for 10 s"},
    ],
    "lost": 2,
    "kv_tokens": 100,
    "live_requests": 3,
}


def test_what_a_stage_0_says() -> None:
    members = (
        MemberView(1, "loading", 5, 10, 2.0),
        MemberView(2, "silent", error="no word for 10 s"),
    )
    assert stage0.ring(RING) == RingView(False, "stage 2 is silent", 2, members, 100, 3)
    assert stage0.ring({**RING, "lost": None}) is not None
    for odd in (None, [], "x", {}, {"ready": "yes"}):
        assert stage0.ring(odd) is None


KEYS = [
    "metadata",
    "spec",
    "status",
    "name",
    "uid",
    "labels",
    "annotations",
    "conditions",
    "containerStatuses",
    "state",
    "terminated",
    "running",
    "type",
    "data",
    "revision",
    "rows",
    "cells",
    "columnDefinitions",
    "ownerReferences",
    "members",
    "ready",
    "lost",
    "creationTimestamp",
    "deletionTimestamp",
    "items",
    "model",
    "lamella.dev/stage",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(JSON)
def test_nothing_odd_raises(document: Any) -> None:
    if not isinstance(document, dict):
        document = {"metadata": document}
    identified = {**document, "metadata": {"name": "a", "uid": "u", "labels": document}}
    for one in (document, identified):
        parse.pod(one, {})
        parse.model(one)
        parse.revision(one)
        parse.live("Service", "v1", one)
        parse.nodes(one)
        stage0.ring(one)
        owned_by(one, "u")
        listed(POD, one)
