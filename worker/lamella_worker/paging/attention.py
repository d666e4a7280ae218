"""Attention of packed rows over the paged, head-major pool.

Knows no model and no scheduler: it gets queries, a pool, a plan made once per step
(attention_plan.py) and what a layer wants (scale, window, soft-cap, sinks). Runners call `attend`
after they wrote the step's keys and values.

One interface, several backends: `PortableAttention` here gathers and computes in float32 with plain
operations; it runs anywhere and is the reference. attention_views.py has the fast one and its
variants, and attention_choice.py tries at start which of them agree and which is the fastest.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from lamella_worker.paging.attention_plan import AttentionPlan, Piece
from lamella_worker.paging.cache import PagedPool


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What a layer wants. Under a `window` a query sees keys in (position - window, position]."""

    heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # one extra logit per head, [heads]


class AttentionBackend(Protocol):
    """One way to compute attention."""

    name: str

    def attend(
        self, q: torch.Tensor, pool: PagedPool, layer: int, plan: AttentionPlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """q [tokens, heads, k_dim], any token stride -> [tokens, heads * v_dim], q's dtype."""
        ...


def softmax_values(
    scores: torch.Tensor, v: torch.Tensor, spec: AttentionSpec, mask: torch.Tensor | None
) -> torch.Tensor:
    """Finish attention from scaled scores, float32 [..., rows, keys] and v [..., keys, v_dim].

    The soft-cap comes before the mask, as in Gemma 2 (arXiv 2408.00118, section 2).
    """
    if spec.softcap is not None:
        scores = torch.tanh_(scores.div_(spec.softcap)).mul_(spec.softcap)
    if mask is not None:
        scores = scores.add_(mask)
    return torch.matmul(torch.softmax(scores, -1), v)


class PortableAttention:
    """Gather, then plain float32 operations per segment. Slow, and right on any device."""

    name = "portable"

    def attend(
        self, q: torch.Tensor, pool: PagedPool, layer: int, plan: AttentionPlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """See AttentionBackend."""
        parts = [
            self._segment(q[p.row : p.row + p.rows], pool, layer, plan, p, spec)
            for p in plan.pieces(spec.window, grouped=False)
        ]
        out = torch.cat(parts) if len(parts) != 1 else parts[0]
        return out.to(q.dtype)

    def _segment(
        self,
        q: torch.Tensor,
        pool: PagedPool,
        layer: int,
        plan: AttentionPlan,
        piece: Piece,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        groups = spec.heads // spec.kv_heads
        rows = plan.pool_rows(piece)
        # [heads, keys, dim]
        k = pool.keys(layer).index_select(1, rows).float().repeat_interleave(groups, 0)
        v = pool.values(layer).index_select(1, rows).float().repeat_interleave(groups, 0)
        queries = q.transpose(0, 1).float() * spec.scale  # [heads, count, k_dim]
        scores = torch.matmul(queries, k.transpose(1, 2))
        mask = plan.mask(piece, spec.window, torch.float32)
        if spec.sinks is None:
            out = softmax_values(scores, v, spec, mask)
        else:
            scores = scores if mask is None else scores + mask
            sinks = spec.sinks.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)
            # The sink takes part in the softmax and carries no value.
            weights = torch.softmax(torch.cat((scores, sinks), -1), -1)[..., :-1]
            out = torch.matmul(weights, v)
        return out.transpose(0, 1).reshape(q.shape[0], -1)
