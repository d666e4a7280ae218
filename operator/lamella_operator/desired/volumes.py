"""Volumes of a model's pods, and where containers find them.

Knows paths and kinds of volume, no containers. One `Mounts` per pod gathers both lists, so that a
volume cannot be without its mount.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella_contract import spec_cluster
from lamella_contract.errors import InvalidSpec
from lamella_contract.model_uri import OCI, PVC
from lamella_contract.plan import StagePlan
from lamella_contract.spec import SecretKey, ShardedModelSpec
from lamella_operator.desired import configs, memory, object_names
from lamella_operator.settings import GIB, MIB, Settings
from lamella_operator.views import ModelView

CACHE_FACTOR = 2.2
"""A slice's bytes on disk per byte served: files may be float32 where bfloat16 is served."""
CACHE_SPARE_BYTES = 2 * GIB
"""Beside the slice: headers, tokenizer files, and what is being written when a size is taken."""
SMALL_CACHE_BYTES = 1 * GIB
"""Of a model that is read where it lies, and of gateways: small files only."""
READABLE = 0o444
"""Secrets are files of root; the containers' user is whatever the cluster chose."""


@dataclass(slots=True)
class Mounts:
    """The volumes of one pod and the mounts of its one container."""

    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, source: Mapping[str, Any], path: str, *, read_only: bool) -> None:
        self.volumes.append({"name": name, **source})
        mount: dict[str, Any] = {"name": name, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        self.mounts.append(mount)

    def secret(self, name: str, secret: str, path: str, items: Mapping[str, str]) -> None:
        """Keys of a Secret as files: ``items`` is the file's name by key."""
        source = {
            "secretName": secret,
            "defaultMode": READABLE,
            "items": [{"key": key, "path": file} for key, file in items.items()],
        }
        self.add(name, {"secret": source}, path, read_only=True)


def common(mounts: Mounts, spec: ShardedModelSpec, settings: Settings) -> None:
    """What stages, gateways and inspectors have: the model, the hub's token, the CA, /tmp."""
    uri = spec.model.parsed
    if uri.scheme == PVC:
        claim = {"claimName": uri.location, "readOnly": True}
        source: dict[str, Any] = {"persistentVolumeClaim": claim}
        mounts.add("model", source, configs.MODEL_DIR, read_only=True)
    elif uri.scheme == OCI:
        image = {"reference": uri.location}
        policy = spec.cluster.images.pull_policy or settings.pull_policy
        if policy:
            image["pullPolicy"] = policy
        mounts.add("model", {"image": image}, configs.MODEL_DIR, read_only=True)
    token = spec.model.token_secret
    if token is not None:
        mounts.secret("hub", token.name, configs.HUB_DIR, {token.key: "token"})
    if settings.ca_config_map:
        config_map = {
            "name": settings.ca_config_map,
            "items": [{"key": "ca.crt", "path": "ca.crt"}],
        }
        mounts.add("ca", {"configMap": config_map}, configs.CA_DIR, read_only=True)
    mounts.add("tmp", {"emptyDir": {}}, "/tmp", read_only=False)


def keys(mounts: Mounts, model: ModelView, role: str, generation: int) -> None:
    """The key pair of ``role``."""
    secret = object_names.secret_name(model.name, role, model.uid, generation)
    mounts.secret("keys", secret, configs.KEY_DIR, {"key.json": "key.json"})


def api_keys(mounts: Mounts, secret: SecretKey | None) -> None:
    """The keys that clients must show, where the manifest names some."""
    if secret is not None:
        mounts.secret("api-keys", secret.name, configs.API_DIR, {secret.key: "keys"})


def small_cache(mounts: Mounts) -> None:
    """For a tokenizer's files and the like."""
    empty = {"sizeLimit": memory.mib(SMALL_CACHE_BYTES)}
    mounts.add("cache", {"emptyDir": empty}, configs.CACHE_DIR, read_only=False)


def stage_cache(
    mounts: Mounts, spec: ShardedModelSpec, planned: StagePlan, settings: Settings, *, is_hub: bool
) -> None:
    """Where a stage keeps what it has read, of the kind that the manifest says."""
    cache = spec.cluster.cache
    source: dict[str, Any]
    if cache.kind == spec_cluster.CLAIM:
        source = {"persistentVolumeClaim": {"claimName": cache.claim}}
    elif cache.kind == spec_cluster.HOST_PATH:
        if not settings.allow_host_path:
            raise InvalidSpec(
                "spec.cache.hostPath", cache.path, "another cache: this cluster allows none"
            )
        source = {"hostPath": {"path": cache.path, "type": "DirectoryOrCreate"}}
    elif cache.kind == spec_cluster.EPHEMERAL:
        source = {"ephemeral": {"volumeClaimTemplate": {"spec": _claim(cache)}}}
    else:
        size = cache.size or cache_bytes(planned, is_hub=is_hub)
        source = {"emptyDir": {"sizeLimit": memory.mib(size)}}
    mounts.add("cache", source, configs.CACHE_DIR, read_only=False)


def cache_bytes(planned: StagePlan, *, is_hub: bool) -> int:
    """A size that a correct stage never reaches: the kubelet evicts the pod of one that does."""
    if not is_hub:
        return SMALL_CACHE_BYTES
    slice_mib = int(planned.weight_bytes * CACHE_FACTOR) // MIB + 1
    return slice_mib * MIB + CACHE_SPARE_BYTES


def needs_group(spec: ShardedModelSpec) -> bool:
    """Whether a cache's file system belongs to root until Kubernetes gives it to a group."""
    return spec.cluster.cache.kind in (spec_cluster.CLAIM, spec_cluster.EPHEMERAL)


def _claim(cache: spec_cluster.CacheSpec) -> dict[str, Any]:
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": memory.mib(cache.size or 0)}},
    }
    if cache.storage_class:
        claim["storageClassName"] = cache.storage_class
    return claim
