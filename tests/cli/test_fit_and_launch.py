"""A plan for this machine, and what each process is told; no process, no file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import fit, launch
from lamella.machine import Machine
from lamella.model import ModelFacts
from lamella_contract.config import GatewayConfig, StageConfig
from lamella_contract.errors import DoesNotFit, PlanError
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_contract.spec import ContextSpec, ModelSource, PipelineSpec, ShardedModelSpec

GIB = 1 << 30


def profile(layers: int = 8, layer_bytes: int = 100 << 20, kv_bytes: int = 4096) -> ModelProfile:
    return ModelProfile(
        uri="file:/models/tiny",
        commit="c0ffee",
        family="llama",
        dtype="bfloat16",
        hidden_size=64,
        vocab_size=1000,
        max_model_len=32768,
        layers=(LayerProfile(layer_bytes, kv_bytes, 0, "full_attention"),) * layers,
        embedding_bytes=50 << 20,
        head_bytes=50 << 20,
        final_bytes=128,
        tied=True,
        boundary_bytes_per_token=128,
        allowed_cuts=tuple(range(1, layers)),
    )


def wanted(
    pipeline: PipelineSpec | None = None, context: ContextSpec | None = None
) -> ShardedModelSpec:
    source = ModelSource("file:/models/tiny", None, "tiny")
    return ShardedModelSpec(source, pipeline or PipelineSpec(), context=context or ContextSpec())


def machine(free_bytes: int = 16 * GIB, gpus: tuple[int, ...] = ()) -> Machine:
    return Machine((0, 1), free_bytes, gpus)


def test_without_declared_memory_the_caches_take_a_part_of_what_is_free() -> None:
    plan = fit.local(profile(), wanted(PipelineSpec(stages=2)), machine(), "cpu")
    assert len(plan.stages) == 2
    assert plan.kv_tokens * profile().kv_bytes_per_token <= fit.CPU_CACHE_LEAST_BYTES
    assert plan.max_model_len == 32768


@pytest.mark.parametrize(
    ("context", "kv_tokens"),
    [
        (ContextSpec(32768, 16), 16 * 32768),
        (ContextSpec(1000, 3), 3 * 1008),
        (ContextSpec(32768), 32768),
        (ContextSpec(), 32768),
    ],
    ids=["much", "little", "one-context", "nothing"],
)
def test_declared_context_and_concurrency_get_their_caches(
    context: ContextSpec, kv_tokens: int
) -> None:
    heavy = profile(layer_bytes=1 << 20, kv_bytes=1 << 12)
    plan = fit.local(heavy, wanted(PipelineSpec(stages=3), context), machine(64 * GIB), "cpu")
    assert plan.kv_tokens >= kv_tokens
    assert plan.max_model_len == (context.max_model_len or 32768)


def test_a_model_that_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(DoesNotFit, match=r"weights .* MiB.*too little"):
        fit.local(profile(), wanted(PipelineSpec(stages=2)), machine(GIB), "cpu")


def test_the_cuts_are_the_manifests_and_the_caches_this_machines() -> None:
    asked = wanted(PipelineSpec(stages=4, stage_memory=24 * GIB))
    on_cluster = fit.declared(profile(), asked)
    here = fit.local(profile(), asked, machine(4 * GIB), "cpu")
    assert here.splits == on_cluster.splits
    assert here.kv_tokens < on_cluster.kv_tokens


def test_more_stages_than_layers() -> None:
    with pytest.raises(PlanError, match="got 9, want at most 8"):
        fit.local(profile(), wanted(PipelineSpec(stages=9)), machine(), "cpu")


def test_stages_are_dealt_over_gpus_by_their_free_memory() -> None:
    plan = fit.local(
        profile(), wanted(PipelineSpec(stages=4)), machine(gpus=(8 * GIB, 8 * GIB)), "cuda"
    )
    assert sum(stage.needed_bytes(plan.kv_tokens) for stage in plan.stages[::2]) <= 8 * GIB


@given(
    layers=st.integers(1, 12),
    layer_bytes=st.integers(1, GIB),
    kv_bytes=st.integers(0, 1 << 16),
    stages=st.integers(1, 12),
    free_bytes=st.integers(0, 64 * GIB),
)
def test_a_plan_never_takes_more_than_is_free(
    layers: int, layer_bytes: int, kv_bytes: int, stages: int, free_bytes: int
) -> None:
    try:
        plan = fit.local(
            profile(layers, layer_bytes, kv_bytes),
            wanted(PipelineSpec(stages=stages)),
            machine(free_bytes),
            "cpu",
        )
    except PlanError:
        return
    assert sum(stage.needed_bytes(plan.kv_tokens) for stage in plan.stages) <= free_bytes


def made(options: launch.LaunchOptions, stages: int = 2) -> launch.Launch:
    learned = replace(profile(), eos_token_ids=(1, 106))
    facts = ModelFacts("file:/models/tiny", "/models/tiny", "/models/tiny", learned)
    roles = launch.roles(stages)
    return launch.launch(
        name="tiny",
        served_name="Tiny",
        facts=facts,
        plan=fit.local(profile(), wanted(PipelineSpec(stages=stages)), machine(), "cpu"),
        machine=machine(),
        options=options,
        ports=launch.Ports(20001, 20002, tuple(range(20003, 20003 + stages))),
        public_keys={role: role.upper().ljust(40, ".") for role in roles},
        key_files={role: Path("/run/x") / f"{role}.key.json" for role in roles},
        addresses_file=Path("/run/x/pipelines"),
        cache_home=Path("/cache"),
        parent_pid=77,
    )


def test_each_process_is_told_its_part() -> None:
    told = made(launch.LaunchOptions(port=9000))
    first, last = told.stages
    assert first.pipeline == last.pipeline
    assert (first.gateway_address, last.gateway_address) == ("tcp://127.0.0.1:20002", "")
    assert first.control_address == last.control_address == "tcp://127.0.0.1:20001"
    assert told.probe_ports == (20003, 20004)
    assert [role for role, _ in first.peer_keys] == ["stage-0", "stage-1", "gateway-0"]
    assert (told.gateway.replicas, told.gateway.discover) == ((), "file:/run/x/pipelines")
    assert told.address == "tcp://127.0.0.1:20002"
    assert told.gateway.model_hash == first.pipeline.model_hash().hex()
    assert first.pipeline.eos_token_ids == (1, 106)
    for config in told.stages:
        assert StageConfig.from_json(config.to_json()) == config
    assert GatewayConfig.from_json(told.gateway.to_json()) == told.gateway


@pytest.mark.parametrize(
    ("options", "threads", "cores"),
    [
        (launch.LaunchOptions(), 2, [0, 0, 0]),
        (launch.LaunchOptions(pin=True), 1, [0, 1, 0]),
        (launch.LaunchOptions(pin=True, threads_per_stage=2), 2, [0, 1, 0]),
        (launch.LaunchOptions(device="cuda"), 1, [None, None, None]),
    ],
    ids=["all in turn", "pinned", "told", "dealt beside GPUs"],
)
def test_threads_and_cores(
    options: launch.LaunchOptions, threads: int, cores: list[int | None]
) -> None:
    told = made(options, stages=3)
    assert [stage.threads for stage in told.stages] == [threads] * 3
    assert [stage.cpu for stage in told.stages] == cores


@pytest.mark.parametrize(
    ("options", "stages", "want"),
    [
        (launch.LaunchOptions(), 2, True),
        (launch.LaunchOptions(), 1, False),
        (launch.LaunchOptions(pin=True), 2, False),
        (launch.LaunchOptions(threads_per_stage=1), 2, False),
        (launch.LaunchOptions(device="cuda"), 2, False),
    ],
    ids=["shared cores", "one stage", "a core each", "dealt by hand", "GPUs"],
)
def test_stages_compute_in_turn_where_they_share_cores(
    options: launch.LaunchOptions, stages: int, want: bool
) -> None:
    assert [stage.in_turn for stage in made(options, stages).stages] == [want] * stages


def test_no_secret_is_in_what_the_processes_are_told() -> None:
    told = made(launch.LaunchOptions())
    assert "secret" not in json.dumps([stage.to_json() for stage in told.stages])
