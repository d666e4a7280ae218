"""Conditions: each with a reason, a sentence, the generation, and since when it is as it is.

Knows no pod. Ready comes first in the list, for people read it so; every condition is always there,
so that ``kubectl wait --for=condition=X=False`` works from the first status on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lamella_operator import reasons
from lamella_operator.actions import Note, Situation
from lamella_operator.status import evidence, summary
from lamella_operator.status.progress import Counts, Loading
from lamella_operator.views import Manifest

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
MOST_BYTES = 768  # of a message


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition without its times."""

    type: str
    status: str
    note: Note


def conditions(
    situation: Situation, line: Note, generation: int, stamp: str, old: Manifest
) -> list[dict[str, Any]]:
    """All conditions; ``line`` is the model's own, ``stamp`` now, ``old`` the status so far."""
    before = {each.get("type"): each for each in _entries(old)}
    found = []
    for one in _all(situation, line):
        last = before.get(one.type, {})
        since = last.get("lastTransitionTime") if last.get("status") == one.status else None
        found.append(
            {
                "type": one.type,
                "status": one.status,
                "reason": one.note.reason,
                "message": evidence.line(one.note.message, MOST_BYTES),
                "observedGeneration": generation,
                "lastTransitionTime": since or stamp,
            }
        )
    return found


def is_ready(situation: Situation) -> bool:
    """Every pipeline wanted is of the current spec and serves, and a gateway takes requests."""
    if summary.blocker(situation) is not None or situation.rolling is not None:
        return False
    counts = Counts.of(situation)
    served = counts.updated_ready >= counts.wanted
    return served and (situation.gateways_ready > 0 or situation.wanted_replicas == 0)


def _all(situation: Situation, line: Note) -> Iterator[Condition]:
    ready = is_ready(situation)
    stuck = summary.stalled(situation)
    yield Condition("Ready", TRUE if ready else FALSE, line)
    yield _accepted(situation)
    yield _resolved(situation)
    yield from _steps(situation)
    yield _available(situation)
    moves = not ready and stuck is None and not situation.paused
    done = Note(reasons.READY, "nothing is to be done")
    yield Condition("Progressing", _as(moves), line if not ready else done)
    degraded = situation.degraded
    yield Condition("Degraded", _as(degraded is not None), degraded or _nothing("has failed"))
    # what kstatus (Flux, Helm) looks at beside Ready
    yield Condition("Stalled", _as(stuck is not None), stuck or _nothing("waits for a user"))
    yield Condition("Reconciling", _as(moves), line if not ready else done)
    yield _needs_hub(situation)


def _accepted(situation: Situation) -> Condition:
    """The manifest parses and a plan exists for it."""
    why = situation.refused or situation.unplanned
    if why is not None:
        return Condition("Accepted", FALSE, why)
    text = summary.planned(situation) or "the manifest can be acted on"
    return Condition("Accepted", TRUE, Note(reasons.ACCEPTED, text))


def _resolved(situation: Situation) -> Condition:
    kind = "ModelResolved"
    if situation.unresolved is not None:
        return Condition(kind, FALSE, situation.unresolved)
    if situation.profile is None:
        return Condition(kind, UNKNOWN, situation.refused or Note(reasons.RESOLVING, "not yet"))
    return Condition(kind, TRUE, Note(reasons.RESOLVED, summary.resolved(situation)))


def _steps(situation: Situation) -> Iterator[Condition]:
    """From nodes to weights to a ring: each says how many are there."""
    counts = Counts.of(situation)
    early = summary.blocker(situation)
    if situation.wanted_replicas == 0 and early is None:
        none = Note(reasons.SCALED_TO_ZERO, "no pipeline is wanted")
        for kind in ("StagesScheduled", "WeightsReady", "PipelineConnected"):
            yield Condition(kind, TRUE, none)
        return
    wait = summary.waits_for(situation) or early or Note(reasons.STARTING, "pods are being made")
    of = counts.stages_wanted
    text = f"{counts.stages_placed} of {of or '?'} stages have a node"
    placed = of is not None and counts.stages_placed >= of
    yield _step("StagesScheduled", placed, reasons.SCHEDULED, text, wait)
    text = f"{counts.stages_loaded} of {of or '?'} slices are loaded"
    loaded = of is not None and counts.stages_loaded >= of
    reading = Loading.of(situation.replicas)
    if not loaded and reading.per_s:
        text += f"; {reading.text}"
    yield _step("WeightsReady", loaded, reasons.WEIGHTS_LOADED, text, wait)
    text = f"{counts.ready} of {counts.wanted} pipelines are connected"
    yield _step("PipelineConnected", counts.ready >= counts.wanted, reasons.CONNECTED, text, wait)


def _step(kind: str, done: bool, reason: str, text: str, wait: Note) -> Condition:
    if done:
        return Condition(kind, TRUE, Note(reason, text))
    return Condition(kind, FALSE, Note(wait.reason, f"{text}: {wait.message}"))


def _available(situation: Situation) -> Condition:
    """A request would be served now."""
    counts = Counts.of(situation)
    gateways = f"{situation.gateways_ready} of {situation.gateways_wanted} gateways"
    text = f"{counts.ready} of {counts.wanted} pipelines and {gateways} serve"
    if counts.ready and situation.gateways_ready:
        return Condition("Available", TRUE, Note(reasons.READY, text))
    if situation.wanted_replicas == 0 and not counts.ready:
        return Condition("Available", FALSE, Note(reasons.SCALED_TO_ZERO, text))
    why = summary.blocker(situation) if not counts.ready else None
    why = why or (summary.waits_for(situation) if not counts.ready else None)
    why = why or summary.no_gateway(situation)
    return Condition("Available", FALSE, Note(why.reason, f"{text}: {why.message}"))


def _needs_hub(situation: Situation) -> Condition:
    if situation.recovery_needs_hub:
        text = (
            "a replaced stage downloads its slice again, for its cache goes with its pod: give "
            "spec.cache a claim to recover without the hub"
        )
        return Condition("RecoveryNeedsHub", TRUE, Note(reasons.DOWNLOADING, text))
    return Condition("RecoveryNeedsHub", FALSE, _nothing("is downloaded again by a recovery"))


def _nothing(what: str) -> Note:
    return Note(reasons.AS_EXPECTED, f"nothing {what}")


def _as(holds: bool) -> str:
    return TRUE if holds else FALSE


def _entries(status: Manifest) -> list[Manifest]:
    found = status.get("conditions")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
