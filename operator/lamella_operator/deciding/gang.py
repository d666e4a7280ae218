"""Two half-placed pipelines that hold what the other needs: the younger gives way for a while.

All pods of a pipeline are made at once and ungated, so that autoscalers see them; so two models
can each get half of the last GPUs. Who gives way is decided by age, the same way by everyone; the
pause is derived from the model's UID, so that those who gave way do not come back in step. The
status remembers pauses, for a pipeline without pods leaves no other trace.

Where the manifest asks for a gang, its system decides instead. It needs its PodGroup before the
first pod, and Kueue must let go of pods that end (`desired.gangs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime

from lamella_contract.names import LABEL_REPLICA
from lamella_operator.actions import Action, Apply, Release
from lamella_operator.deciding.slots import Pipeline
from lamella_operator.desired import gangs
from lamella_operator.revision import Revision
from lamella_operator.views import Manifest, Observed, PodView

PAUSE_S = 30.0
"""The shortest pause; up to as much again is added."""


def half_placed(pipeline: Pipeline) -> bool:
    """Some of its stages have a node and some wait for one."""
    placed = [pod.scheduled for pod in pipeline.holders]
    return any(placed) and not all(placed)


def waits_too_long(pipeline: Pipeline, now_s: float, timeout_s: float) -> bool:
    """Half-placed, and a stage has waited for a node for ``timeout_s`` seconds.

    Never one that somebody else places as a gang: that one decides who has the nodes.
    """
    return (
        not pipeline.ganged and half_placed(pipeline) and overdue_s(pipeline, now_s, timeout_s) >= 0
    )


def overdue_s(pipeline: Pipeline, now_s: float, timeout_s: float) -> float:
    """Seconds since (below 0: until) its longest-waiting stage has waited for its timeout."""
    waiting = [pod.created_s for pod in pipeline.holders if not pod.scheduled]
    return now_s - min(waiting, default=now_s) - timeout_s


def gives_way(observed: Observed, pipeline: Pipeline, timeout_s: float) -> bool:
    """Whether an older half-placed pipeline waits too."""
    if not waits_too_long(pipeline, observed.now_s, timeout_s):
        return False
    own = (pipeline.created_s, observed.model.uid, pipeline.replica)
    rivals = ((rival.created_s, rival.model_uid, rival.replica) for rival in observed.rivals)
    return any(rival < own for rival in rivals if rival[1:] != own[1:])


def pauses(observed: Observed) -> dict[int, float]:
    """When each replica that still pauses gave way, as the status tells, by replica."""
    found: dict[int, float] = {}
    entries = observed.model.status.get("yields")
    for entry in entries if isinstance(entries, list | tuple) else ():
        replica, at_s = _entry(entry)
        if replica is not None and 0 < left_s(observed, replica, at_s) <= 2 * PAUSE_S:
            found[replica] = at_s
    return found


def left_s(observed: Observed, replica: int, at_s: float) -> float:
    """Seconds that replica ``replica``, which gave way at ``at_s``, still pauses."""
    text = f"{observed.model.uid}/{replica}/{at_s:.0f}".encode()
    share = int.from_bytes(hashlib.sha256(text).digest()[:4], "big") / 2**32
    return at_s + PAUSE_S * (1.0 + share) - observed.now_s


def still(observed: Observed, replicas: Iterable[int]) -> dict[int, float]:
    """The pauses of those replicas that are to be made."""
    every = pauses(observed)
    return {replica: every[replica] for replica in replicas if replica in every}


def replica_group(replica: int) -> str:
    """The `Create.group` of a pipeline that is made whole."""
    return f"replica-{replica}"


def groups(observed: Observed, made_of: Mapping[int, Revision | None]) -> list[Manifest]:
    """The PodGroups of those replicas that are placed by what wants one."""
    found = [
        gangs.group(observed.model, replica, revision)
        for replica, revision in sorted(made_of.items())
        if revision is not None
    ]
    return [one for one in found if one is not None]


def applied_first(steps: Iterable[Action]) -> list[Action]:
    """Applies of PodGroups, each as what the pods of its replica lean on."""
    return [
        Apply(step.manifest, replica_group(int(step.manifest["metadata"]["labels"][LABEL_REPLICA])))
        for step in steps
        if isinstance(step, Apply)
    ]


def held(pod: PodView) -> bool:
    """Whether Kueue keeps the pod's object when it is deleted."""
    return gangs.KUEUE_FINALIZER in pod.finalizers


def let_go(pod: PodView) -> Release:
    """Kueue counts a pod that ends until it is gone, and takes its replacement for one too many."""
    return Release(pod.name, pod.uid, pod.finalizers, gangs.KUEUE_FINALIZER)


def releases(pods: Iterable[PodView]) -> list[Release]:
    """Of all pods that are being deleted and that Kueue holds."""
    return [let_go(pod) for pod in pods if pod.deleted_s is not None and held(pod)]


def _entry(entry: object) -> tuple[int | None, float]:
    """Replica and time of one item of ``status.yields``; the time as seconds or as RFC 3339."""
    if not isinstance(entry, dict) or not isinstance(entry.get("replica"), int):
        return None, 0.0
    return entry["replica"], seconds(entry.get("at"))


def seconds(stamp: object) -> float:
    """Seconds since 1970 of a number or a timestamp; 0.0 for anything else."""
    if isinstance(stamp, int | float) and not isinstance(stamp, bool):
        return float(stamp)
    if not isinstance(stamp, str):
        return 0.0
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (ValueError, OverflowError):
        return 0.0
