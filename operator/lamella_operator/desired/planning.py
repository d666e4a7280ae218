"""The plan of a model on a cluster: what its manifest says, and what follows where it is silent.

Knows no pod and no node. On GPUs the device's memory is the manifest's word or unknown; on CPUs it
is the pod's own memory, which this module chooses where nobody said it, so it is always known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from lamella_contract import names
from lamella_contract.errors import PlanError
from lamella_contract.plan import Plan, plan
from lamella_contract.profile import ModelProfile
from lamella_contract.spec import ShardedModelSpec, quantity
from lamella_operator.desired import memory
from lamella_operator.settings import GIB, Settings

LEAST_CACHES_BYTES, MOST_CACHES_BYTES = 1 * GIB, 4 * GIB
"""Caches of a pipeline on CPUs that nobody declared: one request of the model's full context, but
no less and no more than this. A CPU computes no more tokens than that in useful time."""


def planned(profile: ModelProfile, spec: ShardedModelSpec, settings: Settings) -> Plan:
    """Deal the layers out. Raises `PlanError` and its kind, with numbers and a way out."""
    quantization = spec.pipeline.quantization
    if quantization != names.QUANTIZATIONS[0] and not memory.runs_on_cpu(spec):
        raise PlanError(
            f"quantization: got {quantization} for stages on GPUs, want none there, or device cpu"
        )
    make = functools.partial(
        plan,
        profile,
        max_model_len=spec.context.max_model_len,
        max_sequences=spec.context.max_sequences,
        runtime_bytes=memory.runtime_bytes(spec, settings),
    )
    wanted = functools.partial(make, stages=spec.pipeline.stages, split=spec.pipeline.split)
    known = stage_memory(spec)
    if known is not None or not memory.runs_on_cpu(spec):
        return wanted(stage_memory=known)
    return _with_caches(wanted(), profile, spec, make)


def stage_memory(spec: ShardedModelSpec) -> int | tuple[int, ...] | None:
    """Bytes that each stage's slice and caches may take; None: unknown.

    On CPUs a limit of the pod's memory says it too.
    """
    declared = spec.pipeline.memory()
    if declared is not None or not memory.runs_on_cpu(spec):
        return declared
    stages = len(spec.pipeline.stage_specs)
    limits = [
        memory.asked(memory.resources_of(spec, stage)).get("memory")
        for stage in range(max(stages, 1))
    ]
    if any(limit is None for limit in limits):
        return None
    sizes = tuple(quantity(limit, "spec.resources.limits.memory") for limit in limits)
    return sizes if stages else sizes[0]


def capacity_known(spec: ShardedModelSpec) -> bool:
    """Whether the plan's caches were bounded by memory that is there; else stages tell."""
    return stage_memory(spec) is not None or memory.runs_on_cpu(spec)


def _with_caches(
    first: Plan, profile: ModelProfile, spec: ShardedModelSpec, make: Callable[..., Plan]
) -> Plan:
    """``first``'s cuts, with caches of a sensible size dealt out by what a token takes."""
    caches = _cache_bytes(first, profile, spec)
    total = profile.kv_bytes_per_token
    return make(
        split=tuple(stage.num_layers for stage in first.stages),
        stage_memory=tuple(
            stage.needed_bytes(0) + (-(-caches * stage.kv_bytes_per_token // total) if total else 0)
            for stage in first.stages
        ),
    )


def _cache_bytes(first: Plan, profile: ModelProfile, spec: ShardedModelSpec) -> int:
    """Bytes of a pipeline's caches: what was declared, else a sensible amount."""
    per_token = profile.kv_bytes_per_token
    context = spec.context.max_model_len or profile.max_model_len
    rounding = first.block_size * per_token * (first.max_sequences + 1)
    if spec.context.max_sequences is not None:
        return context * per_token * spec.context.max_sequences + rounding
    usual = min(max(context * per_token, LEAST_CACHES_BYTES), MOST_CACHES_BYTES)
    if spec.context.max_model_len is None:
        return usual
    return max(usual, context * per_token + rounding)
