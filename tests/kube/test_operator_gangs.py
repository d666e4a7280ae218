"""Gangs and claims on a real API server: CRDs that are missing, made and there; finalizers; claims.

The CRDs are our own, of the groups that Volcano and the scheduler-plugins have: what matters is
that an object of that kind is made before the pods, owned, and no crash where there is no such
kind. No scheduler heeds them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kube_operator_lab import Lab, lab_in
from kube_processes import wait_for

from lamella_operator import reasons
from lamella_operator.desired import gangs

if TYPE_CHECKING:
    from kube_control_plane import ControlPlane

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TRIED_AGAIN_S = 60.0  # a refused group after 15 s, a refused claim after 30 s


@pytest.fixture
def lab(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Lab]:
    with lab_in(control_plane, namespace, tmp_path) as found:
        yield found


def group_crd(api_version: str) -> dict[str, Any]:
    """A PodGroup with what we write, in the schema's strict way."""
    group, _, version = api_version.partition("/")
    spec = {
        "minMember": {"type": "integer", "format": "int32"},
        "queue": {"type": "string", "default": "default"},
        "priorityClassName": {"type": "string"},
    }
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": spec}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"podgroups.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, of a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "PodGroup", "plural": "podgroups", "singular": "podgroup"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


@pytest.mark.parametrize("gang", ["Volcano", "Coscheduling"])
def test_a_gang_whose_kind_is_missing_waits_for_it(lab: Lab, gang: str) -> None:
    version = gangs.SYSTEMS[gang].api_version
    groups = f"/apis/{version}/namespaces/{lab.namespace}/podgroups"
    operator = lab.started()
    lab.make(scheduling={"gang": gang})

    def reason() -> str:
        return str(lab.model().get("status", {}).get("reason"))

    wait_for(lambda: reason() == reasons.GANG_SYSTEM_MISSING or None, "it says what is missing")
    assert version in lab.model()["status"]["message"]
    assert lab.pods() == {}
    try:
        lab.api.request("POST", CRDS, group_crd(version))
        wait_for(lambda: lab.is_ready() or None, "ready once the kind is there", TRIED_AGAIN_S)
        (group,) = lab.api.request("GET", groups)["items"]
        assert group["spec"]["minMember"] == 2
        assert group["metadata"]["ownerReferences"][0]["kind"] == "ShardedModel"
        before = lab.uids()
        lab.lose_a_pod()
        wait_for(lambda: (lab.uids() != before and len(lab.uids()) == 2) or None, "replaced")
        lab.wait_ready()
        assert lab.api.request("GET", groups)["items"] == [group]

        lab.edit(scheduling={"gang": "None"})
        wait_for(lambda: not lab.api.request("GET", groups)["items"] or None, "the group goes", 60)
        lab.wait_ready()
        assert "Traceback" not in operator.log
    finally:
        lab.api.request("DELETE", f"{CRDS}/podgroups.{version.partition('/')[0]}")


def test_what_kueue_holds_is_let_go(lab: Lab) -> None:
    lab.started()
    lab.make(scheduling={"gang": "Kueue", "queueName": "team"})
    lab.wait_ready()

    def hold() -> None:  # as Kueue's webhook does when a pod is made
        for name in lab.pods():
            held = {"metadata": {"finalizers": [gangs.KUEUE_FINALIZER]}}
            lab.api.request("PATCH", lab.path("pods", name), held)

    hold()
    before = lab.uids()
    (lost,) = [
        name for name in lab.pods() if lab.pods()[name]["metadata"]["uid"] == before["0", "1"]
    ]
    lab.api.request("DELETE", lab.path("pods", lost))
    wait_for(lambda: lost not in lab.pods() or None, "it goes")
    lab.wait_ready()
    assert lab.uids()["0", "0"] == before["0", "0"]
    hold()
    lab.delete()
    wait_for(lambda: not lab.pods() or None, "nothing of a deleted model is held", 60)


def claim(name: str, *modes: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": list(modes), "resources": {"requests": {"storage": "1Gi"}}},
    }


def test_a_claim_that_one_node_can_mount_is_refused_until_it_is_another(lab: Lab) -> None:
    lab.started()
    claims = lab.path("persistentvolumeclaims")
    lab.make(cache={"claimName": "slices"})

    def is_refused(reason: str) -> bool | None:
        status = lab.model().get("status", {})
        accepted = [one for one in status.get("conditions", []) if one["type"] == "Accepted"]
        return [(one["status"], one["reason"]) for one in accepted] == [("False", reason)] or None

    wait_for(lambda: is_refused(reasons.VOLUME_NOT_BOUND), "there is no claim")
    lab.api.request("POST", claims, claim("slices", "ReadWriteOnce"))
    wait_for(lambda: is_refused(reasons.CLAIM_NOT_SHARED), "it cannot be shared", TRIED_AGAIN_S)
    assert lab.pods() == {}
    at = f"{claims}/slices"
    lab.api.request("PATCH", at, {"metadata": {"finalizers": None}})
    lab.api.request("DELETE", at)
    wait_for(lambda: not lab.api.exists(at) or None, "the claim is gone")
    lab.api.request("POST", claims, claim("slices", "ReadWriteMany"))
    wait_for(lambda: lab.is_ready() or None, "it serves", TRIED_AGAIN_S)
