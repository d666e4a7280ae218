"""What a cluster or a manifest refuses: each has a reason and words, and heals once mended."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e_faults import GPU, gpus
from e2e_kube import wait_for
from e2e_models import Model, gone
from e2e_report import Row

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ONE_GPU = {"limits": {GPU: "1", "memory": "2Gi"}}
HUB_TINY = "hf://e2e/tiny"


def row(table: Any, fault: str, message: str, mended: str, seconds: float | None) -> None:
    table.add(Row(fault, f"{message[:220]}; {mended}", "", None, seconds and round(seconds, 1)))


def test_no_capacity(make: Any, table: Any, kube: Any) -> None:
    model = make("hungry", resources=ONE_GPU)
    message = model.until_reason("InsufficientGPU")
    assert model.condition("StagesScheduled")["status"] == "False"
    node = kube.list("nodes")[0]["metadata"]["name"]
    with gpus(kube, 2, node):
        seconds = model.until_ready()
        row(table, "no free GPU", message, "Ready once a node offers two", seconds)
        model.delete()
        wait_for("its pods are gone", gone(kube, model.namespace, model.name), 60)


def test_two_models_race_for_the_last_gpus(make: Any, table: Any, kube: Any) -> None:
    node = kube.list("nodes")[0]["metadata"]["name"]
    with gpus(kube, 3, node):
        first = make("racer-a", resources=ONE_GPU, scheduling={"timeoutSeconds": 15})
        second = make("racer-b", resources=ONE_GPU, scheduling={"timeoutSeconds": 15})
        began = time.monotonic()

        def one_ready() -> Any:
            return next((m for m in (first, second) if m.is_ready()), None)

        winner = wait_for("one of the two is Ready", one_ready, 240)
        seconds = time.monotonic() - began
        loser = second if winner is first else first
        message = loser.until_reason("InsufficientGPU", "YieldedCapacity")
        winner.delete()
        loser.until_ready(240)
        seen = f"one Ready after {seconds:.0f} s, the other when the first was deleted"
        row(table, "two models race for three GPUs", message, seen, None)
        loser.delete()
        wait_for("its pods are gone", gone(kube, loser.namespace, loser.name), 60)


def test_an_image_that_is_not_there(make: Any, table: Any) -> None:
    model = make("picture", images={"worker": "lamella-worker:nowhere"})
    message = model.until_reason("ImagePull", patience_s=90)
    began = time.monotonic()
    model.apply(images={"worker": None})
    model.until_ready()
    row(table, "a bad image", message, "Ready once it is mended", time.monotonic() - began)


@pytest.mark.parametrize("uri", ["file:///models/none", "hf://e2e/none"])
def test_a_model_that_is_not_there(make: Any, hub: Any, table: Any, uri: str) -> None:
    hub.scale(1)
    model = make("nothing", model={"uri": uri})
    message = model.until_reason("ModelNotFound", patience_s=90)
    assert not model.pods(), "no worker's pod is made for a model that cannot be read"
    assert model.condition("Stalled")["status"] == "True"
    row(table, f"a bad model ({uri.partition(':')[0]}:)", message, "no worker was made", None)


def test_a_bad_token_and_a_secret_that_comes_later(
    make: Any, hub: Any, table: Any, kube: Any, space: str
) -> None:
    hub.scale(1)
    token = {"name": "hub-token", "key": "token"}
    model = make("gated", model={"uri": "hf://e2e/gated", "tokenSecretRef": token})
    message = model.until_reason("SecretMissing", patience_s=60)
    assert "hub-token" in message
    kube.apply(secret(space, "hub-token", "bad"))
    message = model.until_reason("AuthRequired", "GatedModel", patience_s=200)
    began = time.monotonic()
    kube.apply(secret(space, "hub-token", "good"))
    model.annotate("lamella.dev/resume=1")
    model.until_ready()
    row(table, "a bad token", message, "Ready once the Secret is right", time.monotonic() - began)
    kube.delete("secrets", "hub-token", space)
    old = model.stage(1)
    kube.delete("pods", old["metadata"]["name"], space)
    message = model.until_reason("SecretMissing", patience_s=90)
    began = time.monotonic()
    kube.apply(secret(space, "hub-token", "good"))
    model.until_ready()
    row(table, "the token's Secret vanishes", message, "Ready once it is back",
        time.monotonic() - began)  # fmt: skip
    kube.delete("secrets", "hub-token", space)


def test_the_hub_is_down(make: Any, hub: Any, table: Any) -> None:
    hub.scale(0)
    model = make("remote", model={"uri": HUB_TINY})
    message = model.until_reason("HubUnreachable", patience_s=120)
    hub.scale(1)
    began = time.monotonic()
    model.until_ready(240)
    row(table, "the hub is down at first", message, "Ready once it is back",
        time.monotonic() - began)  # fmt: skip
    assert model.condition("RecoveryNeedsHub")["status"] == "True"
    hub.scale(0)
    old = model.stage(1)
    model.kube.delete("pods", old["metadata"]["name"], model.namespace)
    message = model.until_reason("HubUnreachable", patience_s=120)
    hub.scale(1)
    began = time.monotonic()
    model.until_ready(240)
    row(table, "the hub is down while a stage is replaced", message, "Ready once it is back",
        time.monotonic() - began)  # fmt: skip


def test_a_quota(make: Any, fresh_space: Callable[..., str], table: Any, kube: Any) -> None:
    space = fresh_space("quota")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": space},
        "spec": {"hard": {"limits.memory": "3Gi"}},
    }
    kube.apply(quota)
    model = make(
        "big", space, gateway={"replicas": 1, "resources": {"limits": {"memory": "512Mi"}}}
    )
    message = model.until_reason("QuotaExceeded", patience_s=90)
    assert "exceeded quota" in message
    wait_for("no half of it stays", lambda: not model.pods(), 30)
    began = time.monotonic()
    kube.apply({**quota, "spec": {"hard": {"limits.memory": "9Gi"}}})
    model.until_ready()
    row(table, "a quota", message, "nothing half-made stayed; Ready once it is raised",
        time.monotonic() - began)  # fmt: skip


def test_a_limit_range(make: Any, fresh_space: Callable[..., str], table: Any, kube: Any) -> None:
    space = fresh_space("limits")
    limits = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "small", "namespace": space},
        "spec": {"limits": [{"type": "Container", "max": {"memory": "1536Mi"}}]},
    }
    kube.apply(limits)
    model = make("wide", space)
    message = model.until_reason("LimitRange", patience_s=90)
    kube.run("-n", space, "delete", "limitrange", "small")
    row(table, "a LimitRange", message, "Ready once it is gone", model.until_ready())


def test_names_that_collide_when_cut(make: Any, table: Any) -> None:
    stem = "a-model-with-a-name-as-long-as-may-be-and-then-some"[:49]
    models = [make(stem + end) for end in ("a", "b")]
    for model in models:
        model.until_ready(240)
    names = [pod["metadata"]["name"] for model in models for pod in model.pods()]
    assert len(set(names)) == 4
    assert all(len(name) <= 63 for name in names)
    row(table, "two names that are equal when cut", "both Ready", "each pod has its own name", None)


def test_a_namespace_is_deleted(
    kube: Any, main: Any, fresh_space: Callable[..., str], table: Any, release: Any
) -> None:
    space = fresh_space("doomed")
    model = Model(kube, space, "doomed").apply()
    model.until_ready()
    began = time.monotonic()
    kube.delete("namespaces", space)
    # Kubernetes deletes the pods, then looks again after half of their longest grace period:
    # the end of the namespace itself is waited for by the last test of all.
    wait_for("its pods are gone", lambda: not kube.list("pods", space), 90)
    assert main.is_ready()
    row(table, "a namespace is deleted", "its pods went and did not come back", "others untouched",
        time.monotonic() - began)  # fmt: skip


def secret(namespace: str, name: str, token: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"token": base64.b64encode(token.encode()).decode()},
    }
