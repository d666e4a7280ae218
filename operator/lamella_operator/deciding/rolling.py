"""Which pipelines stay, which are removed and how many are made: scaling and rolling in one rule.

A pipeline is removed when the manifest asks for fewer, or when it is of another revision. One that
serves is removed only while enough others serve (`Bounds.least_ready`); one that does not serve is
removed when that takes nothing from what the rollout may take away. New ones are made up to
`Bounds.most`. The order of removal puts those first whose removal has begun, so that each reconcile
goes on where the one before stopped, without a memory. Pure counting: knows no pod's details.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lamella_contract.spec import ShardedModelSpec
from lamella_operator import reasons
from lamella_operator.actions import Action, Note, Wait
from lamella_operator.deciding import replacing, verdict
from lamella_operator.deciding.slots import Pipeline
from lamella_operator.views import Observed, PodView


@dataclass(frozen=True, slots=True)
class Bounds:
    """Whole pipelines: wanted, at least serving, at most existing."""

    wanted: int
    least_ready: int
    most: int

    @classmethod
    def of(cls, spec: ShardedModelSpec) -> Bounds:
        rollout, wanted = spec.cluster.rollout, spec.replicas
        most = wanted + rollout.max_surge if wanted else 0
        return cls(wanted, max(wanted - rollout.max_unavailable, 0), most)


@dataclass(frozen=True, slots=True)
class Rollout:
    """``keep`` are repaired, ``remove`` are drained, ``make`` are indices of new pipelines.

    ``held`` would be removed now, if the gateways could do without it.
    """

    keep: tuple[Pipeline, ...]
    remove: tuple[Pipeline, ...]
    make: tuple[int, ...]
    held: Pipeline | None = None


def roll(
    pipelines: Sequence[Pipeline],
    current: str,
    bounds: Bounds,
    needed: Iterable[int] = (),
    taken: Iterable[int] = (),
) -> Rollout:
    """One step towards ``bounds.wanted`` pipelines of revision ``current``.

    ``needed`` are replicas that gateways still need while no other serves them; ``taken`` are
    numbers that no new pipeline can have.
    """
    updated = [one for one in pipelines if one.revision == current]
    outdated = [one for one in pipelines if one.revision != current]
    removed: list[Pipeline] = sorted(updated, key=_order)[: max(len(updated) - bounds.wanted, 0)]
    unready_new = sum(not one.ready for one in updated if one not in removed)
    held = None
    kept_for_gateways = set(needed)
    for one in sorted(outdated, key=_order):
        left = [other for other in pipelines if other not in removed and other is not one]
        if one.ready:
            allowed = sum(other.ready for other in left) >= bounds.least_ready
            if allowed and one.replica in kept_for_gateways:
                held = one
                continue
        else:
            spare = len(left) - unready_new >= bounds.least_ready or len(left) >= bounds.most
            allowed = spare or not one.holders  # of an older revision nothing is built up anew
        if allowed:
            removed.append(one)
    keep = tuple(one for one in pipelines if one not in removed)
    missing = bounds.wanted - sum(one.revision == current for one in keep)
    room = bounds.most - len(pipelines)
    numbers = {one.replica for one in pipelines} | set(taken)
    make = _free(numbers, max(min(missing, room), 0))
    return Rollout(keep, tuple(removed), make, held)


def shrink(pipelines: Sequence[Pipeline], wanted: int) -> Rollout:
    """No more than ``wanted`` of what there is, and nothing new: for a manifest without a plan."""
    removed = sorted(pipelines, key=_order)[: max(len(pipelines) - wanted, 0)]
    keep = tuple(one for one in pipelines if one not in removed)
    return Rollout(keep, tuple(removed), ())


def remove(observed: Observed, pipeline: Pipeline) -> list[Action]:
    """The next step of removing ``pipeline``: its stage 0 finishes what it has, then all go.

    A pipeline that has nothing to finish goes at once.
    """
    now_s, why = observed.now_s, "its pipeline is removed"
    rest = [pod for pod in pipeline.pods if not _is_head(pod, pipeline)]
    heads = [pod for pod in pipeline.pods if _is_head(pod, pipeline)]
    actions: list[Action] = []
    for pod in heads:
        actions += replacing.removal(pod, now_s, f"{why}: it finishes its requests")
    if _finishing(pipeline, now_s):
        rest = [pod for pod in rest if pod in pipeline.strays]
        actions.append(Wait(replacing.RETRY_S))
    for pod in rest:
        actions += replacing.removal(pod, now_s, why)
    return actions


def progress(rollout: Rollout, current: str, bounds: Bounds) -> Note | None:
    """How far scaling or rolling has come; None when it is done."""
    every = (*rollout.keep, *rollout.remove)
    updated = [one for one in rollout.keep if one.revision == current]
    outdated = [one for one in every if one.revision != current]
    serving = sum(one.ready for one in updated)
    if outdated:
        text = (
            f"{len(updated)} of {bounds.wanted} pipelines are of revision {current}, {serving} of "
            f"them serve; {len(outdated)} of an older one are left"
        )
        if rollout.held is not None:
            text += f"; pipeline {rollout.held.replica} waits until the gateways have changed"
        return Note(reasons.ROLLING_OUT, text)
    if len(every) != bounds.wanted:
        return Note(reasons.SCALING, f"{len(every)} pipelines, {bounds.wanted} wanted")
    return None


def _order(pipeline: Pipeline) -> tuple[bool, bool, int]:
    """Those first whose removal has begun, then those that do not serve, then the youngest."""
    return (not pipeline.headless, pipeline.ready, -pipeline.replica)


def _free(taken: set[int], count: int) -> tuple[int, ...]:
    """The ``count`` smallest numbers that are not ``taken``."""
    candidates = range(len(taken) + count)
    return tuple([index for index in candidates if index not in taken][:count])


def _is_head(pod: PodView, pipeline: Pipeline) -> bool:
    return pod.stage == 0 and pod.revision == pipeline.revision


def _finishing(pipeline: Pipeline, now_s: float) -> bool:
    """Whether a stage 0 may still have requests: it serves, or was asked to end and has time."""
    if pipeline.ready:
        return True
    if pipeline.ring is not None and pipeline.ring.live_requests > 0 and not pipeline.headless:
        return True
    return any(
        pod.deleted_s is not None and pod.running and not verdict.stuck(pod, now_s)
        for pod in pipeline.pods
        if _is_head(pod, pipeline)
    )
