"""From a manifest to a model's profile: kept in the status, or an inspector pod's last words.

The profile is kept in status under a key of what it depends on, so it is read once. Tries are pods
whose names say key and number, so a try is counted even where the status was never written. A
failure that only the user can end (no such model, no right to it) is tried again when the manifest
or the resume annotation changes; others after a back-off, which grows long after `TRIES`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lamella_contract import errors, names, profile_message
from lamella_contract.errors import LamellaError
from lamella_contract.profile import ModelProfile
from lamella_contract.spec import ShardedModelSpec
from lamella_operator import reasons
from lamella_operator.actions import Action, Create, Delete, Note, Wait
from lamella_operator.deciding import budget, verdict, words
from lamella_operator.desired import object_names
from lamella_operator.desired.inspector import inspector_pod
from lamella_operator.settings import Settings
from lamella_operator.views import Observed, PodView

TRIES = 5
"""Failures in a row after which the user is told that it needs them."""
BACKOFF_S = (10.0, 20.0, 40.0, 80.0)
LATE_BACKOFF_S = 600.0
"""Between tries beyond those: an outage of the hub ends some day."""
LIMIT_S = 360.0
"""A pod that runs for longer than its own deadline is given up."""

FINAL = frozenset(
    {
        errors.AuthRequired.kind,
        errors.GatedModel.kind,
        errors.ModelNotFound.kind,
        errors.UnsupportedFamily.kind,
        words.NEEDS_CONVERSION,
        errors.InvalidSpec.kind,
        errors.InvalidConfig.kind,
    }
)
"""Failures that another try would meet again."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """``profile`` or ``why`` there is none; ``message`` is the profile as it was sent."""

    key: str
    attempts: int = 0
    profile: ModelProfile | None = None
    message: str = ""
    why: Note | None = None
    stalled: bool = False
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class _Try:
    """One inspector pod and its number."""

    attempt: int
    pod: PodView


def profile_key(spec: ShardedModelSpec) -> str:
    """What a profile depends on, hashed: the address, the revision asked for, the dtype, the
    quantization, and whose token reads it."""
    secret = spec.model.token_secret
    token = "" if secret is None else f"{secret.name}/{secret.key}"
    parts = [str(spec.model.parsed), spec.pipeline.dtype or "", token]
    if spec.pipeline.quantization != names.QUANTIZATIONS[0]:
        parts.append(spec.pipeline.quantization)
    return object_names.digest("\n".join(parts), 16)


def resolve(observed: Observed, settings: Settings) -> Resolution:
    """The profile of ``observed.model``, whose manifest parses, and what to do to get it."""
    model = observed.model
    assert model.spec is not None, "a manifest that does not parse is never resolved"
    key = profile_key(model.spec)
    stored = _mapping(model.status, "profile")
    known = stored.get("key") == key
    if known and isinstance(stored.get("data"), str):
        profile = _readable(str(stored["data"]))
        if profile is not None:
            over = tuple(_over(observed, observed.inspectors, "its profile is kept"))
            tried = _whole(stored.get("attempts"))
            return Resolution(key, tried, profile, str(stored["data"]), actions=over)
    resume = budget.resume_of(model)
    counted = _whole(stored.get("attempts")) if known else 0
    before = counted if str(model.status.get("resumed") or "") == resume else 0
    return _search(observed, settings, key, before)


def _search(observed: Observed, settings: Settings, key: str, before: int) -> Resolution:
    """What the newest try says; ``before`` is the number of tries that the status tells of."""
    model = observed.model
    name_key = f"{key}/{budget.resume_of(model)}/{_shape(observed, settings)}"
    numbers = {
        object_names.inspector_name(model.name, name_key, attempt): attempt
        for attempt in range(before + 2 * TRIES + len(observed.inspectors))
    }
    tries = sorted(
        (_Try(numbers[pod.name], pod) for pod in observed.inspectors if pod.name in numbers),
        key=lambda one: one.attempt,
    )
    others = [pod for pod in observed.inspectors if pod.name not in numbers]
    ending = [one.pod for one in tries if one.pod.deleted_s is not None]
    old = _over(observed, [*others, *ending], "it reads another model, or for another try")
    living = [one for one in tries if one.pod.deleted_s is None]
    if not living:
        attempt = tries[-1].attempt + 1 if tries else max(before, 0)
        new = inspector_pod(model, settings, name_key, attempt)
        why = Note(reasons.RESOLVING, "an inspector pod is made, to read the model's config")
        return Resolution(key, attempt + 1, why=why, actions=(*old, Create(new), Wait(15.0)))
    newest = living[-1]
    old += [_delete(one.pod, "a newer one was made") for one in living[:-1]]
    answer = _answer(newest.pod)
    if isinstance(answer, ModelProfile):
        message = newest.pod.last_exit.message if newest.pod.last_exit is not None else ""
        return Resolution(key, newest.attempt + 1, answer, message, actions=(*old, Wait(2.0)))
    if answer is None:
        return _running(newest, observed, key, old)
    return _failed(newest, answer, observed, settings, (key, name_key), old)


def _shape(observed: Observed, settings: Settings) -> str:
    """Everything that an inspector pod is made with: a pod that waits for an image or a node that
    the manifest no longer names is no try for the manifest of now."""
    pod = inspector_pod(observed.model, settings, "", 0)
    return object_names.digest(json.dumps(pod["spec"], sort_keys=True), 8)


def _running(newest: _Try, observed: Observed, key: str, old: list[Action]) -> Resolution:
    pod = newest.pod
    why = _progress(pod)
    overdue = pod.running and observed.now_s - pod.started_s > LIMIT_S
    if overdue or not pod.node_ready:
        old.append(_delete(pod, "it has not ended in its time"))
    return Resolution(
        key,
        newest.attempt + 1,
        why=why,
        stalled=verdict.blocked(pod, observed.now_s),
        actions=(*old, Wait(15.0)),
    )


def _failed(
    newest: _Try,
    answer: tuple[Note, bool],
    observed: Observed,
    settings: Settings,
    keys: tuple[str, str],
    old: list[Action],
) -> Resolution:
    why, final = answer
    tried = newest.attempt + 1
    if final:
        return Resolution(keys[0], tried, why=why, stalled=True, actions=tuple(old))
    end = newest.pod.last_exit
    ended_s = max(newest.pod.created_s, end.finished_s if end is not None else 0.0)
    pause = BACKOFF_S[newest.attempt] if newest.attempt < len(BACKOFF_S) else LATE_BACKOFF_S
    left = ended_s + pause - observed.now_s
    words_ = f"{why.message} (try {tried})"
    if left > 0:
        old.append(Wait(left))
    else:
        old.append(Create(inspector_pod(observed.model, settings, keys[1], tried)))
        old.append(Wait(15.0))
    return Resolution(
        keys[0],
        tried,
        why=Note(why.reason, words_),
        stalled=tried >= TRIES,
        actions=tuple(old),
    )


def _answer(pod: PodView) -> ModelProfile | tuple[Note, bool] | None:
    """The profile, or why there is none and whether that is final; None while the pod runs."""
    if pod.phase not in ("Failed", "Succeeded"):
        return None
    if pod.last_exit is None or not pod.last_exit.message:
        return _unsaid(pod), False
    try:
        said = profile_message.read(pod.last_exit.message)
    except LamellaError:
        return _unsaid(pod), False
    if isinstance(said, ModelProfile):
        return said
    reason = words.KINDS.get(said.kind, reasons.INSPECTION_FAILED)
    return Note(reason, said.message), said.kind in FINAL


def _unsaid(pod: PodView) -> Note:
    why = words.failed(pod)
    known = why.reason != reasons.STAGE_FAILED
    return Note(why.reason if known else reasons.INSPECTION_FAILED, f"inspector: {why.message}")


def _progress(pod: PodView) -> Note:
    if not pod.scheduled:
        why = words.unschedulable(pod.unschedulable, {})
        return Note(why.reason, f"inspector: {why.message}")
    if not pod.running and pod.last_exit is None:  # one that has ended is about to be Failed
        why = words.waiting(pod)
        return Note(why.reason, f"inspector: {why.message}")
    return Note(reasons.RESOLVING, "an inspector pod reads the model's config and headers")


def _readable(data: str) -> ModelProfile | None:
    """A profile in the status that somebody edited, or that another version wrote, is none."""
    try:
        found = profile_message.read(data)
    except LamellaError:
        return None
    return found if isinstance(found, ModelProfile) else None


def _over(observed: Observed, pods: Iterable[PodView], why: str) -> list[Action]:
    """Pods that are not needed go; one that does not is asked again, by force."""
    found: list[Action] = []
    for pod in pods:
        if pod.deleted_s is None or verdict.stuck(pod, observed.now_s):
            found.append(_delete(pod, why))
        else:
            found.append(Wait(pod.deleted_s + verdict.STUCK_S + 1.0 - observed.now_s))
    return found


def _delete(pod: PodView, why: str) -> Delete:
    force = pod.deleted_s is not None or not pod.node_ready
    return Delete("Pod", pod.name, pod.uid, 0 if force else None, why)


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
