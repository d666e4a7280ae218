"""What a decision found, in the terms of the status: each pipeline, each stage, and why.

Chooses one note per pipeline, the one that a user should read first. Decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lamella_operator import reasons
from lamella_operator.actions import Note, ReplicaSituation, StageSituation
from lamella_operator.deciding import budget, verdict
from lamella_operator.deciding.slots import Pipeline, Slot
from lamella_operator.revision import Revision
from lamella_operator.views import Observed, Refusal

_RANK = ("Lost", "Pending", "Creating", "Loading", "Loaded", "Draining", "Ready")
_SERVED = ("Ready", "Recovering", "Degraded")
NEEDS_USER = frozenset(
    {
        reasons.IMAGE_PULL,
        reasons.SECRET_MISSING,
        reasons.CONTAINER_CONFIG,
        reasons.CONTAINER_START,
    }
)


def replica(
    observed: Observed,
    pipeline: Pipeline,
    current: str,
    *,
    removing: bool = False,
    given_up: Mapping[int, Note] | None = None,
) -> ReplicaSituation:
    """A pipeline that has pods."""
    lost = given_up or {}
    stages = tuple(
        _stage(observed, pipeline, slot, removing, lost.get(slot.stage)) for slot in pipeline.slots
    )
    refused = _refusal(observed.refusals, pipeline.replica)
    state = _state(observed, pipeline, removing, bool(lost))
    note = None if state == "Ready" else refused or _first(stages, lost)
    if removing:
        note = Note(reasons.DRAINING, "it is removed: its stage 0 finishes its requests first")
    return ReplicaSituation(
        replica=pipeline.replica,
        revision=pipeline.revision,
        updated=pipeline.revision == current,
        state=state,
        stages=stages,
        note=note,
    )


def planned(observed: Observed, index: int, revision: Revision) -> ReplicaSituation:
    """A pipeline whose pods are being made just now."""
    note = Note(reasons.STARTING, "its pods are being made")
    stages = tuple(
        StageSituation(stage, "Pending", bytes_total=_bytes(revision, stage), note=note)
        for stage in range(revision.stages)
    )
    return ReplicaSituation(index, revision.hash, True, "Starting", stages, note)


def yielded(observed: Observed, index: int, revision: Revision, left_s: float) -> ReplicaSituation:
    """A pipeline that gave way or was refused; the reason stays what the status said of it."""
    text = f"it gave its nodes back to an older pipeline and tries again in {left_s:.0f} s"
    note = Note(reasons.YIELDED_CAPACITY, text)
    stored = _stored(observed, index)
    if stored.get("state") == "Yielded" and stored.get("reason") in reasons.ALL:
        note = Note(str(stored["reason"]), str(stored.get("message") or text))
    note = _refusal(observed.refusals, index) or note
    stages = tuple(
        StageSituation(stage, "Pending", bytes_total=_bytes(revision, stage), note=note)
        for stage in range(revision.stages)
    )
    return ReplicaSituation(index, revision.hash, True, "Yielded", stages, note)


def needs_user(observed: Observed, pipelines: Sequence[Pipeline]) -> Note | None:
    """A stage whose container has waited long for what only a user can change."""
    for pipeline in pipelines:
        for slot in pipeline.slots:
            holder = slot.holder
            if holder is None or holder.note is None or holder.note.reason not in NEEDS_USER:
                continue
            if verdict.blocked(holder.pod, observed.now_s):
                where = f"pipeline {pipeline.replica}, stage {slot.stage}: "
                return Note(holder.note.reason, where + holder.note.message)
    return None


def failures(pipelines: Sequence[Pipeline]) -> tuple[Note, ...]:
    """What is known of pods that failed by themselves and are still there."""
    found = []
    for pipeline in pipelines:
        for slot in pipeline.slots:
            for judged in (slot.lost, *slot.past):
                if judged is not None and judged.loss is not None and judged.loss.own_fault:
                    note = judged.loss.note
                    text = f"{judged.pod.name} on {judged.pod.node or 'no node'}: {note.message}"
                    found.append(Note(note.reason, text))
    return tuple(found)


def _state(observed: Observed, pipeline: Pipeline, removing: bool, given_up: bool) -> str:
    if removing:
        return "Draining"
    if pipeline.ready:
        return "Ready"
    if given_up:
        return "Degraded"
    stored = _stored(observed, pipeline.replica)
    served = stored.get("revision") == pipeline.revision and stored.get("state") in _SERVED
    lost = any(slot.holder is None for slot in pipeline.slots)
    replaced = any(pod.predecessor and pod.restarts for pod in pipeline.holders)
    return "Recovering" if served or lost or replaced else "Starting"


def _stage(
    observed: Observed, pipeline: Pipeline, slot: Slot, removing: bool, given_up: Note | None
) -> StageSituation:
    judged = slot.holder or slot.lost
    if judged is None:
        note = Note(reasons.STAGE_LOST, "it has no pod: one is being made")
        refusal = _refusal(observed.refusals, pipeline.replica, slot.stage)
        return StageSituation(slot.stage, "Lost", note=refusal or note)
    pod, member = judged.pod, judged.member
    state, note_ = judged.state, judged.note
    if pipeline.ready:
        state, note_ = "Ready", None
    if removing:
        state, note_ = "Draining", None
    total = member.bytes_total if member is not None else 0
    found = StageSituation(
        stage=slot.stage,
        state=state,
        pod=pod.name,
        pod_uid=pod.uid,
        node=pod.node,
        restarts=budget.counted(pod, observed.model, observed.now_s),
        bytes_done=member.bytes_done if member is not None else 0,
        bytes_total=total or _bytes(pipeline.made_of, slot.stage),
        bytes_per_s=member.bytes_per_s if member is not None else 0.0,
        note=given_up or note_,
    )
    if state in ("Loaded", "Ready"):
        found = dataclasses.replace(found, bytes_done=found.bytes_total, bytes_per_s=0.0)
    return found


def _first(stages: Sequence[StageSituation], given_up: Mapping[int, Note]) -> Note | None:
    """The note of the stage that keeps the pipeline back the most."""
    if given_up:
        return given_up[min(given_up)]
    noted = [stage for stage in stages if stage.note is not None]
    if not noted:
        return Note(reasons.CONNECTING, "its slices are loaded, the ring is being closed")
    worst = min(noted, key=lambda one: (_RANK.index(one.state), _user_last(one), one.stage))
    assert worst.note is not None, "only stages with a note were taken"
    return Note(worst.note.reason, f"stage {worst.stage}: {worst.note.message}")


def _user_last(stage: StageSituation) -> bool:
    """Among stages in the same state those come first that wait for a user."""
    return stage.note is None or stage.note.reason not in NEEDS_USER


def _refusal(refusals: Sequence[Refusal], replica_: int, stage: int | None = None) -> Note | None:
    for one in refusals:
        if one.replica == replica_ and (stage is None or one.stage == stage):
            return Note(reason_of(one), one.message)
    return None


def reason_of(refusal: Refusal) -> str:
    """Its reason, if it is one of the list."""
    return refusal.reason if refusal.reason in reasons.ALL else reasons.ADMISSION_REFUSED


def _bytes(revision: Revision | None, stage: int) -> int:
    return 0 if revision is None else revision.plan.stages[stage].weight_bytes


def _stored(observed: Observed, index: int) -> Mapping[str, Any]:
    """What the status says of a pipeline."""
    entries = observed.model.status.get("pipelines")
    for entry in entries if isinstance(entries, list | tuple) else ():
        if isinstance(entry, Mapping) and entry.get("replica") == index:
            return entry
    return {}
