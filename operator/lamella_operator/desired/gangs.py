"""Gangs: how the systems that place all pods of a pipeline together know which those are.

Knows Kueue's, Volcano's and the scheduler-plugins' marks and no cluster. A revision's templates
carry what is the same in every replica, and the name of the system; the group's name is put in when
a pod is made. A group is of one revision of one replica, so that pods of two shapes never meet in
it. Kueue makes its own object (a Workload) from the pods; the others want a PodGroup beside them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamella_contract import names
from lamella_contract.errors import InvalidSpec
from lamella_contract.spec_cluster import COSCHEDULING, GANG_NONE, KUEUE, VOLCANO, SchedulingSpec
from lamella_operator.desired import labels, object_names
from lamella_operator.revision import Revision
from lamella_operator.views import Manifest, ModelView

VOLCANO_GROUPS = "scheduling.volcano.sh/v1beta1"
COSCHEDULING_GROUPS = "scheduling.x-k8s.io/v1alpha1"
POD_GROUP = "PodGroup"
KUEUE_FINALIZER = "kueue.x-k8s.io/managed"
"""Kueue puts it on pods and, in a group that serves, takes it away only from failed ones that were
replaced: the operator takes it from those that are being deleted, or they would never go."""
VOLCANO_SCHEDULER = "volcano"

_QUEUE, _VOLCANO_QUEUE = "kueue.x-k8s.io/queue-name", "scheduling.volcano.sh/queue-name"
_COUNT = "kueue.x-k8s.io/pod-group-total-count"
_SERVING = "kueue.x-k8s.io/pod-group-serving"  # a group that never finishes
_ROLE = "kueue.x-k8s.io/role-hash"  # pods of one role are counted alike
_MOST_ROLES = 8


@dataclass(frozen=True, slots=True)
class System:
    """Where a pod names its group, and the API version of the group's object ("": it has none)."""

    part: str
    key: str
    api_version: str = ""


SYSTEMS: Mapping[str, System] = {
    KUEUE: System("labels", "kueue.x-k8s.io/pod-group-name"),
    VOLCANO: System("annotations", "scheduling.k8s.io/group-name", VOLCANO_GROUPS),
    COSCHEDULING: System("labels", "scheduling.x-k8s.io/pod-group", COSCHEDULING_GROUPS),
}


def scheduler(scheduling: SchedulingSpec) -> str:
    """The scheduler's name that a stage's pod has; "" is the cluster's default."""
    own = VOLCANO_SCHEDULER if scheduling.gang == VOLCANO else ""
    return scheduling.scheduler_name or own


def marked(pods: Sequence[Manifest], scheduling: SchedulingSpec) -> tuple[Manifest, ...]:
    """A pipeline's templates with all marks but the group's name.

    Raises `InvalidSpec` for stages that are too unlike each other for Kueue.
    """
    if scheduling.gang == GANG_NONE:
        return tuple(pods)
    roles = [_role(pod) for pod in pods] if scheduling.gang == KUEUE else [""] * len(pods)
    if len(set(roles)) > _MOST_ROLES:
        raise InvalidSpec(
            "spec.scheduling.gang",
            scheduling.gang,
            f"another gang, or at most {_MOST_ROLES} kinds of stages ({len(set(roles))} differ in "
            "what they ask for): Kueue counts no more in one group; set limits.memory in "
            "spec.resources, so that stages ask for the same",
        )
    return tuple(
        _marked(pod, scheduling, len(pods), role) for pod, role in zip(pods, roles, strict=True)
    )


def gang_of(pod: Manifest) -> str:
    """The system that places this pod (or template) with its pipeline's others; "" for none."""
    return str((pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_GANG, ""))


def gang_of_revision(revision: Revision | None) -> str:
    """The same of a revision; "" where that is not known."""
    return "" if revision is None else gang_of(revision.pods[0])


def join(meta: dict[str, Any], model: ModelView, replica: int, revision: str) -> None:
    """A pod's metadata name the group of its replica, where its template names a gang."""
    system = SYSTEMS.get(gang_of({"metadata": meta}))
    if system is not None:
        name = object_names.gang_name(model.name, model.uid, replica, revision)
        meta[system.part] = {**meta[system.part], system.key: name}


def group(model: ModelView, replica: int, revision: Revision) -> Manifest | None:
    """The PodGroup of ``replica``; None where its gang has no such object, or it has no gang."""
    pod = revision.pods[0]
    system = SYSTEMS.get(gang_of(pod))
    if system is None or not system.api_version:
        return None
    own = labels.labels(model, names.ROLE_STAGE, replica=str(replica), revision=revision.hash)
    name = object_names.gang_name(model.name, model.uid, replica, revision.hash)
    spec: dict[str, Any] = {"minMember": revision.stages}
    if system.api_version == VOLCANO_GROUPS:
        queue = pod["metadata"]["annotations"].get(_VOLCANO_QUEUE)
        priority = pod["spec"].get("priorityClassName")
        spec |= {"queue": queue} if queue else {}
        spec |= {"priorityClassName": priority} if priority else {}
    return {
        "apiVersion": system.api_version,
        "kind": POD_GROUP,
        "metadata": labels.metadata(model, name, own),
        "spec": spec,
    }


def _marked(pod: Manifest, scheduling: SchedulingSpec, stages: int, role: str) -> Manifest:
    meta = copy.deepcopy(pod["metadata"])
    notes: dict[str, str] = {names.ANNOTATION_GANG: scheduling.gang}
    queue = scheduling.queue_name
    if scheduling.gang == KUEUE:
        meta["labels"][_QUEUE] = queue
        notes |= {_COUNT: str(stages), _SERVING: "true", _ROLE: role}
    elif scheduling.gang == VOLCANO and queue:
        notes[_VOLCANO_QUEUE] = queue
    meta["annotations"] = {**meta["annotations"], **notes}
    return {**pod, "metadata": meta}


def _role(pod: Manifest) -> str:
    """Equal for pods that ask for the same; what they merely prefer is left out."""
    spec = pod["spec"]
    asked = [container["resources"] for container in spec["containers"]]
    hard = [asked, spec.get("nodeSelector"), spec.get("tolerations")]
    return object_names.digest(json.dumps(hard, sort_keys=True), 8)
