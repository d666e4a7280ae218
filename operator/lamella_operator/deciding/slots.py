"""Pods as pipelines: which pod holds which stage now, which ones are in the way.

A slot is one stage of one replica. Several pods may stand in it: one that ends, one that failed and
is kept as evidence, and the newest that lives. Decides nothing about them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lamella_operator.deciding import verdict, words
from lamella_operator.deciding.verdict import Verdict
from lamella_operator.revision import Revision
from lamella_operator.views import Observed, PodView, RingView


@dataclass(frozen=True, slots=True)
class Slot:
    """``holder`` lives and is the stage; ``lost`` is the newest pod that did before it.

    ``extra`` pods live too and should not: another holds the slot. ``past`` are older lost ones.
    """

    stage: int
    holder: Verdict | None = None
    lost: Verdict | None = None
    extra: tuple[PodView, ...] = ()
    past: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """All pods of one replica index. ``revision`` is the hash that most of its stages are of;
    ``made_of`` the revision itself, None when it is not stored (any more) or cannot be read.
    ``strays`` are pods of other revisions, or of stages that the revision does not have.
    """

    replica: int
    revision: str
    made_of: Revision | None
    slots: tuple[Slot, ...]
    strays: tuple[PodView, ...] = ()
    ring: RingView | None = None

    @property
    def stages(self) -> int:
        return len(self.slots)

    @property
    def complete(self) -> bool:
        return all(slot.holder is not None for slot in self.slots)

    @property
    def ready(self) -> bool:
        """It serves: its stage 0 says so, and no stage is lost."""
        head = self.slots[0].holder if self.slots else None
        return self.complete and head is not None and head.pod.ready

    @property
    def headless(self) -> bool:
        """Its stage 0 ends, or is gone: nothing new reaches it."""
        return not self.slots or self.slots[0].holder is None

    @property
    def holders(self) -> list[PodView]:
        return [slot.holder.pod for slot in self.slots if slot.holder is not None]

    @property
    def pods(self) -> list[PodView]:
        """Every pod of the replica."""
        found = list(self.strays)
        for slot in self.slots:
            judged = [one for one in (slot.holder, slot.lost, *slot.past) if one is not None]
            found += [*(one.pod for one in judged), *slot.extra]
        return found

    @property
    def ganged(self) -> bool:
        """Somebody else places its pods, all of them together."""
        return any(pod.gang for pod in self.pods)

    @property
    def created_s(self) -> float:
        """When the oldest pod was made."""
        return min((pod.created_s for pod in self.pods), default=0.0)


def pipelines(
    observed: Observed, stored: Mapping[str, Revision], current: str
) -> tuple[Pipeline, ...]:
    """All replicas that have a pod, by index; ``current`` is the hash of the current revision.

    One that has only pods which not even force removes is left out (`ghosts`).
    """
    by_replica: dict[int, list[PodView]] = {}
    left = {pod.uid for pod in ghosts(observed)}
    for pod in observed.pods:
        if pod.uid not in left:
            by_replica.setdefault(pod.replica, []).append(pod)
    return tuple(
        _pipeline(replica, pods, observed, stored, current)
        for replica, pods in sorted(by_replica.items())
    )


def ghosts(observed: Observed) -> list[PodView]:
    """Pods of replicas that have no others than such as should have been gone long ago.

    Nothing waits for them, but their names and their replica's number are taken.
    """
    real = {pod.replica for pod in observed.pods if not verdict.ghost(pod, observed.now_s)}
    return [pod for pod in observed.pods if pod.replica not in real]


def empty(replica: int, revision: Revision) -> Pipeline:
    """A pipeline that is to be made."""
    slots = tuple(Slot(stage) for stage in range(revision.stages))
    return Pipeline(replica, revision.hash, revision, slots)


def _pipeline(
    replica: int,
    pods: Sequence[PodView],
    observed: Observed,
    stored: Mapping[str, Revision],
    current: str,
) -> Pipeline:
    chosen = _revision_of(pods, current)
    revision = stored.get(chosen)
    of_it = [pod for pod in pods if pod.revision == chosen]
    count = max(pod.stage for pod in of_it) + 1 if revision is None else revision.stages
    ring = observed.rings.get(replica)
    needs = [] if revision is None else [_needs(pod) for pod in revision.pods]
    slots = []
    for stage in range(count):
        judged = [
            verdict.judge(pod, observed.now_s, ring, needs[stage] if needs else None)
            for pod in of_it
            if pod.stage == stage
        ]
        slots.append(_slot(stage, judged))
    slots = _with_counts(slots, needs)
    strays = tuple(pod for pod in pods if pod.revision != chosen or pod.stage >= count)
    return Pipeline(replica, chosen, revision, tuple(slots), strays, ring)


def _revision_of(pods: Sequence[PodView], current: str) -> str:
    """The revision with the most stages that are not being deleted; the current one in doubt."""
    stages = {(pod.revision, pod.stage, pod.deleted_s is None) for pod in pods}
    living = Counter(revision for revision, _, lives in stages if lives)
    every = Counter(revision for revision, _, _ in stages)
    return max(every, key=lambda name: (living[name], every[name], name == current, name))


def _slot(stage: int, judged: Sequence[Verdict]) -> Slot:
    living = [one for one in judged if one.alive]
    lost = newest_first([one for one in judged if not one.alive])
    holder = max(living, key=lambda one: _claim(one, living), default=None)
    extra = tuple(one.pod for one in living if one is not holder)
    return Slot(stage, holder, lost[0] if lost else None, extra, tuple(lost[1:]))


def _claim(one: Verdict, living: Sequence[Verdict]) -> tuple[bool, bool, float, str]:
    """Of two pods that live the ready one holds the slot, else the one that took its place."""
    superseded = any(other.pod.predecessor == one.pod.uid for other in living)
    return (one.pod.ready, not superseded, -one.pod.created_s, one.pod.name)


def newest_first(judged: Iterable[Verdict]) -> list[Verdict]:
    """By age; one that another names as its predecessor is older, whatever the clock says."""
    every = list(judged)
    before = {one.pod.predecessor for one in every}
    return sorted(
        every,
        key=lambda one: (one.pod.uid not in before, one.pod.created_s, one.pod.name),
        reverse=True,
    )


def _with_counts(slots: list[Slot], needs: Sequence[Mapping[str, str]]) -> list[Slot]:
    """Slots whose unplaced pods say how many of their pipeline are placed."""
    holders = [slot.holder for slot in slots if slot.holder is not None]
    placed = sum(holder.pod.scheduled for holder in holders)
    found = []
    for slot in slots:
        holder = slot.holder
        if holder is not None and not holder.pod.scheduled:
            own = needs[slot.stage] if needs else {}
            note = words.unschedulable(holder.pod.unschedulable, own, placed, len(slots))
            slot = dataclasses.replace(slot, holder=dataclasses.replace(holder, note=note))
        found.append(slot)
    return found


def _needs(pod: Mapping[str, object]) -> dict[str, str]:
    """What a pod manifest's containers ask for; a limit is a request where none is given."""
    spec = pod.get("spec")
    containers = spec.get("containers", ()) if isinstance(spec, Mapping) else ()
    needs: dict[str, str] = {}
    for container in containers:
        resources = container.get("resources") or {}
        for part in ("limits", "requests"):
            needs |= {name: str(amount) for name, amount in (resources.get(part) or {}).items()}
    return needs
