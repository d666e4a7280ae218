"""Parts that pods of several roles share: environment, security, images, scheduling.

Knows no role. Where Kubernetes has a sensible default, nothing is written, so that what is stored
is what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamella_contract import names, spec_cluster
from lamella_contract.spec import ShardedModelSpec
from lamella_operator.desired import configs, expand, memory
from lamella_operator.settings import Settings

LOST_NODE_S = 60
"""Seconds after which pods of a node that does not report are deleted; 300 without this.

Where the operator may read nodes it acts long before. Not less: after an outage of the API server
all nodes look lost until they have reported, and with 15 s healthy stages were deleted then.
"""
LOST_NODE_KEYS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

Env = list[dict[str, Any]]


def pod_env(*, replica: bool) -> Env:
    """What only a pod knows; it stands first, for later values refer to it."""
    fields = {names.ENV_POD_IP: "status.podIP", names.ENV_POD_NAME: "metadata.name"}
    if replica:
        fields[names.ENV_POD_UID] = "metadata.uid"
        fields[names.ENV_REPLICA] = f"metadata.labels['{names.LABEL_REPLICA}']"
    return [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in fields.items()
    ]


def common_env(settings: Settings) -> Env:
    """How processes log, where they write, and how they reach a hub."""
    values = {
        "HOME": "/tmp",
        names.ENV_LOG_FORMAT: "json",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if settings.hub_endpoint:
        values[names.ENV_HF_ENDPOINT] = settings.hub_endpoint
    for name, value in settings.proxy:
        # libraries disagree about which spelling counts
        values[name.upper()] = values[name.lower()] = value
    if settings.ca_config_map:
        bundle = f"{configs.CA_DIR}/ca.crt"
        values |= {"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle}
    return [{"name": name, "value": expand.literal(value)} for name, value in values.items()]


def container_security() -> dict[str, Any]:
    """What Pod Security's `restricted` asks of a container, and a root that cannot be written."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def pod_security(*, group: int = 0) -> dict[str, Any]:
    """Names no user: OpenShift and the image choose one. ``group`` is for pods whose claim's file
    system belongs to root otherwise; 0 is none, for OpenShift chooses that too."""
    found: dict[str, Any] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if group:
        found |= {"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"}
    return found


def pod_basics(spec: ShardedModelSpec, settings: Settings) -> dict[str, Any]:
    """Of every pod of a model."""
    cluster = spec.cluster
    found: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
    }
    secrets = dict.fromkeys((*cluster.image_pull_secrets, *settings.image_pull_secrets))
    if secrets:
        found["imagePullSecrets"] = [{"name": name} for name in secrets]
    priority = cluster.priority_class_name or settings.priority_class
    if priority:
        found["priorityClassName"] = priority
    return found


def image(name: str, spec: ShardedModelSpec, settings: Settings) -> dict[str, Any]:
    """A container's image, and when to pull it."""
    policy = spec.cluster.images.pull_policy or settings.pull_policy
    return {"image": name, "imagePullPolicy": policy} if policy else {"image": name}


def disruption(spec: ShardedModelSpec) -> dict[str, str]:
    """Annotations by which autoscalers know whether they may empty a node.

    Pods of an owner that they do not know pin their node otherwise.
    """
    never = spec.cluster.disruption == spec_cluster.DISRUPTION_NEVER
    found = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false" if never else "true"}
    if never:
        found["karpenter.sh/do-not-disrupt"] = "true"
    return found


def lost_node_tolerations() -> list[dict[str, Any]]:
    """Pods of a lost node are deleted after `LOST_NODE_S` seconds, by others than the operator."""
    return [
        {
            "key": key,
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_S,
        }
        for key in LOST_NODE_KEYS
    ]


def tolerations(
    given: Sequence[Mapping[str, Any]], resources: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The manifest's, those of the devices asked for (nodes with GPUs are often tainted by the
    GPU's name), and short ones of lost nodes unless the manifest speaks of them."""
    spoken = {toleration.get("key") for toleration in given}
    found = [dict(toleration) for toleration in given]
    found += [
        {"key": name, "operator": "Exists", "effect": "NoSchedule"}
        for name in memory.devices(resources)
        if name not in spoken and "/" in name
    ]
    return found + [each for each in lost_node_tolerations() if each["key"] not in spoken]


def with_memory(resources: Mapping[str, Any], needed_bytes: int, cpu: str) -> dict[str, Any]:
    """Resources of a container: the manifest's, with memory (request = limit) and a little CPU
    where it asks for none. A request above the limit would be refused, so one follows the other."""
    limits, requests = dict(resources.get("limits") or {}), dict(resources.get("requests") or {})
    needed = memory.mib(needed_bytes)
    limits.setdefault("memory", requests.get("memory", needed))
    requests.setdefault("memory", limits["memory"])
    requests.setdefault("cpu", limits.get("cpu", cpu))
    return {**resources, "limits": limits, "requests": requests}


def probe(path: str, port: str, *, period_s: int, failures: int, timeout_s: int) -> dict[str, Any]:
    """An HTTP probe of a named port."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }
