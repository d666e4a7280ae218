"""The arithmetic of one decoder layer on packed rows.

Knows no checkpoint, no batch composition and no other layer. fast.py runs layers one after another;
each gets the hidden states and a `StepContext` that was made once for the step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F

from lamella_worker.fast.linear import Linear
from lamella_worker.fast.rope import Angles, rotate_
from lamella_worker.fast.spec import DecoderSpec, NormSpec
from lamella_worker.fast.weights import LayerWeights, NormWeights
from lamella_worker.paging.attention import AttentionBackend, AttentionSpec
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.cache import PagedPool

Norm: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class StepContext:
    """What every layer of a step shares."""

    pool: PagedPool
    backend: AttentionBackend
    plan: AttentionPlan
    tokens: int  # rows that are tokens; rows of the hidden states after them are padding
    cache_rows: torch.Tensor  # int64 [tokens]
    angles: dict[str, Angles]  # by layer type; "" where a family has one rotation


class RMSNorm:
    """x / rms(x) * (weight + offset), over the last dimension (arXiv 1910.07467).

    The root of (sum of squares + eps * size) is hypot(norm, sqrt(eps * size)): half the cost of the
    plain formula, and rounded once.
    """

    def __init__(self, weights: NormWeights, spec: NormSpec, size: int) -> None:
        assert weights.weight is not None
        self._weight = (weights.weight.float() + spec.offset) * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(spec.eps * size), device=self._weight.device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same shape and dtype."""
        y = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True).hypot_(self._floor)
        return y.div_(norm).mul_(self._weight).to(x.dtype)


class LayerNorm:
    """(x - mean) / std * (weight + offset) + bias, over the last dimension."""

    def __init__(self, weights: NormWeights, spec: NormSpec, size: int) -> None:
        self._shape = (size,)
        self._eps = spec.eps
        weight = weights.weight
        # Weights per head ([heads, size], Cohere) do not fit layer_norm's own argument.
        self._per_head = weight if weight is not None and weight.dim() > 1 else None
        self._weight = None if weight is None or weight.dim() > 1 else weight + spec.offset
        self._bias = weights.bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same shape and dtype."""
        y = F.layer_norm(x, self._shape, self._weight, self._bias, self._eps)
        return y if self._per_head is None else y.mul_(self._per_head)


def make_norm(weights: NormWeights, spec: NormSpec, size: int) -> Norm:
    """The norm that a family has."""
    return RMSNorm(weights, spec, size) if spec.kind == "rms" else LayerNorm(weights, spec, size)


class DecoderLayer:
    """Attention and MLP of one layer; the residual is added in the product where possible."""

    def __init__(self, spec: DecoderSpec, layer: int, weights: LayerWeights) -> None:
        self._spec = spec
        self._layer = layer
        self._rope = spec.ropes[layer]
        self._weights = weights
        names = spec.norms
        self._before_attention = self._block_norm(names.before_attention)
        self._after_attention = self._block_norm(names.after_attention)
        self._before_mlp = self._block_norm(names.before_mlp)
        self._after_mlp = self._block_norm(names.after_mlp)
        self._qk_norms = self._make_qk_norms()
        self._attention = AttentionSpec(
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            k_dim=spec.head_dim,
            v_dim=spec.head_dim,
            scale=spec.scale,
            window=spec.windows[layer],
            softcap=spec.attention_softcap,
        )

    def __call__(self, hidden: torch.Tensor, step: StepContext) -> torch.Tensor:
        """[rows, hidden] -> [rows, hidden]; writes the step's keys and values to the pool."""
        x = self._before_attention(hidden) if self._before_attention else hidden
        mixed = self._attend(x, step)
        if self._spec.parallel:
            return self._mlp(x, self._join(self._weights.out, mixed, hidden, None))
        hidden = self._join(self._weights.out, mixed, hidden, self._after_attention)
        x = self._before_mlp(hidden) if self._before_mlp else hidden
        return self._mlp(x, hidden)

    def _attend(self, x: torch.Tensor, step: StepContext) -> torch.Tensor:
        spec = self._spec
        qkv = self._weights.qkv(x)[: step.tokens]
        if spec.clip_qkv is not None:
            qkv.clamp_(-spec.clip_qkv, spec.clip_qkv)
        # [tokens, heads + 2 * kv_heads, head_dim]
        rows = qkv.view(step.tokens, spec.heads + 2 * spec.kv_heads, spec.head_dim)
        if self._qk_norms is not None and not self._after_rope:
            self._norm_qk(rows)
        if self._rope is not None:
            rotate_(rows[:, : spec.heads + spec.kv_heads], step.angles[self._rope])
        if self._qk_norms is not None and self._after_rope:
            self._norm_qk(rows)
        joined = step.pool.joined(self._layer)
        assert joined is not None  # keys and values are equally wide in every family here
        joined.index_copy_(1, step.cache_rows, rows[:, spec.heads :].transpose(0, 1))
        q = rows[:, : spec.heads]
        mixed = step.backend.attend(q, step.pool, self._layer, step.plan, self._attention)
        missing = x.shape[0] - step.tokens
        return mixed if missing == 0 else F.pad(mixed, (0, 0, 0, missing))

    def _mlp(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        weights = self._weights
        if weights.gate is None:
            inner = weights.up.activated(x, self._spec.activation)
        else:
            rows = weights.up.take(x)
            inner = weights.up.times(rows, weights.gate.activated(rows, self._spec.activation))
        return self._join(weights.down, inner, residual, self._after_mlp)

    def _join(
        self, linear: Linear, x: torch.Tensor, residual: torch.Tensor, norm: Norm | None
    ) -> torch.Tensor:
        """residual + residual_scale * norm(linear(x)), as one call where nothing is between."""
        if norm is None and self._spec.residual_scale == 1.0:
            return linear.add(x, residual)
        y = linear(x)
        if norm is not None:
            y = norm(y)
        return torch.add(residual, y, alpha=self._spec.residual_scale)

    def _norm_qk(self, rows: torch.Tensor) -> None:
        """Normalise queries and keys in place; rows [tokens, heads + 2 * kv_heads, head_dim]."""
        assert self._qk_norms is not None
        heads = self._spec.heads
        parts = (rows[:, :heads], rows[:, heads : heads + self._spec.kv_heads])
        for part, norm in zip(parts, self._qk_norms, strict=True):
            if self._spec.qk_norm is not None and self._spec.qk_norm.whole:
                part.copy_(norm(part.reshape(part.shape[0], -1)).view(part.shape))
            else:
                part.copy_(norm(part))

    def _block_norm(self, name: str) -> Norm | None:
        if not name:
            return None
        return make_norm(self._weights.norms[name], self._spec.norm, self._spec.hidden)

    def _make_qk_norms(self) -> tuple[Norm, Norm] | None:
        qk = self._spec.qk_norm
        self._after_rope = qk is not None and qk.after_rope
        if qk is None:
            return None
        sizes = [self._spec.head_dim] * 2
        if qk.whole:
            sizes = [self._spec.heads * sizes[0], self._spec.kv_heads * sizes[1]]
        norms = self._weights.norms
        return make_norm(norms[qk.q], qk.norm, sizes[0]), make_norm(norms[qk.k], qk.norm, sizes[1])
