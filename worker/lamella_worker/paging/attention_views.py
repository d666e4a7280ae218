"""Attention that reads contiguous sequences as views of the pool.

Knows no model. Decode rows and chunks of a prompt can each be computed in two ways; which is faster
depends on the processor (bf16 products with few rows are slow without AMX), so attention_choice.py
measures.
"""

import torch
import torch.nn.functional as F

from lamella_worker.paging.attention import AttentionSpec, PortableAttention, softmax_values
from lamella_worker.paging.attention_plan import AttentionPlan, Piece
from lamella_worker.paging.cache import PagedPool

SCRATCH_ELEMENTS = 1 << 20
"""Keys, values and scores are made in pieces of about this size (4 MB), to stay in cache."""

CHUNK_ROWS = 128
"""Queries of a chunk that are computed at a time; fewer where there are many heads and keys."""


class ViewAttention:
    """Views of the pool where blocks are contiguous, a gather of whole blocks where they are not.

    Decode rows of equal length and equal stride are one call. Query heads that share a key are rows
    of one product: keys are read once per group, not once per query head.
    """

    def __init__(self, *, float_decode: bool = False, chunk_products: bool = False) -> None:
        """How to compute.

        `float_decode`: decode rows in float32 scratch instead of SDPA in the pool's dtype.
        `chunk_products`: chunks of a prompt as plain products instead of SDPA.
        """
        decode = "float32" if float_decode else "sdpa"
        self.name = f"decode {decode}, chunks {'products' if chunk_products else 'sdpa'}"
        self._float_decode = float_decode
        self._chunk_by_products = chunk_products
        self._portable = PortableAttention()
        self._scratch: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def with_chunk_products(self) -> "ViewAttention":
        """The same, but for chunks as plain products."""
        return ViewAttention(float_decode=self._float_decode, chunk_products=True)

    def attend(
        self, q: torch.Tensor, pool: PagedPool, layer: int, plan: AttentionPlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """See AttentionBackend."""
        if spec.sinks is not None:
            return self._portable.attend(q, pool, layer, plan, spec)
        parts = [
            self.piece(q[p.row : p.row + p.rows], pool, layer, plan, p, spec)
            for p in plan.pieces(spec.window, grouped=True)
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def piece(
        self,
        q: torch.Tensor,
        pool: PagedPool,
        layer: int,
        plan: AttentionPlan,
        piece: Piece,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """What `attend` gives for the rows of one piece of the plan; q has only these rows."""
        k, v = self._keys_values(pool, layer, piece)
        if piece.count == 1:
            return self._decode(q, k, v, spec)
        return self._chunk(q, k, v, plan, piece, spec)

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
        if spec.softcap is not None:
            return self._chunk_products(q, k, v, plan, piece, spec, torch.float32)
        if self._chunk_by_products:
            return self._chunk_products(q, k, v, plan, piece, spec, q.dtype)
        plain = plan.is_plain_causal(piece, spec.window)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0),  # [1, heads, count, k_dim]
            k,
            v,
            attn_mask=None if plain else plan.mask(piece, spec.window, q.dtype),
            is_causal=plain,
            scale=spec.scale,
            enable_gqa=spec.heads != spec.kv_heads,
        )
        return out[0].transpose(0, 1).reshape(q.shape[0], -1)

    def _chunk_products(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
        piece: Piece,
        spec: AttentionSpec,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The same as plain products in `dtype`, some queries at a time.

        Each run of queries reads only the keys that it can see.
        """
        count, heads, groups = piece.count, spec.kv_heads, spec.heads // spec.kv_heads
        keys, values = k[0].to(dtype), v[0].to(dtype)
        # Query heads that share a key are rows of one product: [kv_heads, groups, count, k_dim].
        rows = q.view(count, heads, groups, spec.k_dim).permute(1, 2, 0, 3)
        nothing = torch.empty(1, dtype=dtype, device=q.device)
        out = torch.empty(count, heads, groups, spec.v_dim, dtype=q.dtype, device=q.device)
        step = max(16, min(CHUNK_ROWS, SCRATCH_ELEMENTS // (spec.heads * piece.keys)))
        for first in range(0, count, step):
            last = min(first + step, count)
            low, high = plan.visible(piece, spec.window, first, last)
            queries = rows[:, :, first:last].reshape(heads, -1, spec.k_dim).to(dtype)
            seen = keys[:, low:high].transpose(1, 2)
            # The scale is applied before the product is rounded; softmax itself is float32 inside.
            scores = torch.baddbmm(nothing, queries, seen, beta=0, alpha=spec.scale)
            # [kv_heads, groups, queries, keys], so that the mask fits every head
            scores = scores.view(heads, groups, last - first, high - low)
            if spec.softcap is not None:
                scores.div_(spec.softcap).tanh_().mul_(spec.softcap)
            plan.hide_(scores, piece, spec.window, first, low)
            weights = torch.softmax(scores, -1).view(heads, -1, high - low)
            found = torch.bmm(weights, values[:, low:high])
            out[first:last] = found.view(heads, groups, last - first, -1).permute(2, 0, 1, 3)
        return out.view(count, -1)


def _strided(pages: torch.Tensor, piece: Piece) -> torch.Tensor:
    """Equally spaced sequences as a view, [sequences, heads, keys, dim]."""
    heads, rows, dim = pages.shape
    return pages.as_strided(
        (piece.sequences, heads, piece.keys, dim),
        (piece.stride * dim, rows * dim, dim, 1),
        pages.storage_offset() + piece.base * dim,
    )
