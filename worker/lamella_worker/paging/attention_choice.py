"""Which attention backend a stage uses: tried at start on the device at hand, not assumed.

Knows no model: it gets the geometry of one layer. A backend that is wrong or fails on this
hardware is never used, whatever its speed.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TypeAlias

import numpy as np
import torch

from lamella_worker.batch import Segment, StepBatch
from lamella_worker.paging.attention import AttentionBackend, AttentionSpec, PortableAttention
from lamella_worker.paging.attention_native import NativeAttention, compiled
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.attention_views import ViewAttention
from lamella_worker.paging.cache import KVShape, PagedPool

log = logging.getLogger(__name__)

Case: TypeAlias = tuple[StepBatch, PagedPool]

_BLOCK = 16
_TIMED_CONTEXT = 256  # tokens; long enough that arithmetic outweighs the calls


def choose_attention(
    spec: AttentionSpec, dtype: torch.dtype, device: torch.device
) -> AttentionBackend:
    """The fastest backend that agrees with the portable one for layers of this geometry."""
    return _choose(spec.heads, spec.kv_heads, spec.k_dim, spec.v_dim, dtype, str(device))


@cache
def _choose(
    heads: int, kv_heads: int, k_dim: int, v_dim: int, dtype: torch.dtype, device_name: str
) -> AttentionBackend:
    device = torch.device(device_name)
    spec = AttentionSpec(heads, kv_heads, k_dim, v_dim, k_dim**-0.5)
    # Decode first, then chunks with the winner of decode: the two do not touch each other.
    on_cpu = device.type == "cpu"
    slow_types = on_cpu and dtype != torch.float32
    decode = [False, True] if slow_types else [False]
    views = [ViewAttention(float_decode=f) for f in decode]
    best = _fastest(views, spec, dtype, device, _decode_case(spec, dtype, device))
    if slow_types and isinstance(best, ViewAttention):
        views = [best, best.with_chunk_products()]
        best = _fastest(views, spec, dtype, device, _chunk_case(spec, dtype, device))
    if on_cpu and isinstance(best, ViewAttention):
        function = compiled(heads // kv_heads, k_dim, v_dim, dtype)
        if function is not None:
            both: list[AttentionBackend] = [best, NativeAttention(function, best)]
            best = _fastest(both, spec, dtype, device, _decode_case(spec, dtype, device))
    return best


def _fastest(
    candidates: Sequence[AttentionBackend],
    spec: AttentionSpec,
    dtype: torch.dtype,
    device: torch.device,
    case: Case,
) -> AttentionBackend:
    best: AttentionBackend = PortableAttention()
    best_s = float("inf")
    timings: dict[str, float] = {}
    for candidate in candidates:
        if not _agrees(candidate, spec, dtype, device):
            log.warning("attention backend refused", extra={"backend": candidate.name})
            continue
        took_s = _time(candidate, spec, case, device)
        timings[candidate.name] = took_s * 1e6
        if took_s < best_s:
            best, best_s = candidate, took_s
    log.info("attention backend chosen", extra={"backend": best.name, "took_us": timings})
    return best


def _agrees(
    candidate: AttentionBackend, spec: AttentionSpec, dtype: torch.dtype, device: torch.device
) -> bool:
    """A tiny step with everything in it: decode, prefill, a chunk on a prefix, scattered blocks."""
    try:
        batch, pool = _case(spec, dtype, device)
        q = _draw((batch.tokens, spec.heads, spec.k_dim), dtype, device)
        for variant in (spec, replace(spec, window=20), replace(spec, softcap=5.0)):
            plan = AttentionPlan(batch, device)
            wanted = PortableAttention().attend(q, pool, 0, plan, variant).float()
            found = candidate.attend(q, pool, 0, plan, variant).float()
            tolerance = 1e-5 if dtype == torch.float32 else 3e-2
            if not torch.allclose(found, wanted, rtol=tolerance, atol=tolerance):
                return False
    except RuntimeError as e:
        # A kernel that this device or build does not have.
        log.info("attention backend failed", extra={"reason": str(e)[:200]})
        return False
    return True


def _case(
    spec: AttentionSpec, dtype: torch.dtype, device: torch.device
) -> tuple[StepBatch, PagedPool]:
    tables = ([0, 1, 2], [3, 4, 5], [9, 7, 8], [12, 10], [14])
    rows = ((40, 1), (40, 1), (36, 1), (11, 20), (0, 9))
    segments = tuple(
        Segment(slot, start, count, np.array(table, np.int32), True)
        for slot, (table, (start, count)) in enumerate(zip(tables, rows, strict=True))
    )
    return StepBatch(segments, _BLOCK), _filled(spec, 16, dtype, device)


def _filled(
    spec: AttentionSpec, num_blocks: int, dtype: torch.dtype, device: torch.device
) -> PagedPool:
    shape = KVShape(spec.kv_heads, spec.k_dim, spec.v_dim)
    pool = PagedPool(num_blocks, _BLOCK, {0: shape}, dtype, device)
    for pages in (pool.keys(0), pool.values(0)):
        pages.copy_(_draw(tuple(pages.shape), dtype, device))
    return pool


def _draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def _decode_case(spec: AttentionSpec, dtype: torch.dtype, device: torch.device) -> Case:
    """Two decode rows at a middling context."""
    blocks = _TIMED_CONTEXT // _BLOCK
    tables = [np.arange(s * blocks, (s + 1) * blocks, dtype=np.int32) for s in range(2)]
    segments = tuple(
        Segment(s, _TIMED_CONTEXT - 1, 1, table, True) for s, table in enumerate(tables)
    )
    return StepBatch(segments, _BLOCK), _filled(spec, 2 * blocks, dtype, device)


def _chunk_case(spec: AttentionSpec, dtype: torch.dtype, device: torch.device) -> Case:
    """Half of a middling prompt, on the other half."""
    blocks, half = _TIMED_CONTEXT // _BLOCK, _TIMED_CONTEXT // 2
    segment = Segment(0, half, half, np.arange(blocks, dtype=np.int32), True)
    return StepBatch((segment,), _BLOCK), _filled(spec, blocks, dtype, device)


def _time(
    candidate: AttentionBackend, spec: AttentionSpec, case: Case, device: torch.device
) -> float:
    """Best seconds of a case."""
    batch, pool = case
    plan = AttentionPlan(batch, device)
    q = _draw((batch.tokens, spec.heads, spec.k_dim), pool.dtype, device)
    # CPU time where the CPU computes: a busy machine must not decide.
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(5):
        start = clock()
        candidate.attend(q, pool, 0, plan, spec)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    return best
