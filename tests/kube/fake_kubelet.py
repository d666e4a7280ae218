"""A scheduler and a kubelet in one thread: pods of a namespace are placed, run, and end.

It plays what the operator sees of nodes and processes, and nothing else: no container is started.
Inspectors end with a profile as their last words. A test may hold pods back or make them fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from kube_control_plane import Api, ApiError

from lamella_contract import names
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_contract.profile_message import pack

Pod = dict[str, Any]

NODE = "fake-node"
LOOK_S = 0.05
NOBODY = "127.0.0.77"  # a pod's address: connections to it are refused at once

PROFILE = ModelProfile(
    uri="file:///models/tiny",
    commit="0123456789abcdef",
    family="qwen3",
    dtype="bfloat16",
    hidden_size=64,
    vocab_size=256,
    max_model_len=512,
    layers=(LayerProfile(1 << 20, 256, 0, "full_attention"),) * 4,
    embedding_bytes=1 << 16,
    head_bytes=1 << 16,
    final_bytes=256,
    tied=False,
    boundary_bytes_per_token=128,
    allowed_cuts=(1, 2, 3),
)


def role_of(pod: Pod) -> str:
    return str(pod["metadata"].get("labels", {}).get(names.LABEL_ROLE, ""))


class FakeKubelet:
    """``with FakeKubelet(api, namespace):``; ``held(pod)`` says what stays as it is."""

    def __init__(self, api: Api, *namespaces: str) -> None:
        self.held: Callable[[Pod], bool] = lambda pod: False
        self.errors: list[str] = []
        self._api = api
        self._namespaces = namespaces
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-kubelet")

    def __enter__(self) -> FakeKubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            for namespace in self._namespaces:
                try:
                    self._look(f"/api/v1/namespaces/{namespace}/pods")
                except (ApiError, httpx.HTTPError) as error:
                    self.errors.append(str(error))  # it went meanwhile, or the server is away

    def _look(self, path: str) -> None:
        for pod in self._api.request("GET", path)["items"]:
            if not self.held(pod):
                try:
                    self._step(f"{path}/{pod['metadata']['name']}", pod)
                except ApiError as error:
                    self.errors.append(str(error))

    def _step(self, path: str, pod: Pod) -> None:
        meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
        if "deletionTimestamp" in meta:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
            self._api.request("DELETE", path, options)
        elif not pod["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            binding = {"metadata": {"name": meta["name"]}, "target": target}
            self._api.request("POST", f"{path}/binding", binding)
        elif phase == "Pending":
            status = finished(pack(PROFILE)) if role_of(pod) == names.ROLE_INSPECTOR else running()
            self.say(path, status)

    def say(self, path: str, status: dict[str, Any]) -> None:
        """Write a pod's status, as its kubelet would."""
        self._api.request("PATCH", f"{path}/status", {"status": status})


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(ready: bool = True) -> dict[str, Any]:
    """Runs; and is ready, or not."""
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": now()}
    container = _container({"running": {"startedAt": now()}}, ready)
    return {
        "phase": "Running",
        "podIP": NOBODY,
        "podIPs": [{"ip": NOBODY}],
        "conditions": [condition],
        "containerStatuses": [container],
    }


def finished(message: str, code: int = 0) -> dict[str, Any]:
    """Ended, with its last words."""
    stamp = now()
    ended = {
        "exitCode": code,
        "reason": "Completed" if code == 0 else "Error",
        "message": message,
        "startedAt": stamp,
        "finishedAt": stamp,
    }
    return {
        "phase": "Succeeded" if code == 0 else "Failed",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": stamp}],
        "containerStatuses": [_container({"terminated": ended}, False)],
    }


def _container(state: dict[str, Any], ready: bool) -> dict[str, Any]:
    return {
        "name": "main",
        "image": "image",
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }
