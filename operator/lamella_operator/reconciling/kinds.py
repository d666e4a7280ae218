"""The kinds of objects that the operator reads and writes, and where the API server keeps them.

Knows no client: only paths. Everything else names a kind by its
name (``"Pod"``, see `views.kind_name`).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from lamella_contract import names
from lamella_operator.desired import gangs
from lamella_operator.views import kind_name


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind; ``prefix`` is the path of its group and version."""

    kind: str
    api_version: str
    plural: str

    @property
    def name(self) -> str:
        """What it is called in actions and views."""
        return kind_name({"kind": self.kind, "apiVersion": self.api_version})

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
CLAIM = Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims")
NODE = Kind("Node", "v1", "nodes")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
REVISION = Kind("ControllerRevision", "apps/v1", "controllerrevisions")
BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
POLICY = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")

GANGS = {
    system: Kind(gangs.POD_GROUP, one.api_version, "podgroups")
    for system, one in gangs.SYSTEMS.items()
    if one.api_version
}
"""The kind of object that a gang is, by the system that places it. Its CRD may be missing: it is
listed for models that ask for that system, and not watched."""

APPLIED = (SERVICE, DEPLOYMENT, BUDGET, POLICY)
"""Kinds that are applied, and compared with what is there."""

OWNED = (POD, REVISION, *APPLIED)
"""Kinds that a model owns and that are listed. Secrets are owned too, but never listed."""

WATCHED = (MODEL, *OWNED)

BY_NAME = {kind.name: kind for kind in (*WATCHED, *GANGS.values(), CLAIM, SECRET, EVENT, LEASE)}
