"""Attention of packed rows over the paged, head-major pool.

Knows no model and no scheduler: it gets queries, a pool, a plan made once per step
(attention_plan.py) and what a layer wants (scale, window, soft-cap, sinks). Runners call `attend`
after they wrote the step's keys and values.

Backends behind one interface. `portable` gathers and computes in float32 with plain operations: it
runs anywhere and is the reference. `sdpa` and `float32` read contiguous sequences as views; they
differ in how they compute decode rows, and which is faster depends on the processor (bf16 products
with few rows are slow without AMX). attention_choice.py tries them at start.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from lamella_worker.attention_plan import AttentionPlan, Piece
from lamella_worker.cache import PagedPool

SCRATCH_ELEMENTS = 1 << 20
"""Float32 keys and values are made in pieces of about this size (4 MB), to stay in cache."""


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


class ViewAttention:
    """Views of the pool where blocks are contiguous, a gather of whole blocks where they are not.

    Decode rows of equal length and equal stride are one call. Query heads that share a key are rows
    of one product: keys are read once per group, not once per query head.
    """

    def __init__(self, *, float_decode: bool) -> None:
        """`float_decode`: decode in float32 scratch instead of SDPA in the pool's dtype."""
        self.name = "float32" if float_decode else "sdpa"
        self._float_decode = float_decode
        self._portable = PortableAttention()
        self._scratch: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def attend(
        self, q: torch.Tensor, pool: PagedPool, layer: int, plan: AttentionPlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """See AttentionBackend."""
        if spec.sinks is not None:
            return self._portable.attend(q, pool, layer, plan, spec)
        parts = []
        for piece in plan.pieces(spec.window, grouped=True):
            rows = q[piece.row : piece.row + piece.rows]
            k, v = self._keys_values(pool, layer, piece)
            if piece.count == 1:
                parts.append(self._decode(rows, k, v, spec))
            else:
                parts.append(self._chunk(rows, k, v, plan, piece, spec))
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _keys_values(
        self, pool: PagedPool, layer: int, piece: Piece
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [sequences, kv_heads, keys, dim] of a piece."""
        keys, values = pool.keys(layer), pool.values(layer)
        if piece.base >= 0:
            return _strided(keys, piece), _strided(values, piece)
        joined = pool.joined(layer)
        if joined is not None:
            both = self._gather("kv", joined, pool.block_size, piece)
            heads = keys.shape[0]
            return both[:heads].unsqueeze(0), both[heads:].unsqueeze(0)
        return (
            self._gather("k", keys, pool.block_size, piece).unsqueeze(0),
            self._gather("v", values, pool.block_size, piece).unsqueeze(0),
        )

    def _gather(
        self, name: str, pages: torch.Tensor, block_size: int, piece: Piece
    ) -> torch.Tensor:
        """A sequence's pages, [heads, keys, dim], copied block by block into scratch."""
        heads, rows, dim = pages.shape
        blocks = piece.blocks
        assert blocks is not None
        # Whole blocks are long runs to copy; a gather of rows would be block_size times as many.
        out = self._room(name, pages, heads * len(blocks) * block_size * dim)
        out = out.view(heads, len(blocks), block_size * dim)
        source = pages.view(heads, rows // block_size, block_size * dim)
        torch.index_select(source, 1, blocks, out=out)
        found = out.view(heads, -1, dim)
        return found[:, piece.skip : piece.skip + piece.keys]

    def _room(self, name: str, like: torch.Tensor, elements: int) -> torch.Tensor:
        """Scratch that grows and is kept: fresh big gathers would page-fault every time."""
        key = (name, like.dtype)
        room = self._scratch.get(key)
        if room is None or room.numel() < elements or room.device != like.device:
            room = torch.empty(
                max(elements, 1 << 16) * 5 // 4, dtype=like.dtype, device=like.device
            )
            self._scratch[key] = room
        return room[:elements]

    def _decode(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec
    ) -> torch.Tensor:
        """One query per sequence: q [n, heads, k_dim], k and v [n, kv_heads, keys, dim]."""
        n = q.shape[0]
        rows = q.view(n, spec.kv_heads, spec.heads // spec.kv_heads, spec.k_dim)
        if spec.softcap is None and not self._float_decode:
            out = F.scaled_dot_product_attention(rows, k, v, scale=spec.scale)
            return out.reshape(n, -1)
        scaled = rows.float() * spec.scale
        return self._decode_float(scaled, k, v, spec).to(q.dtype).view(n, -1)

    def _decode_float(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: AttentionSpec
    ) -> torch.Tensor:
        """q float32 [n, kv_heads, group, k_dim] -> float32 [n, kv_heads, group, v_dim]."""
        n, heads, group, _ = q.shape
        keys = k.shape[2]
        per_head = keys * (spec.k_dim + spec.v_dim)
        sequences = max(1, min(n, SCRATCH_ELEMENTS // (heads * per_head)))
        # A single long sequence is cut by heads instead.
        step = heads if sequences > 1 else max(1, min(heads, SCRATCH_ELEMENTS // per_head))
        room = torch.empty(0, dtype=torch.float32, device=q.device)
        room = self._room("f", room, sequences * step * per_head)
        out = torch.empty(n, heads, group, spec.v_dim, dtype=torch.float32, device=q.device)
        for first in range(0, n, sequences):
            s = slice(first, min(first + sequences, n))
            count = s.stop - first
            for head in range(0, heads, step):
                h = slice(head, min(head + step, heads))
                pairs = count * (h.stop - head)
                cut = pairs * keys * spec.k_dim
                kf = room[:cut].view(count, -1, keys, spec.k_dim)
                vf = room[cut : cut + pairs * keys * spec.v_dim].view(count, -1, keys, spec.v_dim)
                kf.copy_(k[s, h])
                vf.copy_(v[s, h])
                queries = q[s, h].reshape(pairs, group, spec.k_dim)
                scores = torch.bmm(queries, kf.view(pairs, keys, -1).transpose(1, 2))
                found = softmax_values(scores, vf.view(pairs, keys, -1), spec, None)
                out[s, h] = found.view(count, -1, group, spec.v_dim)
        return out

    def _chunk(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
        piece: Piece,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Queries of one sequence: q [count, heads, k_dim], k and v [1, kv_heads, keys, dim]."""
        queries = q.transpose(0, 1).unsqueeze(0)  # [1, heads, count, k_dim]
        grouped = spec.heads != spec.kv_heads
        if spec.softcap is not None:
            groups = spec.heads // spec.kv_heads
            kf = k[0].float().repeat_interleave(groups, 0)
            vf = v[0].float().repeat_interleave(groups, 0)
            scores = torch.matmul(queries[0].float() * spec.scale, kf.transpose(1, 2))
            mask = plan.mask(piece, spec.window, torch.float32)
            out = softmax_values(scores, vf, spec, mask).to(q.dtype).unsqueeze(0)
        elif plan.is_plain_causal(piece, spec.window):
            out = F.scaled_dot_product_attention(
                queries, k, v, is_causal=True, scale=spec.scale, enable_gqa=grouped
            )
        else:
            mask = plan.mask(piece, spec.window, q.dtype)
            out = F.scaled_dot_product_attention(
                queries, k, v, attn_mask=mask, scale=spec.scale, enable_gqa=grouped
            )
        return out[0].transpose(0, 1).reshape(q.shape[0], -1)


def _strided(pages: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Equally spaced sequences as a view, [sequences, heads, keys, dim]."""
    heads, rows, dim = pages.shape
    return pages.as_strided(
        (piece.sequences, heads, piece.keys, dim),
        (piece.stride * dim, rows * dim, dim, 1),
        pages.storage_offset() + piece.base * dim,
    )
