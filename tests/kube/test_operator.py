"""The operator on a real API server: a model's life, with nodes and processes played by a twin."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kube_fake_kubelet import finished
from kube_operator_lab import Lab, lab_in
from kube_processes import wait_for

from lamella_contract import names
from lamella_operator import reasons

if TYPE_CHECKING:
    from kube_control_plane import ControlPlane


@pytest.fixture
def lab(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Lab]:
    with lab_in(control_plane, namespace, tmp_path) as found:
        yield found


def test_a_whole_life(lab: Lab) -> None:
    operator = lab.started()
    lab.make()
    lab.wait_ready()
    first = lab.uids()
    assert sorted(first) == [("0", "0"), ("0", "1")]
    there = lab.everything()
    assert len(there["secrets"]) == 3
    assert len(there["services"]) == 3
    assert len(there["controllerrevisions"]) == 1
    assert lab.model()["status"]["url"].startswith(f"http://tiny.{lab.namespace}.svc.")

    lab.edit(replicas=2)
    lab.wait_ready(ready="2/2")
    assert lab.uids().items() >= first.items()

    lab.edit(replicas=0)
    wait_for(lambda: not lab.pods() or None, "no pods at 0 replicas")
    lab.edit(replicas=1)
    lab.wait_ready()

    lab.delete()
    wait_for(lambda: not any(lab.everything().values()) or None, "nothing is left", 60)
    assert "Traceback" not in operator.log
    operator.stop()
    lease = lab.api.request(
        "GET",
        f"/apis/coordination.k8s.io/v1/namespaces/{lab.namespace}/leases/lamella-operator",
    )
    assert not lease["spec"].get("holderIdentity")


def test_a_stage_that_is_deleted_or_fails_is_replaced_and_the_other_is_not_touched(
    lab: Lab,
) -> None:
    lab.started()
    lab.make()
    lab.wait_ready()
    before = lab.uids()

    (lost,) = [name for name, pod in lab.pods().items() if _stage(pod) == "1"]
    lab.api.request("DELETE", lab.path("pods", lost))
    wait_for(lambda: lab.uids().get(("0", "1")) not in (None, before["0", "1"]) or None, "1")
    assert lab.uids()["0", "0"] == before["0", "0"]
    lab.wait_ready()

    before = lab.uids()
    (failed,) = [name for name, pod in lab.pods().items() if _stage(pod) == "1"]
    lab.kubelet.say(lab.path("pods", failed), finished("out of luck", 1))
    wait_for(lambda: lab.uids().get(("0", "1")) not in (None, before["0", "1"]) or None, "2")
    wait_for(lambda: failed not in lab.pods() or None, "the failed one is removed")
    lab.wait_ready()
    assert lab.uids()["0", "0"] == before["0", "0"]
    (pod,) = [pod for pod in lab.pods().values() if _stage(pod) == "1"]
    assert pod["metadata"]["annotations"][names.ANNOTATION_RESTARTS] == "1"


def test_what_others_edit_is_undone_except_in_pods(lab: Lab) -> None:
    lab.started()
    lab.make()
    lab.wait_ready()
    before = lab.uids()
    service = lab.path("services", "tiny")
    lab.api.apply(
        service,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "tiny"},
            "spec": {"selector": {names.LABEL_ROLE: "nobody"}},
        },
        manager="somebody",
    )
    lab.api.request("PATCH", service, {"metadata": {"labels": {"theirs": "stays"}}})

    def undone() -> bool | None:
        found = lab.api.request("GET", service)
        return found["spec"]["selector"][names.LABEL_ROLE] == "gateway" or None

    wait_for(undone, "the selector is ours again")
    assert lab.api.request("GET", service)["metadata"]["labels"]["theirs"] == "stays"
    lab.api.request("DELETE", service)
    wait_for(lambda: lab.api.exists(service) or None, "a deleted Service is made again")

    # a webhook that rewrites images to a mirror must not restart GPUs
    for name in lab.pods():
        spec = lab.api.request("GET", lab.path("pods", name))["spec"]
        containers = [{**one, "image": f"mirror/{one['image']}"} for one in spec["containers"]]
        lab.api.request("PATCH", lab.path("pods", name), {"spec": {"containers": containers}})
    lab.edit(replicas=2)
    lab.wait_ready(ready="2/2")
    assert lab.uids().items() >= before.items()
    images = {pod["spec"]["containers"][0]["image"] for pod in lab.pods().values()}
    assert "mirror/worker:test" in images


def test_a_service_of_somebody_else_is_not_taken_over(lab: Lab) -> None:
    theirs = {"metadata": {"name": "tiny"}, "spec": {"ports": [{"port": 80}]}}  # nothing of ours
    made = lab.api.request("POST", lab.path("services"), theirs)
    lab.started()
    lab.make()
    wait_for(
        lambda: lab.model().get("status", {}).get("reason") == reasons.NAME_CONFLICT or None,
        reasons.NAME_CONFLICT,
    )
    there = lab.api.request("GET", lab.path("services", "tiny"))
    assert there["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    lab.api.request("DELETE", lab.path("services", "tiny"))
    lab.wait_ready()


def test_a_model_that_is_deleted_while_no_operator_runs_leaves_nothing(lab: Lab) -> None:
    operator = lab.started()
    lab.make()
    lab.wait_ready()
    operator.stop()
    lab.delete()
    wait_for(lambda: not any(lab.everything().values()) or None, "nothing is left", 60)


def test_a_model_that_is_made_again_at_once_is_another_one(lab: Lab) -> None:
    lab.started()
    old = lab.make()["metadata"]["uid"]
    lab.wait_ready()
    before = set(lab.uids().values())
    lab.delete()
    new = lab.make()["metadata"]["uid"]
    assert new != old
    lab.wait_ready()
    assert not before & set(lab.uids().values())

    def only_the_new() -> bool | None:
        labels = [pod["metadata"]["labels"] for pod in lab.pods().values()]
        return {one[names.LABEL_MODEL_UID] for one in labels} == {new} or None

    wait_for(only_the_new, "the old one's pods are gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_an_operator_that_starts_again_changes_nothing(lab: Lab, number: signal.Signals) -> None:
    operator = lab.started()
    lab.make()
    lab.wait_ready()
    before = (lab.uids(), lab.model()["metadata"]["resourceVersion"])
    operator.stop(number)
    again = lab.started()
    wait_for(lambda: again.leads or None, "it leads", 40)
    wait_for(lambda: again.metric("reconciles_total", result="ok") > 0 or None, "it looked")
    assert (lab.uids(), lab.model()["metadata"]["resourceVersion"]) == before


def _stage(pod: dict[str, object]) -> str:
    meta = pod["metadata"]
    assert isinstance(meta, dict)
    return str(meta["labels"][names.LABEL_STAGE])
