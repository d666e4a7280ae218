"""Pods of one stage: what may differ, and what a manifest's words turn into."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_contract import names
from lamella_contract.errors import InvalidSpec
from lamella_operator.desired import expand, podparts, pods
from lamella_operator.settings import MIB

BODY = {"model": {"uri": "hf://Qwen/Qwen3"}, "pipeline": {"stages": 3}}
GPU = {"limits": {"nvidia.com/gpu": 1}}
OWN_ANNOTATIONS = (
    names.ANNOTATION_PREDECESSOR,
    names.ANNOTATION_RESTARTS,
    names.ANNOTATION_RESUME,
)


def _pod(made: Any, replica: int = 0, stage: int = 0, **more: Any) -> dict[str, Any]:
    wanted = {"revision": made.revision.hash, "predecessor": "", "restarts": 0, **more}
    template = made.revision.pods[stage]
    return dict(pods.stage_pod(template, made.model, replica=replica, stage=stage, **wanted))


def _without_own(pod: dict[str, Any]) -> dict[str, Any]:
    """What is left when all that may differ between replicas is taken away."""
    found = copy.deepcopy(pod)
    del found["metadata"]["name"], found["metadata"]["labels"][names.LABEL_REPLICA]
    for key in OWN_ANNOTATIONS:
        del found["metadata"]["annotations"][key]
    return found


@pytest.fixture(scope="module")
def made(make: Callable[..., Any]) -> Any:
    return make(BODY)


@settings(deadline=None)  # the machine's other work is no matter of this test
@given(
    replica=st.integers(0, 99999),
    restarts=st.integers(0, 1000),
    predecessor=st.sampled_from(["", "uid-a", "uid-b"]),
    stage=st.integers(0, 2),
)
def test_replicas_differ_in_name_replica_and_annotations_only(
    made: Any, replica: int, restarts: int, predecessor: str, stage: int
) -> None:
    first = _pod(made, 0, stage)
    other = _pod(made, replica, stage, restarts=restarts, predecessor=predecessor)
    assert _without_own(first) == _without_own(other)
    assert other["metadata"]["labels"][names.LABEL_REPLICA] == str(replica)
    assert other["metadata"]["annotations"][names.ANNOTATION_RESTARTS] == str(restarts)
    assert len(other["metadata"]["name"]) <= 63


def test_keys_of_another_generation_are_mounted_and_told(make: Callable[..., Any]) -> None:
    first, second = make(BODY).revision, make({**BODY, "keyGeneration": 2}).revision

    def secret(revision: Any) -> str:
        mounted = revision.pods[1]["spec"]["volumes"]
        return next(one["secret"]["secretName"] for one in mounted if one["name"] == "keys")

    assert (secret(first)[-2:], secret(second)[-2:]) == ("-1", "-2")
    assert "public-key-of-stage-0-2" in str(second.pods[1])
    assert "public-key-of-stage-0-2" in str(second.gateway)
    assert first.link_hash != second.link_hash
    assert first.hash != second.hash


def test_a_pod_changes_no_template(make: Callable[..., Any]) -> None:
    made = make(BODY)
    before = copy.deepcopy(made.revision.pods)
    _pod(made, 3, 1)["metadata"]["labels"]["x"] = "y"
    assert made.revision.pods == before


def test_names_follow_the_predecessor(make: Callable[..., Any]) -> None:
    made = make(BODY)
    same = {_pod(made)["metadata"]["name"] for _ in range(2)}
    other = {
        _pod(made, predecessor="uid-a")["metadata"]["name"],
        _pod(made, predecessor="uid-b")["metadata"]["name"],
        _pod(made, revision="another")["metadata"]["name"],
    }
    assert len(same) == 1
    assert len(same | other) == 4


def test_stage_0_drains_and_others_leave(make: Callable[..., Any]) -> None:
    made = make({**BODY, "drainSeconds": 90})
    grace = [_pod(made, 0, k)["spec"]["terminationGracePeriodSeconds"] for k in range(3)]
    assert grace == [105, 15, 15]


@pytest.mark.parametrize(
    ("replace_after_s", "least_s"), [(10, 60), (60, 60), (300, 300), (3600, 3600)]
)
def test_liveness_is_more_patient_than_the_parent_and_any_import(
    make: Callable[..., Any], replace_after_s: int, least_s: int
) -> None:
    made = make({**BODY, "recovery": {"replaceAfterSeconds": replace_after_s}})
    container = _pod(made)["spec"]["containers"][0]
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > least_s + probe["timeoutSeconds"]
    assert probe["terminationGracePeriodSeconds"] == 1
    assert "startupProbe" not in container
    assert "lifecycle" not in container


MEMORY_ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing said": (
        {},
        {"limits": {"memory": "100Mi"}, "requests": {"memory": "100Mi", "cpu": "250m"}},
    ),
    "a GPU": (
        {"limits": {"nvidia.com/gpu": 1}},
        {
            "limits": {"nvidia.com/gpu": 1, "memory": "100Mi"},
            "requests": {"memory": "100Mi", "cpu": "250m"},
        },
    ),
    "a limit": (
        {"limits": {"memory": "2Gi", "cpu": 2}},
        {"limits": {"memory": "2Gi", "cpu": 2}, "requests": {"memory": "2Gi", "cpu": 2}},
    ),
    "a request": (
        {"requests": {"memory": "2Gi"}},
        {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi", "cpu": "250m"}},
    ),
    "both": (
        {"requests": {"memory": "1Gi", "cpu": "1"}, "limits": {"memory": "2Gi"}},
        {"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi", "cpu": "1"}},
    ),
}


@pytest.mark.parametrize(("given", "want"), MEMORY_ROWS.values(), ids=MEMORY_ROWS)
def test_memory_is_asked_for_where_nobody_did(given: dict[str, Any], want: dict[str, Any]) -> None:
    assert podparts.with_memory(given, 100 * MIB, "250m") == want


TOLERATION_ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = {
    "none": ([], {}, ["node.kubernetes.io/not-ready:60", "node.kubernetes.io/unreachable:60"]),
    "a GPU": (
        [],
        GPU,
        ["nvidia.com/gpu", "node.kubernetes.io/not-ready:60", "node.kubernetes.io/unreachable:60"],
    ),
    "a GPU that the manifest tolerates": (
        [{"key": "nvidia.com/gpu", "value": "a", "effect": "NoSchedule"}],
        GPU,
        ["nvidia.com/gpu", "node.kubernetes.io/not-ready:60", "node.kubernetes.io/unreachable:60"],
    ),
    "a lost node that the manifest bears for longer": (
        [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 99}],
        {},
        ["node.kubernetes.io/unreachable:99", "node.kubernetes.io/not-ready:60"],
    ),
}


@pytest.mark.parametrize(
    ("given", "resources", "want"), TOLERATION_ROWS.values(), ids=TOLERATION_ROWS
)
def test_tolerations(
    given: list[dict[str, Any]], resources: dict[str, Any], want: list[str]
) -> None:
    found = podparts.tolerations(given, resources)
    shown = [
        f"{each['key']}:{each['tolerationSeconds']}" if "tolerationSeconds" in each else each["key"]
        for each in found
    ]
    assert shown == want


def test_a_node_path_is_refused_where_the_cluster_allows_none(make: Callable[..., Any]) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.cache\.hostPath.*this cluster allows none"):
        make({**BODY, "cache": {"hostPath": "/var/cache"}})


def test_all_pods_of_a_model_satisfy_restricted_pod_security(make: Callable[..., Any]) -> None:
    made = make({**BODY, "cache": {"claimName": "c"}})
    for spec in (_pod(made)["spec"], made.revision.gateway["spec"]["template"]["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert "runAsUser" not in spec["securityContext"]
        assert spec["automountServiceAccountToken"] is False
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert _pod(made)["spec"]["securityContext"]["fsGroup"] == 65532


@settings(deadline=None)
@given(st.text())
def test_a_literal_survives_the_expansion(text: str) -> None:
    container = {"env": [{"name": "A", "value": "a"}, {"name": "B", "value": expand.literal(text)}]}
    assert _expanded(container)["B"] == text


def _expanded(container: dict[str, Any]) -> dict[str, str]:
    """As the kubelet does it (third_party/forked/golang/expansion), by characters."""
    known: dict[str, str] = {}
    for entry in container["env"]:
        text, out, at = entry["value"], [], 0
        while at < len(text):
            after = text[at + 1 : at + 2]
            if text[at] != "$" or not after:
                out.append(text[at])
                at += 1
            elif after == "$":
                out.append("$")
                at += 2
            elif after == "(" and (end := text.find(")", at)) > 0:
                name = text[at + 2 : end]
                out.append(known.get(name, f"$({name})"))
                at = end + 1
            else:
                out.append(text[at : at + 2])
                at += 2
        known[entry["name"]] = "".join(out)
    return known
