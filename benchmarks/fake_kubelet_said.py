"""The status documents of pods that the fake kubelet writes. Values only."""

from __future__ import annotations

import datetime as dt
from typing import Any

Status = dict[str, Any]


def now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, true: bool) -> Status:
    return {"type": kind, "status": "True" if true else "False", "lastTransitionTime": now()}


def running(container: str, ip: str, ready: bool) -> Status:
    """A pod whose container runs."""
    return {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": now(),
        "conditions": [
            condition("PodScheduled", True),
            condition("Initialized", True),
            condition("ContainersReady", ready),
            condition("Ready", ready),
        ],
        "containerStatuses": [_container(container, {"running": {"startedAt": now()}}, ready)],
    }


def finished(container: str, ip: str, message: str) -> Status:
    """A pod whose container has done its work and left ``message``."""
    ended = _ended(0, "Completed", message)
    return {
        "phase": "Succeeded",
        "podIP": ip,
        "startTime": now(),
        "conditions": [condition("PodScheduled", True), condition("Ready", False)],
        "containerStatuses": [_container(container, ended)],
    }


def evicted(container: str) -> Status:
    """A pod that its node gave up for want of memory."""
    return {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "The node was low on resource: memory.",
        "conditions": [condition("PodScheduled", True), condition("Ready", False)],
        "containerStatuses": [_container(container, _ended(137, "Error", ""))],
    }


def _container(name: str, state: Status, ready: bool = False) -> Status:
    return {
        "name": name,
        "image": "fake",
        "imageID": "fake",
        "ready": ready,
        "started": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def _ended(code: int, reason: str, message: str) -> Status:
    times = {"startedAt": now(), "finishedAt": now()}
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **times}}
