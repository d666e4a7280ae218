"""One pipeline that is to stay: exactly its lost stages are replaced, the others are not touched.

A replacement is named after the pod whose place it takes, so that making it twice makes one. The
failed pod is deleted when its replacement has been seen; one that may still run is deleted by
force at once, for its epoch is over. Knows no other pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella_operator import reasons
from lamella_operator.actions import Action, Create, Delete, Note, Wait
from lamella_operator.deciding import budget, gang, slots, verdict
from lamella_operator.deciding.slots import Pipeline, Slot
from lamella_operator.deciding.verdict import Verdict
from lamella_operator.desired.pods import stage_pod
from lamella_operator.revision import Revision
from lamella_operator.views import Observed, PodView

RETRY_S = 15.0
"""A pod that was made is looked for after this time at the latest: it may have been refused."""


@dataclass(slots=True)
class Repair:
    """What becomes of a pipeline's pods. ``made`` are the stages that get a pod, ``given_up`` says
    of each stage beyond its bound why, ``waits`` are seconds until something is due."""

    first: list[Action] = field(default_factory=list)
    deletes: list[Action] = field(default_factory=list)
    creates: list[Action] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    given_up: dict[int, Note] = field(default_factory=dict)

    @property
    def actions(self) -> list[Action]:
        """In order: a stage's new pod, then what it replaces; but what Kueue holds goes first."""
        return [
            *self.first,
            *self.creates,
            *self.deletes,
            *(Wait(seconds) for seconds in self.waits),
        ]


def repair(observed: Observed, pipeline: Pipeline) -> Repair:
    """Every stage of ``pipeline`` gets a pod from the pipeline's own revision, within bounds."""
    found = Repair()
    whole = all(slot.holder is None and slot.lost is None for slot in pipeline.slots)
    for slot in pipeline.slots:
        if slot.holder is not None:
            _settled(observed, slot, slot.holder, found)
        elif slot.lost is not None:
            _lost(observed, pipeline, slot, slot.lost, found)
        elif pipeline.made_of is not None:
            group = gang.replica_group(pipeline.replica) if whole else ""
            found.creates.append(_new(observed, pipeline.made_of, pipeline, slot.stage, group))
        for old in slot.past:
            _clear(observed, old, found)
    for pod in pipeline.strays:
        found.deletes += removal(pod, observed.now_s, "it is of another revision")
    if found.creates:
        found.waits.append(RETRY_S)
    return found


def clear_ghosts(observed: Observed) -> list[Action]:
    """Pods that nothing waits for any more are still asked to go."""
    return [_force(pod) for pod in slots.ghosts(observed)]


def removal(pod: PodView, now_s: float, why: str) -> list[Action]:
    """Deletes a pod that is not wanted any more, by force where asking was not enough."""
    if verdict.stuck(pod, now_s):
        return [_force(pod)]
    return [_delete(pod, why)] if _deletable(pod) else [Wait(_until_stuck(pod, now_s))]


def _settled(observed: Observed, slot: Slot, holder: Verdict, found: Repair) -> None:
    """The stage has a pod: others in its slot go, and its count is forgotten in time."""
    for pod in slot.extra:
        found.deletes.append(_delete(pod, f"{holder.pod.name} holds its place"))
    if slot.lost is not None:
        _clear(observed, slot.lost, found)
    at_s = budget.forgiven_at_s(holder.pod, observed.model, observed.now_s)
    if at_s is not None:
        found.waits.append(max(at_s - observed.now_s, 1.0))


def _clear(observed: Observed, old: Verdict, found: Repair) -> None:
    """A lost pod whose replacement stands."""
    loss = old.loss
    if verdict.stuck(old.pod, observed.now_s) or (loss is not None and loss.force):
        found.deletes.append(_force(old.pod))
    elif _deletable(old.pod):
        found.deletes.append(_delete(old.pod, "its replacement stands"))
    else:
        found.waits.append(_until_stuck(old.pod, observed.now_s))


def _lost(observed: Observed, pipeline: Pipeline, slot: Slot, lost: Verdict, found: Repair) -> None:
    pod, loss, now_s = lost.pod, lost.loss, observed.now_s
    assert loss is not None, "a pod without loss holds its slot"
    if budget.exhausted(pod, loss, observed.model, now_s):
        found.given_up[slot.stage] = _given_up(observed, slot.stage, lost)
        return
    if verdict.stuck(pod, now_s):
        found.deletes.append(_force(pod))
    elif pod.deleted_s is not None:
        found.waits.append(_until_stuck(pod, now_s))
    if pipeline.made_of is None:
        return
    left = budget.due_s(pod, loss, observed.model, now_s) - now_s
    if left > 0:
        found.waits.append(left)
        return
    count = budget.next_count(pod, loss, observed.model, now_s)
    found.creates.append(_new(observed, pipeline.made_of, pipeline, slot.stage, "", pod.uid, count))
    if loss.force and pod.deleted_s is None:
        if gang.held(pod):
            found.first += [_force(pod), gang.let_go(pod)]
        else:
            found.deletes.append(_force(pod))


def _given_up(observed: Observed, stage: int, lost: Verdict) -> Note:
    loss = lost.loss
    assert loss is not None, "only a lost stage is given up"
    counted = budget.counted(lost.pod, observed.model, observed.now_s)
    after = "a new pod would fail alike" if loss.hopeless else f"{counted + 1} failures in a row"
    return Note(
        reasons.RETRIES_EXHAUSTED if not loss.hopeless else loss.note.reason,
        f"stage {stage} is not replaced again ({after}; change the manifest or set the annotation "
        f"lamella.dev/resume to try again): {loss.note.message}",
    )


def _new(
    observed: Observed,
    revision: Revision,
    pipeline: Pipeline,
    stage: int,
    group: str,
    predecessor: str = "",
    restarts: int = 0,
) -> Create:
    pod = stage_pod(
        revision.pods[stage],
        observed.model,
        replica=pipeline.replica,
        stage=stage,
        revision=revision.hash,
        predecessor=predecessor,
        restarts=restarts,
    )
    return Create(pod, group)


def _until_stuck(pod: PodView, now_s: float) -> float:
    deadline = (pod.deleted_s or now_s) + verdict.STUCK_S
    return max(deadline - now_s, 0.0) + 1.0


def _deletable(pod: PodView) -> bool:
    return pod.deleted_s is None


def _delete(pod: PodView, why: str) -> Delete:
    return Delete("Pod", pod.name, pod.uid, None, why)


def _force(pod: PodView) -> Delete:
    return Delete("Pod", pod.name, pod.uid, 0, "by force: it may never end by itself")
