"""The control plane fails: operators die, the API server is away, rights are taken back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from e2e_kube import Kube, wait_for
from e2e_models import Model
from e2e_report import Row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "seconds"), [("away", 90), ("503", 30)])
def test_the_api_server_is_out(
    main: Any, load: Any, table: Any, machines: Any, release: Any, what: str, seconds: int
) -> None:
    machines.need(pki=what == "503")
    uids, pods = main.uids() | main.uids("gateway"), operator_uids(release)
    moment = time.monotonic()
    out = (
        machines.without("kube-apiserver", main.kube)
        if what == "away"
        else machines.api_server_says(503, main.kube)
    )
    with out:
        time.sleep(seconds)  # the fault itself lasts so long
    assert main.uids() | main.uids("gateway") == uids
    assert operator_uids(release) == pods
    release.until_led(patience_s=60)
    back = time.monotonic()
    old = main.stage(1)
    main.kube.delete("pods", old["metadata"]["name"], main.namespace)
    main.until_replaced(old)
    replaced = time.monotonic() - back
    load.flow(180)
    main.until_ready()
    load.stop()
    told = load.since(moment)
    table.add(
        Row(
            f"API server {what} for {seconds} s",
            f"traffic went on, no pod changed; a loss after it was repaired in {replaced:.0f} s",
            f"{len(told.errors)} of {told.answers}",
            told.longest_pause_s,
        )
    )
    told.assert_unharmed()


def test_the_operator_is_killed_while_a_change_rolls(
    make: Any, table: Any, release: Any, kube: Any
) -> None:
    model = make("rolled", replicas=2, gateway={"replicas": 1})
    model.until_ready(240)
    before = model.uids()
    model.apply(podLabels={"change": "1"})
    wait_for("the change has begun", lambda: model.uids() != before, 60)
    leader = release.leader()
    began = time.monotonic()
    kube.delete("pods", leader, "lamella-system", grace_s=0)
    release.until_led(other_than=leader)
    led = time.monotonic() - began
    model.until_ready(300)
    assert not model.uids() & before
    assert len(model.pods()) == 4
    table.add(
        Row("the operator killed while a change rolls",
            f"the other led after {led:.0f} s and finished the change", "", None,
            round(time.monotonic() - began, 1))
    )  # fmt: skip


def test_a_right_is_missing(main: Any, table: Any, kube: Any) -> None:
    with without_right(kube, "pods", "create"):
        old = main.stage(1)
        kube.delete("pods", old["metadata"]["name"], main.namespace)
        message = main.until_reason("Forbidden", patience_s=60)
    seconds = main.until_ready()
    table.add(Row("the right to create pods is missing", message[:200], "", None,
                  round(seconds, 1)))  # fmt: skip


def test_the_keys_of_a_stage_vanish(main: Any, load: Any, table: Any, kube: Any) -> None:
    labels = "lamella.dev/model=main"

    def keys() -> dict[str, Any]:
        found = kube.list("secrets", main.namespace, labels)
        return {secret["metadata"]["name"]: secret["data"] for secret in found}

    before = keys()
    assert before, "the model has keys"
    moment = time.monotonic()
    for name in before:
        kube.delete("secrets", name, main.namespace)
    old = main.stage(1)
    kube.delete("pods", old["metadata"]["name"], main.namespace)
    main.until_replaced(old)
    load.flow(180)
    assert keys() == before, "minted again, identically"
    load.stop()
    told = load.since(moment)
    table.add(Row("the stages' key Secrets vanish", "minted again, identically; a stage replaced "
                  "meanwhile joined", f"{len(told.errors)} of {told.answers}",
                  told.longest_pause_s))  # fmt: skip
    told.assert_unharmed()


@pytest.mark.slow
def test_one_of_two_namespaces_is_closed_to_the_operator(
    kube: Any, release: Any, fresh_space: Callable[..., str], table: Any
) -> None:
    a, b = fresh_space("tenant-a"), fresh_space("tenant-b")
    release.install(namespaces=[a, b])
    try:
        one = {"gateway": {"replicas": 1}}
        closed, open_ = (Model(kube, space, "tenant", **one).apply() for space in (a, b))
        closed.until_ready(240)
        open_.until_ready(240)
        (binding,) = [
            found for found in kube.list("rolebindings", a)
            if found["metadata"]["name"].startswith("lamella")
        ]  # fmt: skip
        kube.delete("rolebindings", binding["metadata"]["name"], a)
        operators = operator_uids(release)
        for model in (closed, open_):
            kube.delete("pods", model.stage(1)["metadata"]["name"], model.namespace)
        repaired = open_.until_ready()
        assert operator_uids(release) == operators, "no operator was restarted by it"
        metadata = {k: binding["metadata"][k] for k in ("name", "namespace", "labels")}
        began = time.monotonic()
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
        kube.apply({**kind, **binding, "metadata": metadata})
        wait_for("the closed one is repaired", lambda: len(closed.pods()) == 2, 180)
        closed.until_ready()
        table.add(
            Row("a RoleBinding revoked in one of two namespaces",
                f"the other namespace's stage was replaced in {repaired:.0f} s meanwhile", "", None,
                round(time.monotonic() - began, 1))
        )  # fmt: skip
    finally:
        for model in (closed, open_):
            model.delete()
        release.install()


def operator_uids(release: Any) -> set[str]:
    return {pod["metadata"]["uid"] for pod in release.pods()}


@contextmanager
def without_right(kube: Kube, resource: str, verb: str) -> Iterator[None]:
    """The operator's role lacks a verb for a while."""
    role = _role(kube, resource)
    name, rules = role["metadata"]["name"], role["rules"]
    fewer = [
        {**rule, "verbs": [v for v in rule["verbs"] if v != verb]}
        if resource in rule.get("resources", ())
        else rule
        for rule in rules
    ]
    kube.patch("clusterroles", name, "", {"rules": fewer})
    try:
        yield
    finally:
        kube.patch("clusterroles", name, "", {"rules": rules})


def _role(kube: Kube, resource: str) -> dict[str, Any]:
    for role in kube.list("clusterroles"):
        labels = role["metadata"].get("labels", {})
        ours = labels.get("app.kubernetes.io/instance") == "lamella"
        if ours and any(resource in rule.get("resources", ()) for rule in role["rules"]):
            return role
    raise AssertionError(f"the chart has no ClusterRole for {resource}")
