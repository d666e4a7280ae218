"""Runs all rows of a step in one forward pass of the library's model, with our attention.

Knows transformers' attention interface: the model is built with an attention name for which no
mask function is registered, so no mask is ever made, and each attention layer calls
`paged_attention` with its queries, keys and values for the packed rows `[1, tokens]`.

Right only for families whose layers mix tokens in that one call and nowhere else (family_table.py
names them, the law of the split found them). A keyword that we do not know is refused: it could
change the result.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lamella_contract.errors import UnsupportedFamily
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.hf.latent import LatentCache, attend_whole
from lamella_worker.hf.rope_freeze import freeze_rope
from lamella_worker.hf.slice import HfSlice
from lamella_worker.paging.attention import AttentionSpec
from lamella_worker.paging.attention_choice import choose_attention
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.cache import KVShape, PagedPool, rows_tensor

ATTENTION_NAME = "lamella_paged"

# Keywords that change nothing for one packed, causal pass without dropout.
_HARMLESS = frozenset({"position_ids", "use_cache", "output_attentions", "output_router_logits"})


@dataclass
class StepContext:
    """What the attention layers of one step need; `pool` is None while shapes are learnt.

    `shared` maps a layer that has no keys of its own to the one whose pages it reads. `latent` is
    the cache of a family that stores latents; its layers get whole sequences from it.
    """

    pool: PagedPool | None
    batch: StepBatch | None = None
    plan: AttentionPlan | None = None
    rows: torch.Tensor | None = None  # int64 [tokens], where the new keys and values go
    shared: dict[int, int] = field(default_factory=dict)
    latent: LatentCache | None = None
    shapes: dict[int, KVShape] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    called: list[int] = field(default_factory=list)


_step: ContextVar[StepContext | None] = ContextVar("lamella_step", default=None)


def paged_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of q [1, heads, tokens, k_dim] over pages; [1, tokens, heads, v_dim].

    Raises UnsupportedFamily for anything that it does not compute.
    """
    step = _step.get()
    if step is None:
        raise UnsupportedFamily("paged attention runs within a step of PackedRunner only")
    _refuse(module, attention_mask, is_causal, unknown)
    layer = int(module.layer_idx)
    step.called.append(layer)
    heads, kv_heads = query.shape[1], key.shape[1]
    shape = KVShape(heads=kv_heads, k_dim=key.shape[-1], v_dim=value.shape[-1])
    tokens = query.shape[2]
    spec = AttentionSpec(
        heads=heads,
        kv_heads=kv_heads,
        k_dim=shape.k_dim,
        v_dim=shape.v_dim,
        scale=shape.k_dim**-0.5 if scaling is None else float(scaling),
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    backend = choose_attention(spec, query.dtype, query.device)  # tried once per geometry
    if step.pool is None:
        _learn(step, layer, shape, key)
        return value.repeat_interleave(heads // kv_heads, 1).transpose(1, 2), None
    assert step.batch is not None
    if step.latent is not None:
        return attend_whole(query[0], key[0], value[0], step.batch, spec)[None], None
    assert step.plan is not None
    assert step.rows is not None
    owner = step.shared.get(layer, layer)
    if owner == layer:
        k, v = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [tokens, kv_heads, dim]
        step.pool.write(layer, step.rows, k.to(step.pool.dtype), v.to(step.pool.dtype))
    q = query[0].transpose(0, 1)  # [tokens, heads, k_dim]
    out = backend.attend(q, step.pool, owner, step.plan, spec)
    return out.view(1, tokens, heads, shape.v_dim), None


def _learn(step: StepContext, layer: int, shape: KVShape, key: torch.Tensor) -> None:
    """Note what a layer keeps, or whose keys it borrows: the very same tensor came before."""
    for other, seen in step.keys.items():
        if seen.data_ptr() == key.data_ptr() and seen.shape == key.shape:
            step.shared[layer] = other
            return
    step.keys[layer] = key  # held, so that no later tensor has its address
    step.shapes[layer] = shape


def _refuse(module: Any, mask: Any, is_causal: bool | None, unknown: dict[str, Any]) -> None:
    name = type(module).__name__
    if mask is not None:
        raise UnsupportedFamily(f"{name} makes a mask of its own: its rows cannot be packed")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedFamily(f"{name} attends to later tokens: its rows cannot be packed")
    strange = [k for k, v in unknown.items() if v is not None and k not in _HARMLESS]
    if strange:
        raise UnsupportedFamily(f"{name} asks attention for {strange}, which is not known here")


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)


class PackedRunner:
    """A `SliceRunner` (model.py) over a slice that was built with `ATTENTION_NAME`."""

    def __init__(self, piece: HfSlice) -> None:
        self.piece = piece
        self.pool: PagedPool | None = None
        self._shared: dict[int, int] = {}
        self._is_latent = getattr(piece.config, "kv_lora_rank", None) is not None

    @property
    def kv_bytes(self) -> int:
        """Bytes of the pages."""
        return self.pool.kv_bytes if self.pool is not None else 0

    def setup_caches(
        self, *, num_blocks: int, block_size: int, max_sequences: int, max_model_len: int
    ) -> None:
        """Reserve the pages and fix the rotary frequencies.

        Raises UnsupportedFamily when the model's layers do not all call the attention just once.
        """
        freeze_rope(self.piece.model, max_model_len)
        learnt = self._learn()
        self._shared = learnt.shared
        shapes = learnt.latent.shapes if learnt.latent is not None else learnt.shapes
        self.pool = PagedPool(num_blocks, block_size, shapes, self.piece.dtype, self.piece.device)

    def reset_caches(self) -> None:
        """Forget every sequence; pages stay reserved."""
        if self.pool is not None:
            self.pool.reset()

    def release(self, slot: int) -> None:
        """Nothing is kept beside the pages."""

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy pages, block by block."""
        assert self.pool is not None, "setup_caches comes first"
        self.pool.copy(sources, blocks)

    @torch.inference_mode()
    def step(self, batch: StepBatch, inputs: Bundle) -> Bundle:
        """Run the step's rows, packed."""
        assert self.pool is not None, "setup_caches comes first"
        device = self.piece.device
        context = StepContext(
            pool=self.pool,
            batch=batch,
            plan=AttentionPlan(batch, device),
            rows=rows_tensor(batch.cache_rows, device),
            shared=self._shared,
            latent=LatentCache(self.pool, batch) if self._is_latent else None,
        )
        positions = rows_tensor(batch.positions, device)
        wanted = rows_tensor(batch.sample_rows, device) if batch.sampled else None
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return self._forward(context, inputs, positions, wanted)

    def _forward(
        self,
        context: StepContext,
        inputs: Bundle,
        positions: torch.Tensor,
        wanted: torch.Tensor | None,
    ) -> Bundle:
        token = _step.set(context)
        try:
            if context.latent is None:
                return self.piece.forward(inputs, positions, wanted)
            cache = context.latent
            return self.piece.forward(inputs, positions, wanted, cache=cache, use_cache=True)
        finally:
            _step.reset(token)

    @torch.inference_mode()
    def _learn(self) -> StepContext:
        """Learn from one token what each owned layer hands to the attention or to the cache."""
        device = self.piece.device
        latent = LatentCache(None, None) if self._is_latent else None
        context = StepContext(pool=None, latent=latent)
        ids = torch.zeros(1, dtype=torch.int64, device=device)
        inputs = {"token_ids": ids} if self.piece.is_first else self.piece.probe_bundle(ids)
        self._forward(context, inputs, torch.zeros_like(ids), None)
        called, layers = context.called, self.piece.last - self.piece.first
        if len(set(called)) != len(called) or len(called) % layers:
            raise UnsupportedFamily(
                f"{layers} layers called the attention as {called}: not once each"
            )
        if latent is not None and set(latent.shapes) != set(called):
            raise UnsupportedFamily(
                f"layers {called} attend, layers {sorted(latent.shapes)} fill the cache"
            )
        return context
