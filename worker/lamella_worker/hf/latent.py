"""Packed attention for families that cache a latent and expand it to keys and values on use.

Knows transformers' cache protocol and the stage's pages. packed.py uses it for multi-head latent
attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): pages hold the latent, tens of times smaller
than what it expands to, and the model's own code expands what `LatentCache.update` returns.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache

from lamella_contract.errors import UnsupportedFamily
from lamella_worker.batch import Segment, StepBatch, table_rows
from lamella_worker.paging.attention import AttentionSpec
from lamella_worker.paging.cache import KVShape, PagedPool, rows_tensor


class LatentCache(Cache):
    """Gives a layer the latents of every sequence of the step, one after another.

    Without a pool it learns shapes: `shapes` maps the cache's layers to what they store.
    """

    def __init__(self, pool: PagedPool | None, batch: StepBatch | None) -> None:
        super().__init__(layers=[])
        self.pool = pool
        self.shapes: dict[int, KVShape] = {}
        if pool is not None and batch is not None:
            size = batch.block_size
            parts = [table_rows(s.blocks, size, 0, s.length) for s in batch.segments]
            self._all = torch.cat([rows_tensor(rows, pool.device) for rows in parts])
            self._new = rows_tensor(batch.cache_rows, pool.device)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [1, heads, tokens, dim]; all sequences whole, [1, heads, sum of lengths, dim]."""
        if self.pool is None:
            if layer_idx in self.shapes:
                raise UnsupportedFamily(f"layer {layer_idx} fills its cache twice in one pass")
            heads, k_dim = key_states.shape[1], key_states.shape[3]
            self.shapes[layer_idx] = KVShape(heads, k_dim, value_states.shape[3])
            return key_states, value_states
        k = key_states[0].transpose(0, 1).to(self.pool.dtype)  # [tokens, heads, dim]
        v = value_states[0].transpose(0, 1).to(self.pool.dtype)
        self.pool.write(layer_idx, self._new, k, v)
        keys = self.pool.keys(layer_idx).index_select(1, self._all)
        values = self.pool.values(layer_idx).index_select(1, self._all)
        return keys.unsqueeze(0).to(key_states.dtype), values.unsqueeze(0).to(value_states.dtype)


def attend_whole(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: StepBatch, spec: AttentionSpec
) -> torch.Tensor:
    """q [heads, tokens, k_dim] over k, v [kv_heads, sum of lengths, dim]; [tokens, heads, v_dim].

    Raises UnsupportedFamily for a soft-cap or sinks: no latent family has them.
    """
    if spec.softcap is not None or spec.sinks is not None:
        raise UnsupportedFamily("latent attention with a soft-cap or sinks is not known here")
    parts = []
    first_key = 0
    for segment, first_row in zip(batch.segments, batch.offsets, strict=False):
        rows = slice(int(first_row), int(first_row) + segment.count)
        keys = slice(first_key, first_key + segment.length)
        parts.append(_one(q[:, rows], k[:, keys], v[:, keys], segment, spec))
        first_key += segment.length
    return torch.cat(parts, dim=1).transpose(0, 1)


def _one(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: Segment, spec: AttentionSpec
) -> torch.Tensor:
    """One sequence: [heads, count, v_dim]."""
    whole = segment.start == 0 and spec.window is None
    mask = None if whole else _visible(segment, spec.window, q.device)
    out = F.scaled_dot_product_attention(
        q[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=whole and segment.count > 1,
        scale=spec.scale,
        enable_gqa=spec.heads != spec.kv_heads,
    )
    return out[0]


def _visible(segment: Segment, window: int | None, device: torch.device) -> torch.Tensor | None:
    """bool [count, length]: which keys each query sees; None when all."""
    if segment.count == 1 and window is None:
        return None
    query = torch.arange(segment.start, segment.length, device=device)[:, None]
    key = torch.arange(segment.length, device=device)[None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)
