"""The whole status of a ShardedModel, and whether it is worth writing.

Pure: the observation has the time and the status as it is stored. What must not be lost while a
manifest cannot be read (the profile, the plan) is taken over from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lamella_operator import reasons
from lamella_operator.actions import Note, Situation
from lamella_operator.desired.children import url
from lamella_operator.desired.labels import scale_selector
from lamella_operator.settings import Settings
from lamella_operator.status import evidence, pipelines
from lamella_operator.status.conditions import conditions
from lamella_operator.status.progress import Counts
from lamella_operator.status.summary import summary
from lamella_operator.views import Manifest, Observed

MOST_BYTES = 64 * 1024
MOST_FAILURES = 5
FAILURE_BYTES = 2048
LINE_BYTES = 1024
STAGE_BYTES = (512, 256, 96, 24)
"""Of a stage's message: the first with which the whole fits."""
MOST_YIELDS = 64
NUMBERS_EVERY_S = 10.0
"""Between two writes of a status in which only numbers have changed."""

_ONLY_NUMBERS = frozenset(
    {"message", "bytesDone", "bytesTotal", "percent", "bytesPerSecond", "etaSeconds"}
)
_KEPT_WHEN_REFUSED = (
    "commit",
    "currentRevision",
    "updateRevision",
    "profile",
    "plan",
    "resumed",
    "yields",
)
_KEPT_WHEN_UNSEEN = (
    "replicas",
    "readyReplicas",
    "updatedReplicas",
    "ready",
    "stages",
    "pipelines",
    "omittedStages",
)


def status_document(observed: Observed, situation: Situation, settings: Settings) -> dict[str, Any]:
    """The status that tells of ``situation``; at most `MOST_BYTES` bytes as JSON."""
    for stage_bytes in STAGE_BYTES:
        found = _document(observed, situation, settings, stage_bytes)
        if _size(found) <= MOST_BYTES:
            break
    return found


def should_write(old: Manifest, new: Manifest, last_write_s: float, now_s: float) -> bool:
    """Whether ``new`` is to be stored now; ``last_write_s`` 0.0 is long ago.

    A reason or a state that has changed is told at once, mere numbers not so often.
    """
    if old == new:
        return False
    if _shape(old) != _shape(new):
        return True
    return not 0 <= now_s - last_write_s < NUMBERS_EVERY_S


def stamp(time_s: float) -> str:
    """Seconds since 1970 as Kubernetes writes a time."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _document(
    observed: Observed, situation: Situation, settings: Settings, stage_bytes: int
) -> dict[str, Any]:
    model, old = observed.model, observed.model.status
    line = summary(model, situation, settings)
    counts = Counts.of(situation)
    listed, left_out = pipelines.pipelines(situation, stage_bytes)
    found: dict[str, Any] = {
        "observedGeneration": model.generation,
        "replicas": counts.existing,
        "readyReplicas": counts.ready,
        "updatedReplicas": counts.updated,
        "selector": scale_selector(model.uid),
        "ready": counts.ready_text,
        "stages": counts.stages_text,
        "reason": line.reason,
        "message": evidence.line(line.message, LINE_BYTES),
        "url": url(model, settings),
        **_resolved(situation, old),
        "conditions": conditions(situation, line, model.generation, stamp(observed.now_s), old),
        "pipelines": listed,
        "omittedStages": left_out,
        "failures": _failures(situation.failures, old, stamp(observed.now_s)),
        "resumed": situation.resumed,
        "yields": [
            {"replica": replica, "at": stamp(at_s)}
            for replica, at_s in situation.yielded_s[-MOST_YIELDS:]
        ],
    }
    found = {key: value for key, value in found.items() if value not in ("", [], {})}
    if not left_out:
        del found["omittedStages"]
    return _kept(found, situation, old)


def _resolved(situation: Situation, old: Manifest) -> dict[str, Any]:
    """What does not change from one moment to the next."""
    found: dict[str, Any] = {}
    if situation.profile is not None:
        found["commit"] = situation.profile.commit
    if situation.revision:
        found["updateRevision"] = situation.revision
        found["currentRevision"] = _current(situation, old)
    if situation.profile_key:
        profile = {"key": situation.profile_key, "attempts": situation.inspect_attempts}
        found["profile"] = profile | (
            {"data": situation.profile_message} if situation.profile_message else {}
        )
    if situation.plan is not None:
        found["plan"] = pipelines.plan_of(situation)
    return found


def _current(situation: Situation, old: Manifest) -> str:
    """The revision that all pipelines had last."""
    revisions = {replica.revision for replica in situation.replicas}
    if len(revisions) == 1:
        return revisions.pop()
    return str(old.get("currentRevision") or situation.revision)


def _failures(found: Sequence[Note], old: Manifest, now: str) -> list[dict[str, Any]]:
    """The newest first; what was told before keeps its time, and stays while there is room."""
    before = old.get("failures")
    known = (
        [each for each in before if isinstance(each, Mapping)] if isinstance(before, list) else []
    )
    told = [dict(each) for each in known]
    seen = {(each.get("reason"), each.get("message")) for each in told}
    for note in found:
        message = evidence.block(note.message, FAILURE_BYTES)
        if (note.reason, message) not in seen:
            seen.add((note.reason, message))
            told.insert(0, {"reason": note.reason, "message": message, "time": now})
    return told[:MOST_FAILURES]


def _kept(found: dict[str, Any], situation: Situation, old: Manifest) -> dict[str, Any]:
    """While a manifest is refused, what was known before stays known."""
    if situation.refused is None:
        return found
    kept = list(_KEPT_WHEN_REFUSED)
    if situation.refused.reason == reasons.CRD_TOO_OLD:  # nothing was looked at
        kept += _KEPT_WHEN_UNSEEN
        found = {key: value for key, value in found.items() if key not in _KEPT_WHEN_UNSEEN}
    return {**{key: old[key] for key in kept if key in old}, **found}


def _shape(value: Any) -> Any:
    """A document without its numbers and words, which change all the time."""
    if isinstance(value, Mapping):
        return {key: _shape(item) for key, item in value.items() if key not in _ONLY_NUMBERS}
    if isinstance(value, list | tuple):
        return [_shape(item) for item in value]
    return value


def _size(document: Manifest) -> int:
    return len(json.dumps(document, ensure_ascii=False).encode())
