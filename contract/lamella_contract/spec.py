"""The ShardedModel manifest: `parse` makes frozen values of it, or says what is wrong and where.

Does not know whether the model exists or fits (`plan` does), nor how YAML is read. The same
manifest is applied to a cluster and served locally; what only a cluster can heed is checked here
too (`spec_cluster`) and used by the operator alone.

::

    apiVersion: lamella.dev/v1alpha1
    kind: ShardedModel
    metadata: {name: qwen3-32b}              # also namespace, labels, annotations
    spec:
      model:
        uri: hf://Qwen/Qwen3-32B             # or file:, pvc://, oci://
        revision: main                       # branch, tag or commit of an hf:// model
        servedName: qwen3-32b                # what clients ask for; default metadata.name
        tokenSecretRef: {name: hub, key: token}
      pipeline:
        stages: 4                            # default: the fewest that fit stageMemory
        stageMemory: 24Gi                    # device memory of each stage
        split: [10, 8, 8, 6]                 # layers per stage; default: planned
        dtype: bfloat16                      # default: the model's own
        quantization: none                   # or int8: weights of 8 bits, on CPUs
        device: cuda                         # default: cuda where a GPU is asked for, else cpu
        stageSpecs:                          # per stage, in order; its fields win over the above
          - {memory: 80Gi, resources: {}, nodeSelector: {}, tolerations: []}
      replicas: 1                            # whole pipelines
      context: {maxLength: 32768, maxSequences: 16}
      resources: {limits: {nvidia.com/gpu: 1}}
      nodeSelector: {}
      tolerations: []
      affinity: {}
      priorityClassName: inference
      runtimeClassName: nvidia
      podLabels: {}
      podAnnotations: {}
      images: {worker: registry/worker:v1, gateway: registry/operator:v1, pullPolicy: Always}
      imagePullSecrets: [{name: registry}]
      cache: {emptyDir: {sizeLimit: 80Gi}}   # or claimName: pvc, hostPath: /var/cache/lamella,
                                             # ephemeralClaim: {size: 80Gi, storageClassName: fast}
      rollout: {maxUnavailable: 1, maxSurge: 0}
      recovery: {maxRestarts: 5, replaceAfterSeconds: 10}
      scheduling: {timeoutSeconds: 300, topologyKey: kubernetes.io/hostname}
      gateway: {replicas: 2, apiKeysSecretRef: {name: keys, key: keys}, resources: {},
                requestDeadlineSeconds: 600}
      drainSeconds: 30                       # that a stage 0 asked to end gives its requests
      paused: false                          # true: the operator changes nothing
      revisionHistoryLimit: 3
      keyGeneration: 1                       # raise it to rotate the keys of the tensor path
      disruption: Allow                      # or Never: autoscalers leave the nodes alone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella_contract import names
from lamella_contract import spec_kube as kube
from lamella_contract.errors import InvalidSpec
from lamella_contract.model_uri import HF, ModelUri, is_revision, parse_model_uri
from lamella_contract.spec_cluster import CLUSTER_KEYS, ClusterSpec, parse_cluster
from lamella_contract.spec_fields import Fields, whole
from lamella_contract.spec_kube import SecretKey
from lamella_contract.units import quantity

__all__ = [
    "ClusterSpec",
    "ContextSpec",
    "ModelSource",
    "PipelineSpec",
    "SecretKey",
    "ShardedModel",
    "ShardedModelSpec",
    "StageSpec",
    "parse",
    "quantity",
]

MAX_STAGES = 128  # a revision stores a pod for each, and one object may take 1.5 MiB

_ROOT = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = ("name", "namespace", "labels", "annotations")
# what an API server adds to metadata; read back from a cluster, a manifest must still parse
_METADATA_OF_SERVER = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
_SPEC = (
    "model",
    "pipeline",
    "replicas",
    "context",
    "resources",
    "nodeSelector",
    "tolerations",
    *CLUSTER_KEYS,
)
_MODEL = ("uri", "revision", "servedName", "tokenSecretRef")
_PIPELINE = ("stages", "stageMemory", "split", "dtype", "quantization", "device", "stageSpecs")
_STAGE = ("memory", "resources", "nodeSelector", "tolerations")
_CONTEXT = ("maxLength", "maxSequences")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the model comes from; ``revision`` None is the source's default.

    ``served_name`` is what clients ask for. ``token_secret`` is read on a cluster only; locally
    the hub's own environment variables and token file count.
    """

    uri: str
    revision: str | None
    served_name: str
    token_secret: SecretKey | None = None

    @property
    def parsed(self) -> ModelUri:
        """The address in parts; ``revision`` stands in it when given either way."""
        uri = parse_model_uri(self.uri)
        return ModelUri(uri.scheme, uri.location, self.revision or uri.revision, uri.subpath)


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What differs for one stage; the Kubernetes parts are kept for the operator."""

    memory: int | None = None  # bytes of device memory; None: the pipeline's
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """How the layers are dealt out.

    ``stages`` None: the fewest that fit; it is filled in from ``split`` or ``stageSpecs`` when
    they say it. ``stage_memory`` in bytes, None: unknown. ``split`` counts layers per stage.
    ``dtype`` None: the model's own. ``device`` None: a GPU where one is asked for.
    ``quantization`` is one of `names.QUANTIZATIONS`.
    """

    stages: int | None = None
    stage_memory: int | None = None
    split: tuple[int, ...] | None = None
    dtype: str | None = None
    stage_specs: tuple[StageSpec, ...] = ()
    device: str | None = None
    quantization: str = names.QUANTIZATIONS[0]

    def memory(self) -> int | tuple[int, ...] | None:
        """Bytes of device memory as `plan.plan` takes them: one number, one per stage, or None."""
        each = [stage.memory or self.stage_memory for stage in self.stage_specs]
        known = tuple(size for size in each if size is not None)
        return known if each and len(known) == len(each) else self.stage_memory


@dataclass(frozen=True, slots=True)
class ContextSpec:
    """What a user of the model may count on.

    ``max_model_len`` tokens per request, prompt and answer (None: as many as the model and the
    memory allow); ``max_sequences`` requests at once (None: undeclared).
    """

    max_model_len: int | None = None
    max_sequences: int | None = None


@dataclass(frozen=True, slots=True)
class ShardedModelSpec:
    """The ``spec`` of a manifest; the last four are the operator's."""

    model: ModelSource
    pipeline: PipelineSpec = PipelineSpec()
    replicas: int = 1
    context: ContextSpec = ContextSpec()
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    cluster: ClusterSpec = field(default_factory=ClusterSpec)


@dataclass(frozen=True, slots=True)
class ShardedModel:
    """A manifest."""

    name: str
    spec: ShardedModelSpec
    namespace: str = names.DEFAULT_NAMESPACE
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse(document: object) -> ShardedModel:
    """A manifest as YAML or JSON gave it, checked; raises `InvalidSpec` for the first fault."""
    root = Fields(document, "", _ROOT)
    for key, want in (("apiVersion", names.API_VERSION), ("kind", names.KIND)):
        if root.get(key) != want:
            raise InvalidSpec(key, root.get(key), want)
    metadata = _required(root, "metadata", (*_METADATA, *_METADATA_OF_SERVER), ("name",))
    name = kube.model_name(metadata, "name")
    namespace = kube.label_name(metadata, "namespace", names.DEFAULT_NAMESPACE)
    return ShardedModel(
        name=name,
        namespace=namespace,
        labels=metadata.strings("labels"),
        annotations=metadata.strings("annotations"),
        spec=_spec(_required(root, "spec", _SPEC, ("model",)), name),
    )


def _spec(fields: Fields, name: str) -> ShardedModelSpec:
    replicas = fields.count("replicas", 0, 1000)
    return ShardedModelSpec(
        model=_model(_required(fields, "model", _MODEL, ("uri",)), name),
        pipeline=_pipeline(fields.child("pipeline", _PIPELINE)),
        replicas=1 if replicas is None else replicas,
        context=_context(fields.child("context", _CONTEXT)),
        resources=kube.resources(fields),
        node_selector=kube.labels(fields, "nodeSelector"),
        tolerations=kube.tolerations(fields),
        cluster=parse_cluster(fields),
    )


def _model(fields: Fields, name: str) -> ModelSource:
    uri = parse_model_uri(fields.get("uri"), fields.at("uri"))
    revision = fields.text("revision", "", want="a branch, tag or commit", most=128) or None
    where = fields.at("revision")
    if revision is not None:
        if uri.scheme != HF:
            raise InvalidSpec(where, revision, f"none: a {uri.scheme} address has no revisions")
        if not is_revision(revision):
            raise InvalidSpec(where, revision, "a branch, tag or commit")
        if uri.revision and uri.revision != revision:
            raise InvalidSpec(where, revision, f"what spec.model.uri says: {uri.revision!r}")
    secret = fields.child("tokenSecretRef", kube.SECRET_KEYS)
    if secret is not None and uri.scheme != HF:
        raise InvalidSpec(secret.path, secret.get("name"), "none: only hf:// takes a token")
    return ModelSource(
        uri=str(uri),
        revision=revision or uri.revision or None,
        served_name=fields.text("servedName", name, want="the name that clients ask for", most=256),
        token_secret=kube.secret_key(secret),
    )


def _pipeline(fields: Fields | None) -> PipelineSpec:
    if fields is None:
        return PipelineSpec()
    stages = fields.count("stages", 1, MAX_STAGES)
    counts = fields.items("split", MAX_STAGES)
    split = None
    if counts is not None:
        where = fields.at("split")
        split = tuple(whole(count, f"{where}[{i}]", 1) for i, count in enumerate(counts))
        stages = _same_length(stages, len(split), where, "counts")
    each = fields.items("stageSpecs", MAX_STAGES) or []
    where = fields.at("stageSpecs")
    stage_specs = tuple(
        _stage(Fields(item, f"{where}[{i}]", _STAGE)) for i, item in enumerate(each)
    )
    if stage_specs:
        stages = _same_length(stages, len(stage_specs), where, "stages")
    stage_memory = fields.bytes("stageMemory")
    known = [stage.memory is not None for stage in stage_specs]
    if stage_memory is None and any(known) and not all(known):
        missing = known.index(False)
        raise InvalidSpec(f"{where}[{missing}].memory", None, "bytes, as other stages have them")
    dtype = fields.get("dtype")
    if dtype is not None and dtype not in names.DTYPES:
        raise InvalidSpec(fields.at("dtype"), dtype, f"one of {', '.join(names.DTYPES)}")
    given = fields.get("device") is not None
    device = fields.choice("device", names.DEVICES) if given else None
    quantization = fields.choice("quantization", names.QUANTIZATIONS)
    return PipelineSpec(stages, stage_memory, split, dtype, stage_specs, device, quantization)


def _same_length(stages: int | None, length: int, path: str, what: str) -> int:
    if stages is not None and stages != length:
        raise InvalidSpec(path, length, f"{stages} {what}, as there are stages")
    return length


def _stage(fields: Fields) -> StageSpec:
    return StageSpec(
        memory=fields.bytes("memory"),
        resources=kube.resources(fields),
        node_selector=kube.labels(fields, "nodeSelector"),
        tolerations=kube.tolerations(fields),
    )


def _context(fields: Fields | None) -> ContextSpec:
    if fields is None:
        return ContextSpec()
    return ContextSpec(fields.count("maxLength", 1), fields.count("maxSequences", 1, 65536))


def _required(fields: Fields, key: str, known: tuple[str, ...], needs: tuple[str, ...]) -> Fields:
    value = fields.get(key)
    if value is None:
        raise InvalidSpec(fields.at(key), None, f"an object with {', '.join(needs)}")
    return Fields(value, fields.at(key), known)
