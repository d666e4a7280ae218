"""Pods of stages: one template per stage, and a pod for one place in one replica.

Knows no cluster. A template is what a revision stores; a pod adds its name, its replica's label,
where it comes from, its gang and its owner; so pods of one stage and one revision are equal
otherwise.
"""

from __future__ import annotations

import copy
from typing import Any

from lamella_contract import names
from lamella_contract.plan import Plan
from lamella_contract.profile import ModelProfile
from lamella_contract.spec import ShardedModelSpec, StageSpec
from lamella_operator.desired import configs, expand, gangs, labels, memory, object_names, podparts
from lamella_operator.desired import volumes as vol
from lamella_operator.desired.configs import Making, PublicKey
from lamella_operator.settings import Settings
from lamella_operator.views import Manifest, ModelView

CONTAINER = "stage"
DRAIN_SPARE_S = 15
"""Seconds beyond the drain in which a stage must have ended."""
EXIT_S = 15
"""Grace of stages that have nothing to drain."""
LIVE_PERIOD_S = 10
IMPORT_S = 60
"""Within which the parent answers /livez at the latest: imports take that long on a slow disk."""
CPU_REQUESTS = {memory.CUDA: "250m", memory.CPU: "1"}
"""Where the manifest asks for none: a stage without a share is starved by any neighbour."""
NEAR_WEIGHT = 50


def stage_templates(
    model: ModelView,
    profile: ModelProfile,
    plan: Plan,
    settings: Settings,
    public_key: PublicKey,
) -> tuple[Manifest, ...]:
    """One pod manifest per stage, without name, replica and predecessor; ``model.spec`` parses."""
    return templates(making_of(model, profile, plan, settings, public_key))


def making_of(
    model: ModelView,
    profile: ModelProfile,
    plan: Plan,
    settings: Settings,
    public_key: PublicKey,
) -> Making:
    """All that a revision is made from, as one value."""
    assert model.spec is not None, "nothing is made from a manifest that does not parse"
    return Making(model, model.spec, profile, plan, settings, public_key)


def templates(making: Making) -> tuple[Manifest, ...]:
    """The pod manifest of each stage. Raises `InvalidSpec` for a gang that cannot hold them."""
    every = [_template(making, stage) for stage in range(making.stages)]
    return gangs.marked(every, making.spec.cluster.scheduling)


def stage_pod(
    template: Manifest,
    model: ModelView,
    *,
    replica: int,
    stage: int,
    revision: str,
    predecessor: str,
    restarts: int,
) -> Manifest:
    """The pod that takes ``predecessor``'s place (a UID; "" for the first in it).

    ``restarts`` counts the predecessors that failed in this place.
    """
    pod: dict[str, Any] = copy.deepcopy(dict(template))
    before = predecessor or object_names.first_of(model.uid, revision)
    meta = pod["metadata"]
    meta["name"] = object_names.stage_pod_name(model.name, replica, stage, before)
    meta["namespace"] = model.namespace
    meta["ownerReferences"] = [labels.owner(model)]
    meta["labels"] |= {names.LABEL_REPLICA: str(replica), names.LABEL_REVISION: revision}
    gangs.join(meta, model, replica, revision)
    meta["annotations"] = {
        **meta.get("annotations", {}),
        names.ANNOTATION_PREDECESSOR: predecessor,
        names.ANNOTATION_RESTARTS: str(restarts),
        names.ANNOTATION_RESUME: model.annotations.get(names.ANNOTATION_RESUME, ""),
    }
    return pod


def _template(making: Making, stage: int) -> Manifest:
    cluster = making.spec.cluster
    own = labels.labels(making.model, names.ROLE_STAGE, stage=str(stage))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "labels": labels.merged(cluster.pod_labels, own),
            "annotations": labels.merged(cluster.pod_annotations, podparts.disruption(making.spec)),
        },
        "spec": _pod_spec(making, stage),
    }


def _pod_spec(making: Making, stage: int) -> dict[str, Any]:
    spec, cluster = making.spec, making.spec.cluster
    own = _own(spec, stage)
    resources = memory.resources_of(spec, stage)
    mounts = vol.Mounts()
    vol.keys(mounts, making.model, names.stage_role(stage), making.key_generation)
    vol.common(mounts, spec, making.settings)
    vol.stage_cache(mounts, spec, making.plan.stages[stage], making.settings, is_hub=making.is_hub)
    found: dict[str, Any] = {
        **podparts.pod_basics(spec, making.settings),
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": cluster.drain_s + DRAIN_SPARE_S if stage == 0 else EXIT_S,
        "securityContext": podparts.pod_security(
            group=making.settings.fs_group if vol.needs_group(spec) else 0
        ),
        "tolerations": podparts.tolerations(own.tolerations or spec.tolerations, resources),
        "containers": [_container(making, stage, mounts)],
        "volumes": mounts.volumes,
    }
    if cluster.runtime_class_name:
        found["runtimeClassName"] = cluster.runtime_class_name
    if scheduler := gangs.scheduler(cluster.scheduling):
        found["schedulerName"] = scheduler
    if selector := own.node_selector or spec.node_selector:
        found["nodeSelector"] = dict(selector)
    if affinity := _affinity(making, stage):
        found["affinity"] = affinity
    return found


def _container(making: Making, stage: int, mounts: vol.Mounts) -> dict[str, Any]:
    spec, settings = making.spec, making.settings
    config = configs.stage_config(making, configs.pipeline_config(making), stage)
    resources = memory.resources_of(spec, stage)
    ports = {"probes": names.PORT_PROBES, "live": names.PORT_LIVE, "data": names.PORT_DATA}
    if stage == 0:
        ports |= {"gateway": names.PORT_GATEWAY_LINK, "control": names.PORT_CONTROL}
    return {
        "name": CONTAINER,
        **podparts.image(making.worker_image, spec, settings),
        "command": ["python", "-m", "lamella_worker"],
        "env": [
            *podparts.pod_env(replica=True),
            *podparts.common_env(settings),
            {"name": "OMP_NUM_THREADS", "value": str(config.threads)},
            {"name": names.ENV_STAGE_CONFIG, "value": expand.stage_value(config)},
        ],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": podparts.with_memory(
            resources,
            memory.host_memory(making.plan, stage, spec, settings),
            CPU_REQUESTS[config.device],
        ),
        "readinessProbe": podparts.probe(
            names.PATH_READY, "probes", period_s=2, failures=2, timeout_s=2
        ),
        "livenessProbe": _liveness(spec.cluster.recovery.replace_after_s),
        "securityContext": podparts.container_security(),
        "terminationMessagePath": configs.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts.mounts,
    }


def _liveness(replace_after_s: int) -> dict[str, Any]:
    """The parent kills a child that hangs, after ``replace_after_s``; the kubelet kills a parent
    that hangs, later than that and later than any import, and without a grace that it cannot use.
    """
    patience_s = max(replace_after_s, IMPORT_S) + 3 * LIVE_PERIOD_S
    found = podparts.probe(
        names.PATH_LIVE,
        "live",
        period_s=LIVE_PERIOD_S,
        failures=-(-patience_s // LIVE_PERIOD_S),
        timeout_s=5,
    )
    return {**found, "terminationGracePeriodSeconds": 1}


def _own(spec: ShardedModelSpec, stage: int) -> StageSpec:
    each = spec.pipeline.stage_specs
    return each[stage] if stage < len(each) else StageSpec()


def _affinity(making: Making, stage: int) -> dict[str, Any]:
    """The manifest's, and near the stage before in the same replica where there is room.

    `matchLabelKeys` puts the pod's own replica into the selector, so that the template need not.
    """
    found: dict[str, Any] = copy.deepcopy(dict(making.spec.cluster.affinity))
    if stage == 0:
        return found
    before = labels.selector(making.model.uid, names.ROLE_STAGE, stage=stage - 1)
    near = {
        "weight": NEAR_WEIGHT,
        "podAffinityTerm": {
            "topologyKey": making.spec.cluster.scheduling.topology_key,
            "labelSelector": {"matchLabels": before},
            "matchLabelKeys": [names.LABEL_REPLICA],
        },
    }
    pods = dict(found.get("podAffinity") or {})
    key = "preferredDuringSchedulingIgnoredDuringExecution"
    pods[key] = [*(pods.get(key) or []), near]
    return {**found, "podAffinity": pods}
