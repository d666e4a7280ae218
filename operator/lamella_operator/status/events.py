"""Events: what has changed from one status to the next, once each.

Pure, so that an operator that is killed half-way tells the same again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella_operator import reasons
from lamella_operator.views import Manifest

NORMAL, WARNING = "Normal", "Warning"
ON_ITS_WAY = frozenset(
    {
        reasons.READY,
        reasons.RESOLVING,
        reasons.RESOLVED,
        reasons.ACCEPTED,
        reasons.PLANNED,
        reasons.STARTING,
        reasons.SCHEDULED,
        reasons.CONTAINER_CREATING,
        reasons.DOWNLOADING,
        reasons.LOADING_WEIGHTS,
        reasons.WEIGHTS_LOADED,
        reasons.CONNECTING,
        reasons.CONNECTED,
        reasons.ROLLING_OUT,
        reasons.ROLLED_OUT,
        reasons.SCALING,
        reasons.SCALED_TO_ZERO,
        reasons.DRAINING,
        reasons.PAUSED,
        reasons.DELETING,
    }
)
"""Reasons that are no cause for concern."""


@dataclass(frozen=True, slots=True)
class Event:
    """``type`` is Normal or Warning."""

    type: str
    reason: str
    message: str


def events(old: Manifest, new: Manifest) -> list[Event]:
    """One per transition from ``old`` to ``new``, in the order of their causes."""
    found = [*_milestones(old, new), *_failures(old, new)]
    reason = str(new.get("reason", ""))
    if reason and reason != old.get("reason") and reason not in {event.reason for event in found}:
        found.append(_event(reason, str(new.get("message", ""))))
    return found


def _milestones(old: Manifest, new: Manifest) -> list[Event]:
    """The model is known, the layers are dealt out."""
    found = []
    if _true(new, "ModelResolved") and not _true(old, "ModelResolved"):
        found.append(_event(reasons.RESOLVED, _message(new, "ModelResolved")))
    if new.get("plan") and _stages(new) != _stages(old):
        layers = ", ".join(_stages(new))
        found.append(_event(reasons.PLANNED, f"{len(_stages(new))} stages with layers {layers}"))
    return found


def _failures(old: Manifest, new: Manifest) -> list[Event]:
    told = {_key(failure) for failure in _items(old, "failures")}
    fresh = [each for each in _items(new, "failures") if _key(each) not in told]
    return [
        Event(WARNING, str(each.get("reason")), str(each.get("message")))
        for each in reversed(fresh)  # the oldest first
    ]


def _event(reason: str, message: str) -> Event:
    return Event(NORMAL if reason in ON_ITS_WAY else WARNING, reason, message)


def _key(failure: Mapping[str, Any]) -> tuple[Any, ...]:
    return failure.get("reason"), failure.get("message"), failure.get("time")


def _stages(status: Manifest) -> list[str]:
    plan = status.get("plan")
    return [str(each.get("layers")) for each in _items(plan, "stages")] if plan else []


def _true(status: Manifest, kind: str) -> bool:
    return any(
        each.get("type") == kind and each.get("status") == "True"
        for each in _items(status, "conditions")
    )


def _message(status: Manifest, kind: str) -> str:
    found = [each for each in _items(status, "conditions") if each.get("type") == kind]
    return str(found[0].get("message", "")) if found else ""


def _items(status: Any, key: str) -> list[Mapping[str, Any]]:
    found = status.get(key) if isinstance(status, Mapping) else None
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
