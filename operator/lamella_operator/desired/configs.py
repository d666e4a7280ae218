"""What each process of a model is told: the plan and the manifest as configurations.

Knows no manifest of Kubernetes. Everything is written for replica 0; `expand` makes it fit all. A
stage is told the keys of its neighbours and of stage 0 only, so no other stage of the model can
speak to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lamella_contract import names
from lamella_contract.config import GatewayConfig, PipelineConfig, StageConfig
from lamella_contract.model_uri import FILE, HF
from lamella_contract.plan import Plan
from lamella_contract.profile import ModelProfile
from lamella_contract.spec import ShardedModelSpec
from lamella_operator.desired import expand, memory, object_names
from lamella_operator.settings import Settings
from lamella_operator.views import ModelView

STEP_TOKENS = {memory.CPU: 512, memory.CUDA: 2048}
"""Most tokens of one step: enough to keep the device busy; the scheduler takes fewer where a step
would be long."""
LONG_PROMPTS_QUEUED = 4
"""Requests of the full context that may wait before clients are told to come back."""
GATEWAY_DRAIN_S = 570.0
"""Seconds that streams have when a gateway is asked to end."""

KEY_DIR = "/etc/lamella/keys"
HUB_DIR = "/etc/lamella/hub"
CA_DIR = "/etc/lamella/ca"
API_DIR = "/etc/lamella/api"
MODEL_DIR = "/model"
CACHE_DIR = "/var/cache/lamella"
TERMINATION_LOG = "/dev/termination-log"
GATEWAY_ROLE = names.gateway_role(0)
"""All gateways of a model share one key; they tell themselves apart by their pods' names."""

PublicKey = Callable[[str, int], str]
"""The public key (z85) of a role (``stage-0``, ``gateway-0``) of one model in a generation."""


@dataclass(frozen=True, slots=True)
class Making:
    """All that a revision is made from; ``spec`` is the model's own, which parses."""

    model: ModelView
    spec: ShardedModelSpec
    profile: ModelProfile
    plan: Plan
    settings: Settings
    public_key: PublicKey

    @property
    def stages(self) -> int:
        return len(self.plan.stages)

    @property
    def key_generation(self) -> int:
        return self.spec.cluster.key_generation

    def key_of(self, role: str) -> str:
        """The public key of ``role`` in this revision's generation."""
        return self.public_key(role, self.key_generation)

    @property
    def is_hub(self) -> bool:
        return self.spec.model.parsed.scheme == HF

    @property
    def worker_image(self) -> str:
        return self.spec.cluster.images.worker or self.settings.worker_image

    @property
    def gateway_image(self) -> str:
        return gateway_image(self.spec, self.settings)


def gateway_image(spec: ShardedModelSpec, settings: Settings) -> str:
    """A model inside the worker's image can be read in that image only."""
    if spec.cluster.images.gateway:
        return spec.cluster.images.gateway
    if spec.model.parsed.scheme == FILE:
        return spec.cluster.images.worker or settings.worker_image
    return settings.operator_image


def roles(stages: int) -> tuple[str, ...]:
    """Every role that has a key pair."""
    return (*(names.stage_role(stage) for stage in range(stages)), GATEWAY_ROLE)


def model_path(spec: ShardedModelSpec) -> str:
    """The model's folder inside a pod; "" for a model that is read from a hub."""
    uri = spec.model.parsed
    if uri.scheme == HF:
        return ""
    if uri.scheme == FILE:
        return uri.location
    return f"{MODEL_DIR}/{uri.subpath}" if uri.subpath else MODEL_DIR


def hub_token_file(spec: ShardedModelSpec) -> str:
    """Where a pod finds the hub's token; "" without one."""
    return f"{HUB_DIR}/token" if spec.model.token_secret is not None else ""


def pipeline_config(making: Making) -> PipelineConfig:
    """What all stages agree on. A hub's model is named by its commit, so that all read the same."""
    plan, profile, uri = making.plan, making.profile, making.spec.model.parsed
    place = f"hf://{uri.location}@{profile.commit}" if making.is_hub else str(uri)
    device = memory.CPU if memory.runs_on_cpu(making.spec) else memory.CUDA
    return PipelineConfig(
        name=making.model.name,
        model_uri=place,
        model_path=model_path(making.spec),
        commit=profile.commit,
        num_layers=plan.num_layers,
        splits=plan.splits,
        dtype=profile.dtype,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        max_sequences=plan.max_sequences,
        max_model_len=plan.max_model_len,
        max_step_tokens=STEP_TOKENS[device],
        max_queued_tokens=max(plan.kv_tokens, LONG_PROMPTS_QUEUED * plan.max_model_len),
        eos_token_ids=profile.eos_token_ids,
        vocab_size=profile.vocab_size,
        quantization=profile.quantization,
        model_uid=making.model.uid,
    )


def link_hash(making: Making) -> str:
    """Equal where gateways of one revision can speak to pipelines of the other: the model is the
    same, and so are the keys."""
    model, generation = pipeline_config(making).model_hash().hex(), making.key_generation
    return model if generation == 1 else f"{model}-{generation}"


def stage_config(making: Making, pipeline: PipelineConfig, stage: int) -> StageConfig:
    """What ``stage`` is told; its own address and its replica are references, see `expand`."""
    cluster = making.spec.cluster
    return StageConfig(
        pipeline=pipeline,
        stage=stage,
        device=memory.device_of(making.spec, stage),
        threads=memory.threads(memory.resources_of(making.spec, stage)),
        cpu=None,
        control_address=_control(making, stage),
        gateway_address=_own(names.PORT_GATEWAY_LINK) if stage == 0 else "",
        data_bind=_own(names.PORT_DATA),
        http_address=f"0.0.0.0:{names.PORT_PROBES}",
        key_file=f"{KEY_DIR}/key.json",
        peer_keys=tuple((role, making.key_of(role)) for role in peers(stage, making.stages)),
        cache_dir=CACHE_DIR,
        hub_token_file=hub_token_file(making.spec),
        replace_after_s=float(cluster.recovery.replace_after_s),
        drain_s=float(cluster.drain_s),
        live_address=f"0.0.0.0:{names.PORT_LIVE}",
        termination_log=TERMINATION_LOG,
    )


def peers(stage: int, stages: int) -> tuple[str, ...]:
    """Roles that a stage speaks to: all for stage 0, else stage 0 and the two neighbours."""
    if stage == 0:
        return roles(stages)[1:]
    near = {0, stage - 1, (stage + 1) % stages} - {stage}
    return tuple(names.stage_role(other) for other in sorted(near))


def gateway_config(making: Making, pipeline: PipelineConfig) -> GatewayConfig:
    """What every gateway of the model is told."""
    model, spec = making.model, making.spec
    heads = object_names.host(
        object_names.heads_name(model.name), model.namespace, making.settings.cluster_domain
    )
    gateway = spec.cluster.gateway
    return GatewayConfig(
        name=GATEWAY_ROLE,
        served_name=spec.model.served_name,
        http_host="0.0.0.0",
        http_port=names.PORT_HTTP,
        replicas=(),
        tokenizer_path=pipeline.model_path,
        key_file=f"{KEY_DIR}/key.json",
        peer_keys=((names.stage_role(0), making.key_of(names.stage_role(0))),),
        model_hash=pipeline.model_hash().hex(),
        max_model_len=pipeline.max_model_len,
        max_queued_tokens=pipeline.max_queued_tokens,
        vocab_size=pipeline.vocab_size,
        eos_token_ids=pipeline.eos_token_ids,
        api_keys_file=f"{API_DIR}/keys" if gateway.api_keys_secret is not None else "",
        request_deadline_s=float(gateway.request_deadline_s),
        instance=expand.POD_NAME,
        discover=f"{heads}.:{names.PORT_GATEWAY_LINK}",
        model_uri=pipeline.model_uri if making.is_hub else "",
        cache_dir=CACHE_DIR,
        hub_token_file=hub_token_file(spec),
        drain_s=GATEWAY_DRAIN_S,
    )


def _control(making: Making, stage: int) -> str:
    """Stage 0 binds its own address; the others look it up by its Service's name."""
    if stage == 0:
        return _own(names.PORT_CONTROL)
    model = making.model
    service = object_names.ring_name(model.name, expand.REPLICA)
    host = object_names.host(service, model.namespace, making.settings.cluster_domain)
    return f"tcp://{host}.:{names.PORT_CONTROL}"


def _own(port: int) -> str:
    return f"tcp://{expand.POD_IP}:{port}"
