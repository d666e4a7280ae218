"""Where a stage computes, what its pod asks for, and the plan where a manifest is silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lamella_contract.errors import DoesNotFit, PlanError
from lamella_operator.desired import memory, planning, volumes
from lamella_operator.settings import GIB, MIB

HUB = {"model": {"uri": "hf://Qwen/Qwen3"}}
DEVICE_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "cpu"),
    "nvidia": ({"limits": {"nvidia.com/gpu": 1}}, "cuda"),
    "none of it": ({"limits": {"nvidia.com/gpu": 0}}, "cpu"),
    "a slice of one": ({"limits": {"nvidia.com/mig-1g.10gb": 1}}, "cuda"),
    "intel": ({"limits": {"gpu.intel.com/xe": 1}}, "cuda"),
    "a bare word": ({"requests": {"gpu": "1"}}, "cuda"),
    "cpu and memory": ({"limits": {"cpu": 4, "memory": "64Gi", "hugepages-2Mi": "2Mi"}}, "cpu"),
    "kubernetes' own": ({"limits": {"attachable.volumes.kubernetes.io/x": 1}}, "cpu"),
}


@pytest.mark.parametrize(("resources", "want"), DEVICE_ROWS.values(), ids=DEVICE_ROWS)
def test_a_gpu_is_used_where_one_is_asked_for(
    make: Callable[..., Any], resources: dict[str, Any], want: str
) -> None:
    made = make({**HUB, "resources": resources, "pipeline": {"stages": 2}})
    assert memory.device_of(made.model.spec, 1) == want
    told = {**HUB, "resources": resources, "pipeline": {"stages": 2, "device": "cpu"}}
    assert memory.device_of(make(told).model.spec, 1) == "cpu"


THREAD_ROWS = [
    ({}, 2),
    ({"limits": {"cpu": 4}}, 4),
    ({"limits": {"cpu": "500m"}}, 1),
    ({"limits": {"cpu": "3900m"}, "requests": {"cpu": "1"}}, 3),
    ({"requests": {"cpu": "2.0"}}, 2),
]


@pytest.mark.parametrize(("resources", "want"), THREAD_ROWS)
def test_threads_are_the_pods_cpus(resources: dict[str, Any], want: int) -> None:
    assert memory.threads(resources) == want


def test_a_gpu_stage_asks_for_what_its_slice_passes_through(make: Callable[..., Any]) -> None:
    small = make({**HUB, "pipeline": {"stages": 4}, "resources": {"limits": {"x.y/gpu": 1}}})
    stage = small.plan.stages[1]
    asked = memory.host_memory(small.plan, 1, small.model.spec, small.settings)
    assert asked == stage.weight_bytes + 256 * MIB + 1536 * MIB
    large = make({**HUB, "pipeline": {"stages": 1}, "resources": {"limits": {"x.y/gpu": 1}}})
    asked = memory.host_memory(large.plan, 0, large.model.spec, large.settings)
    assert asked == 2 * GIB + 1536 * MIB


def test_a_cpu_stage_asks_for_its_slice_and_caches_within_what_was_declared(
    make: Callable[..., Any],
) -> None:
    made = make({**HUB, "pipeline": {"stages": 2, "stageMemory": "8Gi"}})
    for stage, planned in enumerate(made.plan.stages):
        asked = memory.host_memory(made.plan, stage, made.model.spec, made.settings)
        assert planned.needed_bytes(made.plan.kv_tokens) <= asked <= 8 * GIB


def test_int8_is_for_cpus(make: Callable[..., Any]) -> None:
    pipeline = {"stages": 2, "quantization": "int8"}
    assert make({**HUB, "pipeline": pipeline}).plan.num_layers
    with pytest.raises(PlanError, match="quantization: got int8 for stages on GPUs"):
        make({**HUB, "pipeline": pipeline, "resources": {"limits": {"nvidia.com/gpu": 1}}})


def test_caches_on_cpus_are_bounded_where_nobody_said_anything(make: Callable[..., Any]) -> None:
    made = make({**HUB, "pipeline": {"stages": 2}})
    caches = made.plan.kv_tokens * made.profile.kv_bytes_per_token
    assert planning.LEAST_CACHES_BYTES * 0.9 <= caches <= planning.MOST_CACHES_BYTES
    assert planning.capacity_known(made.model.spec)


def test_declared_requests_are_all_held(make: Callable[..., Any]) -> None:
    made = make(
        {**HUB, "pipeline": {"stages": 2}, "context": {"maxLength": 2000, "maxSequences": 3}}
    )
    assert made.plan.kv_tokens >= 3 * 2000
    assert made.plan.max_model_len == 2000


def test_a_memory_limit_is_a_cpu_stages_memory(make: Callable[..., Any]) -> None:
    body = {**HUB, "resources": {"limits": {"memory": "5Gi"}}}
    made = make(body)
    assert len(made.plan.stages) == 2  # the fewest that fit: 4.3 GiB, and a runtime in each
    assert {stage.memory_bytes for stage in made.plan.stages} == {5 * GIB}
    with pytest.raises(DoesNotFit):
        make({**body, "pipeline": {"stages": 1}})


def test_on_gpus_nobody_knows_the_memory_that_is_not_declared(make: Callable[..., Any]) -> None:
    body = {**HUB, "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "5Gi"}}}
    made = make({**body, "pipeline": {"stages": 2}})
    assert made.plan.stages[0].memory_bytes is None
    assert not planning.capacity_known(made.model.spec)


def test_a_cache_has_room_for_a_slice_in_float32(make: Callable[..., Any]) -> None:
    made = make({**HUB, "pipeline": {"stages": 2}})
    for stage in made.plan.stages:
        assert volumes.cache_bytes(stage, is_hub=True) > 2 * stage.weight_bytes + GIB
        assert volumes.cache_bytes(stage, is_hub=False) == GIB
