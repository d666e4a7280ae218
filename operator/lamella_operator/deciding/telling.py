"""The situation of a whole model, made from what a decision found on its course.

Knows no action. The order in which notes win is here: what the user must do comes first.
"""

from __future__ import annotations

from lamella_contract.model_uri import HF
from lamella_contract.spec_cluster import EMPTY_DIR
from lamella_operator import reasons
from lamella_operator.actions import Note, ReplicaSituation, Situation
from lamella_operator.deciding import budget, gang, gateways, rolling
from lamella_operator.deciding import situation as parts
from lamella_operator.deciding.course import Course
from lamella_operator.deciding.rolling import Bounds
from lamella_operator.desired import planning
from lamella_operator.views import Observed


def deleting(observed: Observed) -> Situation:
    """Of a model whose objects the garbage collector takes."""
    return Situation(rolling=Note(reasons.DELETING, "the model is being deleted"))


def situation(observed: Observed, course: Course) -> Situation:
    """Everything that the status tells."""
    model, spec = observed.model, observed.model.spec
    found, target = course.resolution, course.target
    replicas = _replicas(observed, course)
    unresolved = found.why if found is not None and target is None else None
    wanted_gateways = spec.cluster.gateway.replicas if spec is not None else 0
    plan = course.current.plan if course.current is not None else None
    if target is not None and target.plan is not None:
        plan = target.plan
    return Situation(
        refused=course.refused,
        unresolved=unresolved,
        unplanned=target.unplanned if target is not None else None,
        degraded=_degraded(observed, course),
        rolling=_rolling(observed, course),
        paused=spec is not None and spec.cluster.paused,
        profile=found.profile if found is not None else None,
        profile_message=found.message if found is not None else "",
        profile_key=found.key if found is not None else "",
        inspect_attempts=found.attempts if found is not None else 0,
        plan=plan,
        revision=course.hash,
        replicas=replicas,
        wanted_replicas=spec.replicas if spec is not None else len(course.pipelines),
        gateways_ready=gateways.ready(observed),
        gateways_wanted=wanted_gateways,
        gateway_note=gateways.note(observed, wanted_gateways) if course.current else None,
        recovery_needs_hub=spec is not None
        and spec.cluster.cache.kind == EMPTY_DIR
        and spec.model.parsed.scheme == HF,
        capacity_known=spec is None or planning.capacity_known(spec),
        resumed=budget.resume_of(model),
        yielded_s=tuple(sorted(course.pauses.items())),
        failures=parts.failures(course.pipelines),
    )


def _replicas(observed: Observed, course: Course) -> tuple[ReplicaSituation, ...]:
    removing = {one.replica for one in course.rollout.remove}
    found = {
        one.replica: parts.replica(
            observed,
            one,
            course.hash,
            removing=one.replica in removing,
            given_up=course.given_up.get(one.replica),
        )
        for one in course.pipelines
    }
    if course.current is not None:
        for index in course.make:
            found[index] = parts.planned(observed, index, course.current)
        for index, at_s in course.pauses.items():
            left_s = gang.left_s(observed, index, at_s)
            found[index] = parts.yielded(observed, index, course.current, left_s)
    return tuple(found[index] for index in sorted(found))


def _degraded(observed: Observed, course: Course) -> Note | None:
    """What needs the user."""
    for replica, given_up in sorted(course.given_up.items()):
        note = given_up[min(given_up)]
        return Note(note.reason, f"pipeline {replica}: {note.message}")
    if course.resolution is not None and course.resolution.stalled and course.target is None:
        return course.resolution.why
    for refusal in observed.refusals:
        if refusal.stage is None:  # a Service or the like; a pod's is told by its pipeline
            return Note(parts.reason_of(refusal), refusal.message)
    for one in course.rollout.keep:
        if one.made_of is None and not one.complete:
            text = f"pipeline {one.replica}: its revision {one.revision} is not stored any more"
            return Note(reasons.UNKNOWN_REVISION, f"{text}, so its lost stages cannot be rebuilt")
    return parts.needs_user(observed, course.pipelines)


def _rolling(observed: Observed, course: Course) -> Note | None:
    spec = observed.model.spec
    if spec is None or course.target is None or course.target.revision is None:
        return None
    return rolling.progress(course.rollout, course.hash, Bounds.of(spec))
