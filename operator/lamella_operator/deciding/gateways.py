"""Which revision the gateways' Deployment is of, and for which pipelines it must wait.

Gateways speak only to pipelines of their own link hash. So they change at once where the hash
stays; else when a pipeline of the new revision serves, or none of the old one does; and the last
old pipeline that serves is kept until every gateway has changed and the old ones have finished
their streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.deciding import revisions, verdict, words
from lamella_operator.deciding.slots import Pipeline
from lamella_operator.desired.labels import ANNOTATION_LINK_HASH
from lamella_operator.desired.object_names import gateway_name
from lamella_operator.revision import Revision
from lamella_operator.views import LiveObject, Manifest, Observed, PodView


@dataclass(frozen=True, slots=True)
class Gateways:
    """The live Deployment: the revision and link hash that it is of, and whether all its pods
    have changed to it (``settled``). "" where there is none."""

    revision: str = ""
    link_hash: str = ""
    settled: bool = False


def live(observed: Observed) -> Gateways:
    """What runs now."""
    name = gateway_name(observed.model.name)
    found = next(
        (one for one in observed.objects if one.kind == "Deployment" and one.name == name), None
    )
    if found is None:
        return Gateways()
    meta = found.manifest.get("metadata") or {}
    link_hash = str((meta.get("annotations") or {}).get(ANNOTATION_LINK_HASH, ""))
    ends = any(
        pod.deleted_s is not None and not verdict.ghost(pod, observed.now_s)
        for pod in observed.gateway_pods
    )
    settled = _rolled_out(found) and not ends
    return Gateways(revisions.revision_label(found.manifest), link_hash, settled)


def needed(
    pipelines: Sequence[Pipeline], current: Revision, now: Gateways, known: Mapping[str, Revision]
) -> list[int]:
    """The replica that gateways of another link hash still need: one of those that serve."""
    if not now.link_hash or (now.link_hash == current.link_hash and now.settled):
        return []
    others = [
        one.replica
        for one in pipelines
        if one.ready and _hash_of(one.revision, known) != current.link_hash
    ]
    return sorted(others)[:1]  # the others are removed before it


def wanted(
    pipelines: Sequence[Pipeline],
    current: Revision,
    now: Gateways,
    known: Mapping[str, Revision],
    *,
    held: bool,
) -> Revision:
    """The revision that the Deployment is to be of; ``held``: a removal waits for the gateways."""
    if now.link_hash in ("", current.link_hash) or now.revision not in known:
        return current
    ready = [one for one in pipelines if one.ready]
    updated = any(_hash_of(one.revision, known) == current.link_hash for one in ready)
    old = any(_hash_of(one.revision, known) == now.link_hash for one in ready)
    return current if updated or held or not old else known[now.revision]


def ready(observed: Observed) -> int:
    """Gateways that take requests."""
    return sum(pod.ready and pod.deleted_s is None for pod in observed.gateway_pods)


def note(observed: Observed, wanted_count: int) -> Note | None:
    """Why fewer gateways than wanted take requests."""
    if ready(observed) >= wanted_count:
        return None
    waiting = [pod for pod in observed.gateway_pods if not pod.ready and pod.deleted_s is None]
    if not waiting:
        return Note(reasons.GATEWAY_NOT_READY, "the gateways' pods are being made")
    return _why(min(waiting, key=lambda pod: (pod.running, pod.name)))


def starting(observed: Observed) -> bool:
    """Whether a gateway's container does not run, so that its Secret may be missing."""
    return any(
        pod.scheduled and not pod.running and pod.deleted_s is None for pod in observed.gateway_pods
    )


def _why(pod: PodView) -> Note:
    if pod.phase == "Failed":
        why = words.failed(pod)
    elif not pod.scheduled:
        why = words.unschedulable(pod.unschedulable, {})
    elif not pod.running:
        why = words.waiting(pod)
    else:
        return Note(reasons.GATEWAY_NOT_READY, f"gateway {pod.name} runs and is not ready yet")
    return Note(why.reason, f"gateway {pod.name}: {why.message}")


def _rolled_out(deployment: LiveObject) -> bool:
    manifest = deployment.manifest
    meta, spec = manifest.get("metadata") or {}, manifest.get("spec") or {}
    status: Manifest = manifest.get("status") or {}
    count = spec.get("replicas", 1)
    return bool(
        status.get("observedGeneration", 0) >= meta.get("generation", 0)
        and status.get("updatedReplicas", 0) == count
        and status.get("replicas", 0) == count
        and status.get("availableReplicas", 0) >= count
    )


def _hash_of(revision: str, known: Mapping[str, Revision]) -> str:
    found = known.get(revision)
    return "" if found is None else found.link_hash
