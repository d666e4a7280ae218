"""How a model's stages share the memory of one machine: a plan whose caches fit what is free here.

Pure: profile, manifest and machine facts in, `Plan` out. The cuts are those that the manifest's own
memory gives, so the plan here and the plan on a cluster agree; only the caches are as large as this
machine allows.
"""

from collections.abc import Sequence

from lamella.machine import Machine
from lamella_contract.plan import Plan, StagePlan, plan
from lamella_contract.profile import ModelProfile
from lamella_contract.spec import ShardedModelSpec

RUNTIME_BYTES = 900 << 20
"""What a stage weighs beside weights and caches: torch and transformers imported (850 MB), sockets,
scratch."""
FORKED_BYTES = 300 << 20
"""The same for stages after the first on one machine, whose parent's pages they share."""
CPU_CACHE_SHARE = 0.5
"""Of the memory left on a CPU machine, how much caches may take: other programs live here too."""
CPU_CACHE_LEAST_BYTES, CPU_CACHE_MOST_BYTES = 1 << 30, 4 << 30
"""Of caches that nobody declared: one request of the model's full context, but no less and no more
than this. A CPU computes no more tokens than that in useful time."""
GPU_CACHE_SHARE = 0.9


def declared(profile: ModelProfile, wanted: ShardedModelSpec) -> Plan:
    """The plan by the manifest alone, as a cluster would make it. Raises PlanError."""
    return plan(
        profile,
        stages=wanted.pipeline.stages,
        split=wanted.pipeline.split,
        stage_memory=wanted.pipeline.memory(),
        max_model_len=wanted.context.max_model_len,
        max_sequences=wanted.context.max_sequences,
        runtime_bytes=RUNTIME_BYTES,
    )


def local(profile: ModelProfile, wanted: ShardedModelSpec, machine: Machine, device: str) -> Plan:
    """The plan for this machine. Raises DoesNotFit with the numbers when even the weights find no
    room."""
    first = declared(profile, wanted)
    runtime = _runtime_bytes(len(first.stages), device)
    room = _room(first.stages, runtime, machine, device, _most_cache_bytes(profile, wanted, first))
    memory = tuple(
        here
        if stage.memory_bytes is None
        else min(here, stage.memory_bytes - RUNTIME_BYTES + runtime)
        for here, stage in zip(room, first.stages, strict=True)
    )
    return plan(
        profile,
        split=tuple(stage.num_layers for stage in first.stages),
        stage_memory=memory,
        max_model_len=wanted.context.max_model_len,
        max_sequences=wanted.context.max_sequences,
        runtime_bytes=runtime,
    )


def _most_cache_bytes(profile: ModelProfile, wanted: ShardedModelSpec, plan: Plan) -> int:
    """Bytes of caches on a CPU: what was declared, else a sensible amount."""
    per_token = profile.kv_bytes_per_token
    context = wanted.context.max_model_len or profile.max_model_len
    if wanted.context.max_sequences is not None:
        return context * per_token * wanted.context.max_sequences + _block_bytes(plan, per_token)
    usual = min(max(context * per_token, CPU_CACHE_LEAST_BYTES), CPU_CACHE_MOST_BYTES)
    if wanted.context.max_model_len is None:
        return usual
    return max(usual, context * per_token + _block_bytes(plan, per_token))


def _block_bytes(plan: Plan, bytes_per_token: int) -> int:
    """What rounding to whole blocks can cost, on every stage."""
    return plan.block_size * bytes_per_token * (plan.max_sequences + 1)


def _runtime_bytes(stages: int, device: str) -> int:
    """Per stage; on a CPU the mean, for the parent's pages are shared."""
    if device != "cpu":
        return RUNTIME_BYTES
    return (RUNTIME_BYTES + (stages - 1) * FORKED_BYTES) // stages


def _room(
    stages: Sequence[StagePlan],
    runtime_bytes: int,
    machine: Machine,
    device: str,
    most_cache_bytes: int,
) -> tuple[int, ...]:
    """Bytes for each stage: its weights, its states, the runtime, and its part of the caches'
    bytes."""
    fixed = [stage.weight_bytes + stage.state_bytes + runtime_bytes for stage in stages]
    if device == "cpu":
        caches = _cache_bytes(machine.free_bytes - sum(fixed), CPU_CACHE_SHARE, most_cache_bytes)
        return _deal(fixed, stages, range(len(stages)), caches)
    room = [0] * len(stages)
    for gpu, free_bytes in enumerate(machine.gpu_free_bytes):
        here = [k for k in range(len(stages)) if k % len(machine.gpu_free_bytes) == gpu]
        caches = _cache_bytes(free_bytes - sum(fixed[k] for k in here), GPU_CACHE_SHARE, None)
        for k, size in zip(here, _deal(fixed, stages, here, caches), strict=True):
            room[k] = size
    return tuple(room)


def _cache_bytes(left_bytes: int, share: float, most: int | None) -> int:
    """Negative when the weights alone do not fit: the plan then says by how much."""
    if left_bytes <= 0:
        return left_bytes
    wanted = int(left_bytes * share)
    return wanted if most is None else min(wanted, most)


def _deal(
    fixed: Sequence[int], stages: Sequence[StagePlan], which: Sequence[int], caches: int
) -> tuple[int, ...]:
    """Each stage's bytes when `caches` are dealt out by what a token takes on it."""
    total = sum(stages[k].kv_bytes_per_token for k in which)
    shares = [stages[k].kv_bytes_per_token / total if total else 1 / len(which) for k in which]
    return tuple(
        max(fixed[k] + int(caches * share), 0) for k, share in zip(which, shares, strict=True)
    )
