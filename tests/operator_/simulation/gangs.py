"""The systems that place pods together, as the simulated cluster has them.

Kueue by its code's rules: a group is as many pods as its annotation says, counted per role; a pod
that ends counts until it has failed or is gone; of too many the newest that waits is deleted. A
scheduler with PodGroups places a group's pods when there is room for all that wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_things import Forbidden, Pod

from lamella_contract import names
from lamella_operator.desired import gangs

if TYPE_CHECKING:
    from operator_cluster import Cluster

COUNT, ROLE = "kueue.x-k8s.io/pod-group-total-count", "kueue.x-k8s.io/role-hash"


def group_of(pod: Pod) -> str:
    """The group that the pod's marks name; "" for none."""
    meta = pod.manifest["metadata"]
    system = gangs.SYSTEMS.get(gangs.gang_of(pod.manifest))
    return "" if system is None else str(meta[system.part][system.key])


def may_place(cluster: Cluster, pod: Pod) -> bool:
    """Whether the scheduler may look for a node for the pod."""
    group = group_of(pod)
    if not group:
        return True
    members = [one for one in cluster.pods.values() if group_of(one) == group]
    notes = pod.manifest["metadata"]["annotations"]
    if COUNT in notes:
        members, size = _counted(cluster, members), int(notes[COUNT])
        if pod.uid not in cluster.pods:
            return False
    else:
        found = [item for (_, name), item in cluster.objects.items() if name == group]
        if not found:
            raise Forbidden(f"{pod.name} was made before its PodGroup")
        members = [one for one in members if not one.over and one.deleted_s is None]
        size = int(found[0]["spec"]["minMember"])
    waiting = [one for one in members if not one.node]
    room = sum(max(cluster.free(name), 0) for name, node in cluster.nodes.items() if node.ready)
    if len(members) >= size and room >= sum(one.gpus for one in waiting):
        return True
    pod.unschedulable = (
        "Scheduling is blocked due to non-empty scheduling gates"
        if COUNT in notes
        else f"pod group is not ready, {len(waiting)} Pending, {size} minAvailable"
    )
    return False


def _counted(cluster: Cluster, members: list[Pod]) -> list[Pod]:
    """Those that Kueue counts; what is too many of a role is gone."""
    counted = [
        one for one in members if one.phase != "Failed" and (one.deleted_s is None or one.node)
    ]
    size = len({one.labels[names.LABEL_STAGE] for one in counted})
    roles: dict[str, set[str]] = {}
    for one in members:
        role = one.manifest["metadata"]["annotations"][ROLE]
        roles.setdefault(role, set()).add(one.labels[names.LABEL_STAGE])
    assert size <= int(members[0].manifest["metadata"]["annotations"][COUNT])
    for role, stages in roles.items():
        own = [one for one in counted if one.manifest["metadata"]["annotations"][ROLE] == role]
        own.sort(key=lambda one: (not one.held, not one.node, one.created_s, one.uid))
        for extra in own[len(stages) :]:
            counted.remove(extra)
            if extra.deleted_s is None:
                extra.held = False
                cluster.delete(extra, None if extra.node else 0)
    return counted
