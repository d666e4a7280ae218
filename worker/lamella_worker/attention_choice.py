"""Which attention backend a stage uses: tried at start on the device at hand, not assumed.

Knows no model: it gets the geometry of one layer. A backend that is wrong or fails on this
hardware is never used, whatever its speed.
"""

import logging
import time
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from lamella_worker.attention import (
    AttentionBackend,
    AttentionSpec,
    PortableAttention,
    ViewAttention,
)
from lamella_worker.attention_plan import AttentionPlan
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.cache import KVShape, PagedPool

log = logging.getLogger(__name__)

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
    candidates = [ViewAttention(float_decode=False)]
    if dtype != torch.float32 and device.type == "cpu":
        candidates.append(ViewAttention(float_decode=True))
    best: AttentionBackend = PortableAttention()
    best_s = float("inf")
    timings: dict[str, float] = {}
    for candidate in candidates:
        if not _agrees(candidate, spec, dtype, device):
            log.warning("attention backend refused", extra={"backend": candidate.name})
            continue
        took_s = _time(candidate, spec, dtype, device)
        timings[candidate.name] = took_s * 1e6
        if took_s < best_s:
            best, best_s = candidate, took_s
    log.info("attention backend chosen", extra={"backend": best.name, "decode_us": timings})
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


def _time(
    candidate: AttentionBackend, spec: AttentionSpec, dtype: torch.dtype, device: torch.device
) -> float:
    """Best seconds of two decode rows at a middling context."""
    blocks = _TIMED_CONTEXT // _BLOCK
    pool = _filled(spec, 2 * blocks, dtype, device)
    segments = tuple(
        Segment(
            s, _TIMED_CONTEXT - 1, 1, np.arange(s * blocks, (s + 1) * blocks, dtype=np.int32), True
        )
        for s in range(2)
    )
    plan = AttentionPlan(StepBatch(segments, _BLOCK), device)
    q = _draw((2, spec.heads, spec.k_dim), dtype, device)
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
