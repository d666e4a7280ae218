"""How often and how soon a stage is replaced.

A pod carries how many before it failed in its place; so the count survives every restart of this
process. It is forgotten when the pod was ready for ten minutes (the status remembers that for the
time when it has failed), when it ran for an hour, and when the model's resume annotation changes.
Knows no cause: `verdict` says whether a loss was the pod's own fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella_contract import names
from lamella_operator.deciding.verdict import Loss
from lamella_operator.views import ModelView, PodView

FORGIVEN_S = 600.0
"""A pod ready for so long starts counting afresh."""
LONG_RUN_S = 3600.0
"""So does one that ran for so long, whether or not the status still tells that it was ready."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 10.0, 300.0
SHORT_LIFE_S = 10.0
"""A pod lost without its own fault is replaced at once, but no sooner than this after its making:
something that deletes pods as they appear must not make us spin."""
DEFAULT_MAX_RESTARTS = 5
"""Where the manifest cannot be read."""


def resume_of(model: ModelView) -> str:
    """The annotation by which a user asks for new tries."""
    return model.annotations.get(names.ANNOTATION_RESUME, "")


def max_restarts(model: ModelView) -> int:
    """Failures in a row of one stage that are answered with a new pod."""
    return DEFAULT_MAX_RESTARTS if model.spec is None else model.spec.cluster.recovery.max_restarts


def counted(pod: PodView, model: ModelView, now_s: float) -> int:
    """How many before this pod failed, as far as it is held against it."""
    if pod.resume != resume_of(model):
        return 0
    if pod.ready and now_s - pod.ready_since_s >= FORGIVEN_S:
        return 0
    end = pod.last_exit
    if end is not None and not pod.running and end.finished_s - end.started_s >= LONG_RUN_S:
        return 0
    told = _told(model.status, pod)
    return pod.restarts if told is None else min(pod.restarts, told)


def next_count(pod: PodView, loss: Loss, model: ModelView, now_s: float) -> int:
    """The count that its replacement carries."""
    return counted(pod, model, now_s) + (1 if loss.own_fault else 0)


def exhausted(pod: PodView, loss: Loss, model: ModelView, now_s: float) -> bool:
    """Whether it gets no replacement until the manifest or the resume annotation changes."""
    if not loss.own_fault:
        return False
    if loss.hopeless and pod.resume == resume_of(model):
        return True
    return next_count(pod, loss, model, now_s) > max_restarts(model)


def backoff_s(count: int) -> float:
    """0, 0, 10, 20, 40 … 300 seconds for 0, 1, 2, 3, 4 … failures."""
    if count < 2:
        return 0.0
    return float(min(FIRST_BACKOFF_S * 2.0 ** min(count - 2, 30), MAX_BACKOFF_S))


def due_s(pod: PodView, loss: Loss, model: ModelView, now_s: float) -> float:
    """When its replacement is made."""
    if not loss.own_fault:
        return pod.created_s + SHORT_LIFE_S
    end = pod.last_exit.finished_s if pod.last_exit is not None else 0.0
    return max(end, pod.created_s) + backoff_s(next_count(pod, loss, model, now_s))


def forgiven_at_s(pod: PodView, model: ModelView, now_s: float) -> float | None:
    """When a ready pod's count is forgotten; None where there is none to forget."""
    if not pod.ready or not counted(pod, model, now_s):
        return None
    return pod.ready_since_s + FORGIVEN_S


def _told(status: Mapping[str, Any], pod: PodView) -> int | None:
    """The count that the status holds of this very pod."""
    for pipeline in _list(status, "pipelines"):
        for stage in _list(pipeline, "stages"):
            if stage.get("podUID") == pod.uid and isinstance(stage.get("restarts"), int):
                return int(stage["restarts"])
    return None


def _list(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = document.get(key)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
