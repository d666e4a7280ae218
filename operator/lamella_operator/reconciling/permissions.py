"""What the operator asks of the API server: the table that roles are checked against.

``models`` are the namespaces with models, ``own`` is the operator's namespace, ``cluster`` is asked
only when it looks after all namespaces, and done without when it is refused. Secrets are never
listed or watched, a model's spec is never written.
"""

from __future__ import annotations

MODELS, OWN, CLUSTER = "models", "own", "cluster"

_READ = ("get", "list", "watch")
_GROUPS = ("get", "list", "create", "patch", "delete")  # asked for by models that name a gang
_APPLIED = (
    "services",
    "apps/deployments",
    "policy/poddisruptionbudgets",
    "networking.k8s.io/networkpolicies",
)


def _of(resource: str, scope: str, *verbs: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((verb, resource, scope) for verb in verbs)


PERMISSIONS: tuple[tuple[str, str, str], ...] = (
    *_of("lamella.dev/shardedmodels", MODELS, *_READ),
    *_of("lamella.dev/shardedmodels/status", MODELS, "patch"),
    *_of("pods", MODELS, *_READ, "create", "patch", "delete"),
    *_of("apps/controllerrevisions", MODELS, *_READ, "create", "delete"),
    *(
        entry
        for resource in _APPLIED
        for entry in _of(resource, MODELS, *_READ, "create", "patch", "delete")
    ),
    *_of("scheduling.volcano.sh/podgroups", MODELS, *_GROUPS),
    *_of("scheduling.x-k8s.io/podgroups", MODELS, *_GROUPS),
    *_of("persistentvolumeclaims", MODELS, "get"),
    *_of("secrets", MODELS, "get", "create", "delete"),
    *_of("events", MODELS, "create", "patch"),
    *_of("secrets", OWN, "get", "create"),
    *_of("coordination.k8s.io/leases", OWN, "get", "create", "update"),
    *_of("nodes", CLUSTER, "list"),
)
"""(verb, resource as ``group/resource[/subresource]``, scope)."""
