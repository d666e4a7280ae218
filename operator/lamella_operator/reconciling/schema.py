"""Whether the cluster's CRD knows the fields that this operator reads and writes.

An older CRD prunes what it does not know: a field that a user wrote would be ignored in silence,
and status would lose parts. So models are told CRDTooOld, and nothing else is done, until the CRD
is upgraded. Read from the server's OpenAPI document, which every account may read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lamella_contract import names
from lamella_contract.spec_cluster import CLUSTER_KEYS
from lamella_operator.reconciling.client import Client
from lamella_operator.reconciling.failures import NotFound
from lamella_operator.reconciling.parse import mapping

PATH = f"/openapi/v3/apis/{names.API_VERSION}"
OPEN = "x-kubernetes-preserve-unknown-fields"

NEEDED: tuple[str, ...] = (
    "spec.model.uri",
    "spec.model.revision",
    "spec.model.servedName",
    "spec.model.tokenSecretRef",
    "spec.pipeline.stages",
    "spec.pipeline.stageMemory",
    "spec.pipeline.split",
    "spec.pipeline.dtype",
    "spec.pipeline.quantization",
    "spec.pipeline.device",
    "spec.pipeline.stageSpecs",
    "spec.replicas",
    "spec.context.maxLength",
    "spec.context.maxSequences",
    "spec.resources",
    "spec.nodeSelector",
    "spec.tolerations",
    *(f"spec.{key}" for key in CLUSTER_KEYS),
    *(
        f"status.{key}"
        for key in (
            "observedGeneration",
            "replicas",
            "readyReplicas",
            "updatedReplicas",
            "selector",
            "ready",
            "stages",
            "reason",
            "message",
            "url",
            "commit",
            "currentRevision",
            "updateRevision",
            "profile",
            "plan",
            "conditions",
            "pipelines",
            "omittedStages",
            "failures",
            "resumed",
            "yields",
        )
    ),
)
"""Fields without which the operator cannot do what the manifest says."""


@dataclass(frozen=True, slots=True)
class Schema:
    """``installed``: the cluster knows ShardedModels. ``missing``: fields that it does not know."""

    installed: bool
    missing: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """What to do about it; "" when all is well."""
        if not self.installed:
            return f"the CRD shardedmodels.{names.GROUP} is not installed"
        if not self.missing:
            return ""
        shown = ", ".join(self.missing[:5]) + (", ..." if len(self.missing) > 5 else "")
        return (
            f"the cluster's CRD shardedmodels.{names.GROUP} is older than the operator "
            f"(it does not know {shown}): apply the CRD of the operator's version"
        )


async def read(client: Client) -> Schema:
    """What the API server serves now. Raises `ApiError`."""
    try:
        document = await client.call("GET", PATH)
    except NotFound:
        return Schema(installed=False)
    return compare(document, NEEDED)


def compare(document: Mapping[str, Any], needed: Iterable[str]) -> Schema:
    """Which of ``needed`` (dotted paths) an OpenAPI document of the group does not have."""
    for schema in mapping(document, "components", "schemas").values():
        kinds = mapping(schema).get("x-kubernetes-group-version-kind")
        if isinstance(kinds, list) and any(mapping(one).get("kind") == names.KIND for one in kinds):
            return Schema(True, tuple(path for path in needed if not _has(schema, path)))
    return Schema(installed=False)


def _has(schema: object, path: str) -> bool:
    for key in path.split("."):
        if mapping(schema).get(OPEN) is True:
            return True
        properties = mapping(schema, "properties")
        if key not in properties:
            return False
        schema = properties[key]
    return True
