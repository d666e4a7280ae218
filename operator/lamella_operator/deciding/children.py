"""Services, budgets, the network policy and the gateways: applied where the live one differs, and
deleted where what they are for is gone.

Knows no pod's fate; it is told which replicas there are and which of them serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lamella_contract import names
from lamella_operator.actions import Action, Apply, Delete
from lamella_operator.deciding.slots import Pipeline
from lamella_operator.desired import children as desired
from lamella_operator.desired import gangs
from lamella_operator.desired.covers import covers
from lamella_operator.revision import Revision
from lamella_operator.settings import Settings
from lamella_operator.views import LiveObject, Manifest, Observed, kind_name

_GROUPS = tuple(
    kind_name({"kind": gangs.POD_GROUP, "apiVersion": one.api_version})
    for one in gangs.SYSTEMS.values()
    if one.api_version
)
_KINDS = ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", *_GROUPS)


def around_pods(
    observed: Observed,
    settings: Settings,
    stages: dict[int, int],
    degraded: Iterable[int],
    pipelines: Sequence[Pipeline],
) -> list[Manifest]:
    """All but the Deployment; ``stages`` is how many each replica has, by replica."""
    model = observed.model
    serving = {one.replica: one.ready for one in pipelines}
    broken = set(degraded)
    guarded = {
        replica: (
            count,
            replica not in broken and (serving.get(replica, False) or _guarded(observed, replica)),
        )
        for replica, count in stages.items()
    }
    return [
        *desired.services(model, sorted(stages)),
        *desired.budgets(model, guarded),
        desired.network_policy(model, settings),
    ]


def gateway(observed: Observed, revision: Revision) -> Manifest:
    """The gateways' Deployment of ``revision``."""
    return desired.gateway(observed.model, revision)


def apply(observed: Observed, wanted: Iterable[Manifest]) -> list[Action]:
    """Applies those that the cluster does not have as they are here."""
    live = {(one.kind, one.name): one.manifest for one in observed.objects}
    found: list[Action] = []
    for manifest in wanted:
        now = live.get((kind_name(manifest), manifest["metadata"]["name"]))
        if now is None or not covers(manifest, now):
            found.append(Apply(manifest))
    return found


def sweep(observed: Observed, wanted: Iterable[Manifest]) -> list[Action]:
    """Deletes those of the model that are not wanted any more."""
    kept = {(kind_name(manifest), manifest["metadata"]["name"]) for manifest in wanted}
    return [
        Delete(one.kind, one.name, one.uid, why="what it was for is gone")
        for one in observed.objects
        if one.kind in _KINDS and (one.kind, one.name) not in kept and _ours(observed, one)
    ]


def _guarded(observed: Observed, replica: int) -> bool:
    """Whether the replica's budget already guards it: it has served before."""
    for one in observed.objects:
        if one.kind != "PodDisruptionBudget":
            continue
        labels = (one.manifest.get("metadata") or {}).get("labels") or {}
        if labels.get(names.LABEL_REPLICA) == str(replica):
            spec = one.manifest.get("spec") or {}
            return bool(spec.get("unhealthyPodEvictionPolicy") == "IfHealthyBudget")
    return False


def _ours(observed: Observed, one: LiveObject) -> bool:
    """What a user labelled like ours is not ours to delete."""
    meta = one.manifest.get("metadata") or {}
    owners = meta.get("ownerReferences") or ()
    return not meta.get("deletionTimestamp") and any(
        owner.get("uid") == observed.model.uid for owner in owners
    )
