"""One decision: from what is seen now to what to do next. Level-triggered, stateless, pure.

The steps, which the code below carries as numbers:

1. A model that is being deleted: nothing; the garbage collector takes what it owns.
2. A manifest that does not parse, or that these settings refuse: frozen. Lost stages are rebuilt
   from their own revision, nothing else changes.
3. The model's profile, from the status or from an inspector pod.
4. The revision that the manifest asks for: a stored one, else a new one, planned now. Refused like
   2 where a claim that it names is missing, or cannot be mounted on all the nodes it is needed on.
   While the profile is missing, the one that this manifest led to before, if it is stored.
5. Which pipelines stay, go and come: scaling and rolling. Without a revision (the profile or the
   plan is missing) what runs is kept and repaired, and only scaled down.
6. A half-placed pipeline gives way to an older one.
7. Lost stages are replaced, within bounds; new pipelines are made whole.
8. Services, budgets, policy and gateways are applied where they differ, or deleted.
9. Keys exist before the pods that mount them; old revisions go.
10. ``spec.paused``: all of this is found out and told, and nothing of it is done, repairs included.

What Kueue holds and somebody deletes is let go before anything else, in a paused model too.
"""

from __future__ import annotations

from collections.abc import Sequence

from lamella_operator import reasons
from lamella_operator.actions import Action, Decision, Note, Wait
from lamella_operator.deciding import (
    children,
    claims,
    gang,
    gateways,
    keys,
    replacing,
    resolving,
    revisions,
    rolling,
    slots,
    telling,
)
from lamella_operator.deciding.course import Course
from lamella_operator.deciding.revisions import Target
from lamella_operator.deciding.rolling import Bounds, Rollout
from lamella_operator.revision import Revision
from lamella_operator.settings import Settings
from lamella_operator.views import Manifest, Observed

LEAST_WAIT_S = 0.5


def decide(observed: Observed, settings: Settings) -> Decision:
    """What to do now with ``observed.model``, in order, and what was found."""
    model = observed.model
    if model.deleting:  # 1
        return Decision((), telling.deleting(observed))
    course = Course(revisions.stored(observed))
    if model.spec is None:  # 2
        course.refused = Note(reasons.INVALID_SPEC, model.problem)
    else:
        _find_target(observed, settings, course)
    course.current = course.current or revisions.newest_in_use(observed, course.known)
    course.pipelines = slots.pipelines(observed, course.known, course.hash)
    actions = _act(observed, settings, course)
    situation = telling.situation(observed, course)
    if situation.paused:  # 10
        return Decision(tuple(gang.releases(observed.pods)), situation)
    return Decision(_one_wait(actions), situation)


def wants_rivals(observed: Observed) -> bool:
    """Whether a pipeline has been half-placed for its timeout, so that it matters who else is."""
    spec = observed.model.spec
    if spec is None or observed.model.deleting or spec.cluster.paused:
        return False
    timeout_s = spec.cluster.scheduling.timeout_s
    every = slots.pipelines(observed, revisions.stored(observed), "")
    return any(gang.waits_too_long(one, observed.now_s, timeout_s) for one in every)


def _find_target(observed: Observed, settings: Settings, course: Course) -> None:
    missing = claims.missing(observed)
    if missing is not None and not observed.revisions:
        course.refused = missing  # an inspector would wait in vain
        return
    course.resolution = resolving.resolve(observed, settings)  # 3
    if course.resolution.profile is None:
        again = revisions.matching(observed, course.known)
        if again is not None:
            course.target, course.current = Target(again, again.plan), again
        return
    found = revisions.target(observed, course.resolution.profile, course.known, settings)  # 4
    if found.plan is not None and found.refused is None:
        why = claims.refused(observed, len(found.plan.stages))
        found = found if why is None else Target(plan=found.plan, refused=why)
    course.target, course.refused, course.current = found, found.refused, found.revision
    if found.revision is not None:
        course.known = {**course.known, found.revision.hash: found.revision}


def _act(observed: Observed, settings: Settings, course: Course) -> list[Action]:
    spec = observed.model.spec
    first: list[Action] = []
    if course.refused is not None and course.refused.reason in claims.REASONS:
        first.append(Wait(claims.AGAIN_S))
    if course.resolution is not None:
        first += course.resolution.actions
    if course.target is not None:
        first += course.target.actions
    now = gateways.live(observed)
    course.rollout = _rollout(observed, course, now)  # 5
    pods = [*gang.releases(observed.pods), *_give_way(observed, course)]  # 6
    groups = _groups(observed, course)
    pods += gang.applied_first(children.apply(observed, groups))
    pods += _pods(observed, course)  # 7
    removals = [step for one in course.rollout.remove for step in rolling.remove(observed, one)]
    around: list[Action] = []
    if spec is not None and course.refused is None:
        around = _around(observed, settings, course, now, groups)  # 8
    made_from = _made_from(course)
    secrets = keys.ensure(observed, [*pods, *around], made_from)  # 9
    old: list[Action] = []
    if course.target is not None and course.target.revision is not None:
        old = revisions.garbage(observed, {course.hash})
    ghosts = replacing.clear_ghosts(observed)
    return [*first, *secrets, *pods, *around, *removals, *ghosts, *old]


def _rollout(observed: Observed, course: Course, now: gateways.Gateways) -> Rollout:
    spec = observed.model.spec
    if spec is None or course.refused is not None:
        return Rollout(course.pipelines, (), ())
    if course.target is None or course.target.revision is None:
        return rolling.shrink(course.pipelines, spec.replicas)
    bounds = Bounds.of(spec)
    needed: list[int] = []
    if bounds.wanted:
        revision = course.target.revision
        needed = gateways.needed(course.pipelines, revision, now, course.known)
    taken = {pod.replica for pod in slots.ghosts(observed)}
    return rolling.roll(course.pipelines, course.hash, bounds, needed, taken)


def _give_way(observed: Observed, course: Course) -> list[Action]:
    """Deletes of pipelines that yield now, or have begun to; and pauses of those to be made."""
    spec = observed.model.spec
    if spec is None or course.refused is not None:
        return []
    timeout_s = spec.cluster.scheduling.timeout_s
    actions: list[Action] = []
    pausing = gang.pauses(observed)
    for one in course.rollout.keep:
        yields = gang.gives_way(observed, one, timeout_s)
        if yields or (one.replica in pausing and not one.ready):
            course.yielding.add(one.replica)
            course.pauses[one.replica] = pausing.get(one.replica, observed.now_s)
            for pod in one.pods:
                actions += replacing.removal(pod, observed.now_s, "it gives way to an older one")
            actions.append(Wait(replacing.RETRY_S))
        elif gang.half_placed(one):
            left = -gang.overdue_s(one, observed.now_s, timeout_s)
            actions.append(Wait(left if left > 0 else replacing.RETRY_S))
    for index in course.rollout.make:
        refused = any(one.replica == index and one.stage is not None for one in observed.refusals)
        if index in pausing or refused:
            course.pauses[index] = pausing.get(index, observed.now_s)
            left = gang.left_s(observed, index, course.pauses[index])
            actions.append(Wait(left))
    course.make = tuple(index for index in course.rollout.make if index not in course.pauses)
    return actions


def _pods(observed: Observed, course: Course) -> list[Action]:
    actions: list[Action] = []
    for one in course.rollout.keep:
        if one.replica in course.yielding:
            continue
        repair = replacing.repair(observed, one)
        if repair.given_up:
            course.given_up[one.replica] = repair.given_up
        actions += repair.actions
    if course.current is not None:
        for index in course.make:
            actions += replacing.repair(observed, slots.empty(index, course.current)).actions
    return actions


def _around(
    observed: Observed,
    settings: Settings,
    course: Course,
    now: gateways.Gateways,
    groups: Sequence[Manifest],
) -> list[Action]:
    if course.current is None:
        return []
    rollout, current = course.rollout, course.current
    stages = {one.replica: one.stages for one in (*rollout.keep, *rollout.remove)}
    stages |= dict.fromkeys(course.make, current.stages)
    if course.target is None or course.target.revision is None:
        chosen = course.known.get(now.revision, current)
    else:
        held = rollout.held is not None
        chosen = gateways.wanted(course.pipelines, current, now, course.known, held=held)
    wanted: list[Manifest] = [
        *children.around_pods(observed, settings, stages, course.given_up, course.pipelines),
        children.gateway(observed, chosen),
    ]
    waits: list[Action] = [Wait(replacing.RETRY_S)] if rollout.held is not None else []
    swept = children.sweep(observed, [*wanted, *groups])
    return [*children.apply(observed, wanted), *swept, *waits]


def _groups(observed: Observed, course: Course) -> list[Manifest]:
    """The PodGroups of every pipeline that there is or is to be."""
    every = (*course.rollout.keep, *course.rollout.remove)
    made_of = {one.replica: one.made_of for one in every}
    return gang.groups(observed, made_of | dict.fromkeys(course.make, course.current))


def _made_from(course: Course) -> list[Revision]:
    used = [one.made_of for one in course.pipelines]
    return [one for one in (course.current, *used) if one is not None]


def _one_wait(actions: Sequence[Action]) -> tuple[Action, ...]:
    """The actions, and of all waits the shortest, last."""
    waits = [action.after_s for action in actions if isinstance(action, Wait)]
    found = [action for action in actions if not isinstance(action, Wait)]
    return (*found, *([Wait(max(min(waits), LEAST_WAIT_S))] if waits else []))
