"""From plan to processes: the one JSON document that each process is told.

Pure: ports, keys and facts are arguments. `serve` writes the documents to the run directory and
starts the processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lamella.machine import Machine
from lamella.model import ModelFacts
from lamella_contract import names
from lamella_contract.config import GatewayConfig, PipelineConfig, StageConfig
from lamella_contract.plan import Plan

GATEWAY = names.gateway_role(0)
STEP_TOKENS = {"cpu": 512, "cuda": 2048}
"""Most tokens of one step: enough to keep the device busy; the scheduler takes fewer where a step
would be long."""
LONG_PROMPTS_QUEUED = 4
"""Requests of the full context that may wait before clients are told to come back."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How the processes run; nothing of the model. `threads_per_stage` None: see `threads_of`."""

    host: str = names.LOOPBACK
    port: int = names.PORT_HTTP
    device: str = "cpu"
    threads_per_stage: int | None = None
    pin: bool = False
    runner: str = "auto"
    api_keys_file: str = ""
    max_step_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Ports:
    """Free loopback ports: stage 0's two links, and one per stage for probes."""

    control: int
    gateway: int
    probes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """All documents of one run."""

    pipeline: PipelineConfig
    stages: tuple[StageConfig, ...]
    gateway: GatewayConfig

    @property
    def address(self) -> str:
        """Where gateways find the pipeline."""
        return self.stages[0].gateway_address

    @property
    def probe_ports(self) -> tuple[int, ...]:
        return tuple(int(stage.http_address.rpartition(":")[2]) for stage in self.stages)


def roles(stages: int) -> tuple[str, ...]:
    """Every process that needs a key pair."""
    return (*(names.stage_role(stage) for stage in range(stages)), GATEWAY)


def launch(
    *,
    name: str,
    served_name: str,
    facts: ModelFacts,
    plan: Plan,
    machine: Machine,
    options: LaunchOptions,
    ports: Ports,
    public_keys: Mapping[str, str],
    key_files: Mapping[str, Path],
    addresses_file: Path,
    cache_home: Path,
    parent_pid: int,
) -> Launch:
    """The documents for `plan` on `machine`. `public_keys` and `key_files` have an entry for each
    of `roles`; the gateway reads in `addresses_file` where the pipelines are."""
    pipeline = _pipeline(name, facts, plan, options)
    stages = len(plan.stages)
    peer_keys = tuple((role, public_keys[role]) for role in roles(stages))
    configs = tuple(
        StageConfig(
            pipeline=pipeline,
            stage=stage,
            device=device_of(stage, options.device, machine),
            threads=threads_of(stages, options, machine),
            in_turn=in_turn(stages, options),
            cpu=core_of(stage, stages, options, machine),
            control_address=_tcp(ports.control),
            gateway_address=_tcp(ports.gateway) if stage == 0 else "",
            data_bind=f"tcp://{names.LOOPBACK}:*",
            http_address=f"{names.LOOPBACK}:{ports.probes[stage]}",
            key_file=str(key_files[names.stage_role(stage)]),
            peer_keys=peer_keys,
            cache_dir=str(cache_home),
            hub_token_file="",
            parent_pid=parent_pid,
        )
        for stage in range(stages)
    )
    gateway = GatewayConfig(
        name=GATEWAY,
        served_name=served_name,
        http_host=options.host,
        http_port=options.port,
        replicas=(),
        discover=f"file:{addresses_file}",
        tokenizer_path=facts.tokenizer_path,
        key_file=str(key_files[GATEWAY]),
        peer_keys=peer_keys,
        model_hash=pipeline.model_hash().hex(),
        max_model_len=pipeline.max_model_len,
        max_queued_tokens=pipeline.max_queued_tokens,
        vocab_size=pipeline.vocab_size,
        eos_token_ids=pipeline.eos_token_ids,
        api_keys_file=options.api_keys_file,
    )
    return Launch(pipeline, configs, gateway)


def device_of(stage: int, device: str, machine: Machine) -> str:
    """`cpu`, or the stages dealt over the GPUs in turn."""
    if device != "cuda":
        return device
    return f"cuda:{stage % max(len(machine.gpu_free_bytes), 1)}"


def in_turn(stages: int, options: LaunchOptions) -> bool:
    """Whether stages compute one after another, each with all cores: where they share cores and
    nobody dealt them out. A step then reads the weights once, with the bandwidth of all cores."""
    return stages > 1 and options.device == "cpu" and not _dealt(options)


def threads_of(stages: int, options: LaunchOptions, machine: Machine) -> int:
    """Compute threads of one stage: as told, one when pinned to a core, all cores when stages
    compute in turn, else the cores dealt out."""
    if options.threads_per_stage is not None:
        return options.threads_per_stage
    if options.pin:
        return 1
    sharing = 1 if in_turn(stages, options) else stages
    return max(len(machine.cores) // sharing, 1)


def core_of(stage: int, stages: int, options: LaunchOptions, machine: Machine) -> int | None:
    """The core of a stage's first thread: its own when pinned, everyone's first one when stages
    compute in turn, else the kernel's choice."""
    if in_turn(stages, options):
        return machine.cores[0]
    return machine.cores[stage % len(machine.cores)] if options.pin else None


def _dealt(options: LaunchOptions) -> bool:
    return options.pin or options.threads_per_stage is not None


def _pipeline(name: str, facts: ModelFacts, plan: Plan, options: LaunchOptions) -> PipelineConfig:
    family = options.device.partition(":")[0]
    step_tokens = options.max_step_tokens or STEP_TOKENS.get(family, STEP_TOKENS["cpu"])
    return PipelineConfig(
        name=name,
        model_uri=facts.uri,
        model_path=facts.path,
        commit=facts.profile.commit,
        num_layers=plan.num_layers,
        splits=plan.splits,
        dtype=facts.profile.dtype,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        max_sequences=plan.max_sequences,
        max_model_len=plan.max_model_len,
        max_step_tokens=step_tokens,
        max_queued_tokens=max(plan.kv_tokens, LONG_PROMPTS_QUEUED * plan.max_model_len),
        eos_token_ids=facts.profile.eos_token_ids,
        vocab_size=facts.profile.vocab_size,
        runner=options.runner,
        quantization=facts.profile.quantization,
    )


def _tcp(port: int) -> str:
    return f"tcp://{names.LOOPBACK}:{port}"
