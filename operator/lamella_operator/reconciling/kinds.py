"""The kinds of objects that the operator reads and writes, and where the API server keeps them.

Knows no client: only paths. Everything else names a kind by its name (``"Pod"``).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from lamella_contract import names


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind; ``prefix`` is the path of its group and version."""

    kind: str
    api_version: str
    plural: str

    @property
    def prefix(self) -> str:
        return f"/apis/{self.api_version}" if "/" in self.api_version else "/api/v1"

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        """The path of a collection (no ``name``), an object, or a subresource of it."""
        parts = [self.prefix]
        if namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts += [self.plural, *(quote(part, safe="") for part in (name, sub) if part)]
        return "/".join(parts)


MODEL = Kind(names.KIND, names.API_VERSION, "shardedmodels")
POD = Kind("Pod", "v1", "pods")
SERVICE = Kind("Service", "v1", "services")
SECRET = Kind("Secret", "v1", "secrets")
EVENT = Kind("Event", "v1", "events")
NODE = Kind("Node", "v1", "nodes")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
REVISION = Kind("ControllerRevision", "apps/v1", "controllerrevisions")
BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
POLICY = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")

APPLIED = (SERVICE, DEPLOYMENT, BUDGET, POLICY)
"""Kinds that are applied, and compared with what is there."""

OWNED = (POD, REVISION, *APPLIED)
"""Kinds that a model owns and that are listed. Secrets are owned too, but never listed."""

WATCHED = (MODEL, *OWNED)

BY_NAME = {kind.kind: kind for kind in (*WATCHED, SECRET, EVENT, LEASE)}
