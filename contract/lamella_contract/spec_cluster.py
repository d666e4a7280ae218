"""The parts of a manifest that only a cluster heeds: how pods are placed, replaced and rolled.

Part of `spec`, which documents the manifest as a whole; the local runner reads none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella_contract import spec_kube as kube
from lamella_contract.errors import InvalidSpec
from lamella_contract.spec_fields import Fields
from lamella_contract.spec_kube import SecretKey

EMPTY_DIR, CLAIM, EPHEMERAL, HOST_PATH = "emptyDir", "claimName", "ephemeralClaim", "hostPath"
CACHE_KINDS = (EMPTY_DIR, CLAIM, EPHEMERAL, HOST_PATH)
TOPOLOGY_KEY = "kubernetes.io/hostname"
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
DISRUPTION_ALLOW, DISRUPTION_NEVER = "Allow", "Never"
GANG_NONE, KUEUE, VOLCANO, COSCHEDULING = "None", "Kueue", "Volcano", "Coscheduling"
GANGS = (GANG_NONE, KUEUE, VOLCANO, COSCHEDULING)
QUEUED = (KUEUE, VOLCANO)  # gangs that stand in a queue

CLUSTER_KEYS = (
    "images",
    "imagePullSecrets",
    "cache",
    "affinity",
    "priorityClassName",
    "runtimeClassName",
    "podLabels",
    "podAnnotations",
    "rollout",
    "recovery",
    "scheduling",
    "gateway",
    "drainSeconds",
    "paused",
    "revisionHistoryLimit",
    "keyGeneration",
    "disruption",
)


@dataclass(frozen=True, slots=True)
class ImagesSpec:
    """Images that win over the operator's own; None is the operator's."""

    worker: str | None = None
    gateway: str | None = None
    pull_policy: str | None = None


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Where a stage keeps the bytes that it has read.

    ``kind`` is one of `CACHE_KINDS`. ``size`` bytes limit an emptyDir (None: from the plan) or are
    asked of an ephemeral claim; ``claim`` names a claim, ``path`` a folder of the node.
    """

    kind: str = EMPTY_DIR
    size: int | None = None
    claim: str = ""
    storage_class: str | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """Whole pipelines that may be missing, and that may be too many, while a change rolls."""

    max_unavailable: int = 1
    max_surge: int = 0


@dataclass(frozen=True, slots=True)
class RecoverySpec:
    """``max_restarts`` failures of one stage in a row, then the model is Degraded.

    A process that shows no sign of life for ``replace_after_s`` seconds is killed.
    """

    max_restarts: int = 5
    replace_after_s: int = 10


@dataclass(frozen=True, slots=True)
class SchedulingSpec:
    """A half-placed pipeline that competes with another gives way after ``timeout_s`` seconds.

    Neighbouring stages are placed close by ``topology_key``, where that is possible. ``gang`` is
    one of `GANGS`: who places all pods of a pipeline together; ``queue_name`` is its queue ("": the
    system's default). ``scheduler_name`` "" is the gang's own scheduler, or the cluster's default.
    """

    timeout_s: int = 300
    topology_key: str = TOPOLOGY_KEY
    gang: str = GANG_NONE
    queue_name: str = ""
    scheduler_name: str = ""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """The OpenAI endpoint: how many, who may call it, how long a request waits for a token."""

    replicas: int = 2
    api_keys_secret: SecretKey | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    request_deadline_s: int = 600


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Everything of this module; each field has the manifest's name in snake case."""

    images: ImagesSpec = ImagesSpec()
    image_pull_secrets: tuple[str, ...] = ()
    cache: CacheSpec = CacheSpec()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    priority_class_name: str = ""
    runtime_class_name: str = ""
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    rollout: RolloutSpec = RolloutSpec()
    recovery: RecoverySpec = RecoverySpec()
    scheduling: SchedulingSpec = SchedulingSpec()
    gateway: GatewaySpec = GatewaySpec()
    drain_s: int = 30
    paused: bool = False
    revision_history_limit: int = 3
    key_generation: int = 1
    disruption: str = DISRUPTION_ALLOW


def parse_cluster(spec: Fields) -> ClusterSpec:
    """What the keys in `CLUSTER_KEYS` of ``spec`` say; raises `InvalidSpec`."""
    drain = spec.count("drainSeconds", 0, 3600)
    history = spec.count("revisionHistoryLimit", 0, 100)
    generation = spec.count("keyGeneration", 1)
    return ClusterSpec(
        images=_images(spec.child("images", ("worker", "gateway", "pullPolicy"))),
        image_pull_secrets=_pull_secrets(spec),
        cache=_cache(spec.child("cache", CACHE_KINDS)),
        affinity=kube.affinity(spec),
        priority_class_name=kube.optional_name(spec, "priorityClassName"),
        runtime_class_name=kube.optional_name(spec, "runtimeClassName"),
        pod_labels=kube.not_ours(kube.labels(spec, "podLabels"), spec.at("podLabels")),
        pod_annotations=kube.not_ours(
            kube.pod_annotations(spec, "podAnnotations"), spec.at("podAnnotations")
        ),
        rollout=_rollout(spec.child("rollout", ("maxUnavailable", "maxSurge"))),
        recovery=_recovery(spec.child("recovery", ("maxRestarts", "replaceAfterSeconds"))),
        scheduling=_scheduling(spec.child("scheduling", _SCHEDULING)),
        gateway=_gateway(spec.child("gateway", _GATEWAY)),
        drain_s=30 if drain is None else drain,
        paused=spec.flag("paused"),
        revision_history_limit=3 if history is None else history,
        key_generation=1 if generation is None else generation,
        disruption=spec.choice("disruption", (DISRUPTION_ALLOW, DISRUPTION_NEVER)),
    )


_IMAGE = "an image, such as registry.example.com/worker:v1"
_HOST_PATH = "an absolute path without .."
_SCHEDULING = ("timeoutSeconds", "topologyKey", "gang", "queueName", "schedulerName")
_GATEWAY = ("replicas", "apiKeysSecretRef", "resources", "requestDeadlineSeconds")


def _images(fields: Fields | None) -> ImagesSpec:
    if fields is None:
        return ImagesSpec()
    policy = None
    if fields.get("pullPolicy") is not None:
        policy = fields.choice("pullPolicy", PULL_POLICIES)
    return ImagesSpec(_image(fields, "worker"), _image(fields, "gateway"), policy)


def _image(fields: Fields, key: str) -> str | None:
    image = fields.text(key, "", want=_IMAGE, most=512)
    if any(not letter.isprintable() or letter.isspace() for letter in image):
        raise InvalidSpec(fields.at(key), image, _IMAGE)
    return image or None


def _pull_secrets(spec: Fields) -> tuple[str, ...]:
    where = spec.at("imagePullSecrets")
    items = spec.mappings("imagePullSecrets", 32)
    return tuple(
        kube.object_name(Fields(item, f"{where}[{i}]", ("name",)), "name")
        for i, item in enumerate(items)
    )


def _cache(fields: Fields | None) -> CacheSpec:
    if fields is None:
        return CacheSpec()
    given = [kind for kind in CACHE_KINDS if fields.get(kind) is not None]
    if len(given) != 1:
        got = " and ".join(given) or None
        raise InvalidSpec(fields.path, got, f"one of {', '.join(CACHE_KINDS)}")
    kind = given[0]
    if kind == CLAIM:
        return CacheSpec(kind, claim=kube.object_name(fields, kind))
    if kind == HOST_PATH:
        path = fields.text(kind, want=_HOST_PATH, most=512)
        if not path.startswith("/") or ".." in path.split("/"):
            raise InvalidSpec(fields.at(kind), path, _HOST_PATH)
        return CacheSpec(kind, path=path)
    if kind == EMPTY_DIR:
        inner = fields.child(kind, ("sizeLimit",))
        return CacheSpec(kind, None if inner is None else inner.bytes("sizeLimit"))
    inner = fields.child(kind, ("size", "storageClassName"))
    size = None if inner is None else inner.bytes("size")
    if inner is None or size is None:
        raise InvalidSpec(f"{fields.at(kind)}.size", None, "bytes, such as 50Gi")
    return CacheSpec(
        kind, size, storage_class=kube.optional_name(inner, "storageClassName") or None
    )


def _rollout(fields: Fields | None) -> RolloutSpec:
    if fields is None:
        return RolloutSpec()
    unavailable, surge = fields.count("maxUnavailable", 0, 1000), fields.count("maxSurge", 0, 1000)
    rollout = RolloutSpec(1 if unavailable is None else unavailable, surge or 0)
    if rollout == RolloutSpec(0, 0):
        want = "maxUnavailable or maxSurge above 0: with both 0 nothing can be rolled"
        raise InvalidSpec(fields.path, "both 0", want)
    return rollout


def _recovery(fields: Fields | None) -> RecoverySpec:
    if fields is None:
        return RecoverySpec()
    restarts = fields.count("maxRestarts", 0, 1000)
    replace = fields.count("replaceAfterSeconds", 2, 3600)
    return RecoverySpec(5 if restarts is None else restarts, 10 if replace is None else replace)


def _scheduling(fields: Fields | None) -> SchedulingSpec:
    if fields is None:
        return SchedulingSpec()
    timeout = fields.count("timeoutSeconds", 10)
    where = fields.at("topologyKey")
    key = kube.label_key(fields.text("topologyKey", TOPOLOGY_KEY, want=kube.LABEL_KEY), where)
    gang = fields.choice("gang", GANGS)
    queue = ""
    if fields.get("queueName") is not None:
        queue = kube.label_name(fields, "queueName", "")
    if gang == KUEUE and not queue:
        raise InvalidSpec(fields.at("queueName"), None, "a LocalQueue: gang Kueue needs one")
    if queue and gang not in QUEUED:
        want = "none; only the gangs Kueue and Volcano have queues"
        raise InvalidSpec(fields.at("queueName"), queue, want)
    return SchedulingSpec(
        timeout_s=300 if timeout is None else timeout,
        topology_key=key,
        gang=gang,
        queue_name=queue,
        scheduler_name=kube.optional_name(fields, "schedulerName"),
    )


def _gateway(fields: Fields | None) -> GatewaySpec:
    if fields is None:
        return GatewaySpec()
    replicas = fields.count("replicas", 1, 100)
    deadline = fields.count("requestDeadlineSeconds", 1)
    return GatewaySpec(
        replicas=2 if replicas is None else replicas,
        api_keys_secret=kube.secret_key(fields.child("apiKeysSecretRef", kube.SECRET_KEYS)),
        resources=kube.resources(fields),
        request_deadline_s=600 if deadline is None else deadline,
    )
