"""Secrets that a pod waits for: which pods are asked about, and what is found."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from operator_twin_api import Store

from lamella_operator.reconciling import missing
from lamella_operator.reconciling.client import Client
from lamella_operator.views import PodView

NOW_S = 1000.0
WAITING = PodView("a", "uid-a", "stage", created_s=NOW_S - 30, scheduled=True)
DOCUMENT = {
    "metadata": {"uid": "uid-a"},
    "spec": {
        "volumes": [
            {"name": "hub", "secret": {"secretName": "hub-token"}},
            {"name": "keys", "secret": {"secretName": "keys"}},
            {"name": "maybe", "secret": {"secretName": "maybe", "optional": True}},
            {"name": "tmp", "emptyDir": {}},
        ]
    },
}

PODS: dict[str, tuple[PodView, tuple[str, ...]]] = {
    "waits for long": (WAITING, ("hub-token",)),
    "was made just now": (replace(WAITING, created_s=NOW_S - 1), ()),
    "has no node": (replace(WAITING, scheduled=False), ()),
    "runs": (replace(WAITING, running=True), ()),
    "is being deleted": (replace(WAITING, deleted_s=NOW_S), ()),
    "waits for its image": (replace(WAITING, waiting_reason="ErrImagePull"), ()),
}


@pytest.mark.parametrize(("pod", "lacks"), PODS.values(), ids=PODS)
def test_what_a_pod_lacks(pod: PodView, lacks: tuple[str, ...]) -> None:
    store = Store()
    store.put_in(secret("keys"))
    client = Client(store)
    (found,) = asyncio.run(missing.told(client, "ai", (pod,), (DOCUMENT,), NOW_S))
    assert found == replace(pod, missing=lacks)


def secret(name: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "ai"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {}}
