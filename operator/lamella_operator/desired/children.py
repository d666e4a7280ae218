"""What a model has beside pods: Services, disruption budgets, a network policy, gateways.

Knows no cluster. All of these are applied as they are here in each reconcile that finds them
otherwise; none names a revision's contents but the gateways' Deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from lamella_contract import names
from lamella_operator.desired import labels, object_names
from lamella_operator.desired.gateway import gateway
from lamella_operator.settings import Settings
from lamella_operator.views import Manifest, ModelView

__all__ = ["budgets", "gateway", "gateway_budget", "network_policy", "services", "url"]

HTTPS = 443
DNS = 53


def services(model: ModelView, replicas: Sequence[int]) -> list[Manifest]:
    """The clients' Service, the one that finds stage 0s, and one per replica in ``replicas``."""
    own = labels.selector(model.uid, names.ROLE_GATEWAY)
    heads = labels.selector(model.uid, names.ROLE_STAGE, stage=0)
    found: list[Manifest] = [
        _service(model, object_names.service_name(model.name), own, "http", names.PORT_HTTP),
        _headless(
            model, object_names.heads_name(model.name), heads, "gateway", names.PORT_GATEWAY_LINK
        ),
    ]
    for replica in sorted(replicas):
        ring = labels.selector(model.uid, names.ROLE_STAGE, replica=replica, stage=0)
        name = object_names.ring_name(model.name, replica)
        found.append(
            _headless(model, name, ring, "control", names.PORT_CONTROL, replica=str(replica))
        )
    return found


def url(model: ModelView, settings: Settings) -> str:
    """Where clients in the cluster find the OpenAI endpoint."""
    host = object_names.host(
        object_names.service_name(model.name), model.namespace, settings.cluster_domain
    )
    return f"http://{host}:{names.PORT_HTTP}/v1"


def budgets(model: ModelView, guarded: Mapping[int, tuple[int, bool]]) -> list[Manifest]:
    """The gateways' budget and one per replica in ``guarded``: (stages, whether it serves well).

    At most one pod of a pipeline is evicted at a time; of one that serves well, and only then, an
    eviction waits until all of it is ready. The number is an integer: a percentage would count
    pipelines, and all pods of one would go at once.
    """
    found = [gateway_budget(model)]
    for replica, (stages, healthy) in sorted(guarded.items()):
        wanted = labels.selector(model.uid, names.ROLE_STAGE, replica=replica)
        spec = {
            "minAvailable": stages - 1,
            "selector": {"matchLabels": wanted},
            "unhealthyPodEvictionPolicy": "IfHealthyBudget" if healthy else "AlwaysAllow",
        }
        name = object_names.budget_name(model.name, replica)
        found.append(_budget(model, name, names.ROLE_STAGE, spec, replica=str(replica)))
    return found


def gateway_budget(model: ModelView) -> Manifest:
    """One gateway at a time."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": labels.selector(model.uid, names.ROLE_GATEWAY)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    name = object_names.gateway_budget_name(model.name)
    return _budget(model, name, names.ROLE_GATEWAY, spec)


def network_policy(model: ModelView, settings: Settings) -> Manifest:
    """Who may speak to this model's pods: its own pods, those who watch it, and clients."""
    same = {"podSelector": {"matchLabels": {names.LABEL_MODEL_UID: model.uid}}}
    links = {"port": names.PORT_GATEWAY_LINK, "endPort": names.PORT_DATA, "protocol": "TCP"}
    watchers = dict.fromkeys(filter(None, (settings.namespace, settings.metrics_namespace)))
    spec: dict[str, Any] = {
        "podSelector": {
            "matchLabels": {names.LABEL_MODEL_UID: model.uid},
        },
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [same], "ports": [links]},
            {"from": [_namespace(name) for name in watchers], "ports": [_tcp(names.PORT_PROBES)]},
            {"ports": [_tcp(names.PORT_HTTP)]},
        ],
    }
    if settings.restrict_egress:
        spec["policyTypes"] = ["Ingress", "Egress"]
        spec["egress"] = [
            {"to": [same], "ports": [links]},
            {"ports": [{"port": DNS, "protocol": "UDP"}, _tcp(DNS)]},
            {"ports": [_tcp(port) for port in _outside(settings)]},
        ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": labels.metadata(
            model, object_names.policy_name(model.name), labels.labels(model)
        ),
        "spec": spec,
    }


def _outside(settings: Settings) -> list[int]:
    """Ports on which a hub, a mirror or a proxy is reached."""
    ports = {HTTPS}
    addresses = [value for name, value in settings.proxy if name.upper() != "NO_PROXY"]
    for address in filter(None, (settings.hub_endpoint, *addresses)):
        parts = urlsplit(address if "//" in address else f"//{address}")
        ports.add(parts.port or (80 if parts.scheme == "http" else HTTPS))
    return sorted(ports)


def _service(
    model: ModelView, name: str, chosen: Mapping[str, str], port_name: str, port: int, **more: str
) -> dict[str, Any]:
    role = chosen[names.LABEL_ROLE]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": labels.metadata(model, name, labels.labels(model, role, **more)),
        "spec": {
            "type": "ClusterIP",
            "selector": dict(chosen),
            "ports": [
                {"name": port_name, "port": port, "targetPort": port, "protocol": "TCP"},
            ],
        },
    }


def _headless(
    model: ModelView, name: str, chosen: Mapping[str, str], port_name: str, port: int, **more: str
) -> dict[str, Any]:
    """Addresses of pods; of those too that are not ready, for a ring is closed before it is."""
    found = _service(model, name, chosen, port_name, port, **more)
    found["spec"] |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return found


def _budget(
    model: ModelView, name: str, role: str, spec: Mapping[str, Any], **more: str
) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": labels.metadata(model, name, labels.labels(model, role, **more)),
        "spec": dict(spec),
    }


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(port: int) -> dict[str, Any]:
    return {"port": port, "protocol": "TCP"}
