"""Where a stage computes, and how much memory its pod asks for, in bytes.

Knows no pod. Device memory is what the manifest says (``stageMemory``); host memory follows from
the plan, so that a GPU stage is not the first pod to be evicted while it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella_contract.plan import Plan
from lamella_contract.spec import ShardedModelSpec, quantity
from lamella_operator.settings import MIB, Settings

CUDA, CPU = "cuda", "cpu"
STAGING_SPARE_BYTES = 256 * MIB
"""Beside the slice, of what a GPU stage reads through: one tensor in two dtypes."""
LOADING_SHARE = 10
"""A CPU stage holds this part of its slice twice while it loads: tensors change their layout."""
USUAL_THREADS = 2
"""Compute threads where no CPUs are asked for: the node's cores are others' too."""


def resources_of(spec: ShardedModelSpec, stage: int) -> Mapping[str, Any]:
    """What the manifest asks for ``stage``: its own resources, else the model's."""
    each = spec.pipeline.stage_specs
    own = each[stage].resources if stage < len(each) else {}
    return own or spec.resources


def asked(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Each resource that is limited or requested, with its amount (the limit where both are)."""
    return {**_part(resources, "requests"), **_part(resources, "limits")}


def devices(resources: Mapping[str, Any]) -> list[str]:
    """Resources of device plugins among those asked for, in the order of their names."""
    return sorted(name for name, amount in asked(resources).items() if amount and _device(name))


def device_of(spec: ShardedModelSpec, stage: int) -> str:
    """``cuda`` or ``cpu``: as the manifest says, else a GPU where one is asked for."""
    if spec.pipeline.device is not None:
        return spec.pipeline.device
    return CUDA if devices(resources_of(spec, stage)) else CPU


def runs_on_cpu(spec: ShardedModelSpec) -> bool:
    """Whether every stage does."""
    stages = max(len(spec.pipeline.stage_specs), 1)
    return all(device_of(spec, stage) == CPU for stage in range(stages))


def runtime_bytes(spec: ShardedModelSpec, settings: Settings) -> int:
    """Bytes that a plan keeps free on each stage: of the device's memory, or of the pod's."""
    return settings.worker_runtime_bytes if runs_on_cpu(spec) else settings.device_runtime_bytes


def host_memory(plan: Plan, stage: int, spec: ShardedModelSpec, settings: Settings) -> int:
    """Bytes of host memory that the pod of ``stage`` needs, in whole MiB.

    A CPU stage holds weights, states and caches there, and takes no more than ``stageMemory``.
    """
    planned = plan.stages[stage]
    if device_of(spec, stage) == CUDA:
        staging = min(settings.staging_bytes, planned.weight_bytes + STAGING_SPARE_BYTES)
        return _whole_mib(settings.worker_runtime_bytes + staging)
    short = max(settings.worker_runtime_bytes - planned.runtime_bytes, 0)
    needed = planned.needed_bytes(plan.kv_tokens) + short
    needed += planned.weight_bytes // LOADING_SHARE
    most = planned.memory_bytes
    return _whole_mib(needed if most is None else min(needed, most))


def threads(resources: Mapping[str, Any]) -> int:
    """Compute threads: the CPUs that are the pod's, at least one."""
    cpus = asked(resources).get("cpu")
    return USUAL_THREADS if cpus is None else max(int(cores(cpus)), 1)


def cores(amount: object) -> float:
    """CPUs that a Kubernetes quantity means: ``"1500m"`` is 1.5."""
    text = str(amount)
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return float(quantity(text, "spec.resources"))


def mib(size: int) -> str:
    """Bytes as Kubernetes reads them."""
    return f"{-(-size // MIB)}Mi"


def _device(name: str) -> bool:
    domain, slash, _ = name.rpartition("/")
    if "gpu" in name.lower():
        return True
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


def _part(resources: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = resources.get(key)
    return part if isinstance(part, Mapping) else {}


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB
