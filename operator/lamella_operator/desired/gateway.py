"""The gateways: one Deployment per model, as its revision stores it.

Knows no stage. Gateways are of the model's revision, not of the operator's version: an operator
that is upgraded cuts no stream.
"""

from __future__ import annotations

import copy
from typing import Any

from lamella_contract import names
from lamella_contract.model_uri import PVC
from lamella_operator.desired import configs, expand, labels, object_names, podparts
from lamella_operator.desired import volumes as vol
from lamella_operator.desired.configs import GATEWAY_ROLE, Making
from lamella_operator.revision import Revision
from lamella_operator.views import Manifest, ModelView

CONTAINER = "gateway"
GRACE_S = 600
"""Above the drain (`configs.GATEWAY_DRAIN_S`)."""
CPU_REQUEST = "100m"


def deployment_template(making: Making) -> Manifest:
    """The Deployment without name and number of replicas, which are no matter of a revision."""
    model, spec = making.model, making.spec
    own = labels.labels(model, names.ROLE_GATEWAY)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "labels": own,
            "annotations": {labels.ANNOTATION_LINK_HASH: configs.link_hash(making)},
        },
        "spec": {
            "selector": {"matchLabels": labels.selector(model.uid, names.ROLE_GATEWAY)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "revisionHistoryLimit": 2,
            "template": {
                "metadata": {
                    "labels": labels.merged(spec.cluster.pod_labels, own),
                    "annotations": labels.merged(
                        spec.cluster.pod_annotations, podparts.disruption(spec)
                    ),
                },
                "spec": _pod_spec(making),
            },
        },
    }


def gateway(model: ModelView, revision: Revision) -> Manifest:
    """The Deployment as the revision stores it, with as many gateways as the manifest wants now."""
    assert model.spec is not None, "nothing is made from a manifest that does not parse"
    found: dict[str, Any] = copy.deepcopy(dict(revision.gateway))
    found["metadata"] |= {
        "name": object_names.gateway_name(model.name),
        "namespace": model.namespace,
        "ownerReferences": [labels.owner(model)],
    }
    found["metadata"]["labels"] |= {names.LABEL_REVISION: revision.hash}
    found["spec"]["replicas"] = model.spec.cluster.gateway.replicas
    return found


def _pod_spec(making: Making) -> dict[str, Any]:
    model, spec, settings = making.model, making.spec, making.settings
    mounts = vol.Mounts()
    vol.keys(mounts, model, GATEWAY_ROLE, making.key_generation)
    vol.common(mounts, spec, settings)
    vol.small_cache(mounts)
    vol.api_keys(mounts, spec.cluster.gateway.api_keys_secret)
    mine = {"matchLabels": labels.selector(model.uid, names.ROLE_GATEWAY)}
    # a claim may be reachable from some nodes only, and those are the workers'
    at_claim = spec.model.parsed.scheme == PVC
    found: dict[str, Any] = {
        **podparts.pod_basics(spec, settings),
        "terminationGracePeriodSeconds": GRACE_S,
        # process 1 ignores signals that it has no handler for yet: a gateway that is deleted while
        # it starts would stay for all of its grace period
        "shareProcessNamespace": True,
        "securityContext": podparts.pod_security(),
        "tolerations": podparts.tolerations(spec.tolerations if at_claim else (), {}),
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": mine,
                        },
                    }
                ]
            }
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": copy.deepcopy(mine),
            }
        ],
        "containers": [_container(making, mounts)],
        "volumes": mounts.volumes,
    }
    if at_claim and spec.node_selector:
        found["nodeSelector"] = dict(spec.node_selector)
    return found


def _container(making: Making, mounts: vol.Mounts) -> dict[str, Any]:
    spec, settings = making.spec, making.settings
    config = configs.gateway_config(making, configs.pipeline_config(making))
    return {
        "name": CONTAINER,
        **podparts.image(making.gateway_image, spec, settings),
        "command": ["python", "-m", "lamella_gateway"],
        "env": [
            *podparts.pod_env(replica=False),
            *podparts.common_env(settings),
            {"name": names.ENV_GATEWAY_CONFIG, "value": expand.gateway_value(config)},
        ],
        "ports": [{"name": "http", "containerPort": names.PORT_HTTP}],
        "resources": podparts.with_memory(
            spec.cluster.gateway.resources, settings.gateway_memory_bytes, CPU_REQUEST
        ),
        "readinessProbe": podparts.probe(
            names.PATH_READY, "http", period_s=2, failures=2, timeout_s=2
        ),
        "livenessProbe": podparts.probe(
            names.PATH_HEALTH, "http", period_s=10, failures=9, timeout_s=5
        ),
        "securityContext": podparts.container_security(),
        "terminationMessagePath": configs.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts.mounts,
    }
