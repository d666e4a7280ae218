"""Rotary position embeddings: frequencies fixed at load, cosines per step, rotation in place.

Knows no model's layers. A runner makes one `Rope` per kind of rotation its layers have, asks it
once per step for cosines and sines, and rotates each layer's queries and keys with `rotate_`.

Frequencies are those that transformers takes for a sequence of the served maximum length:
long-rope and dynamic NTK would otherwise follow the longest row of a batch, and change under a
sequence's cache.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lamella_contract.errors import UnsupportedFamily

KNOWN_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn", "longrope", "dynamic"})

Angles = tuple[torch.Tensor, torch.Tensor]
"""cos and signed sin, each [tokens, 1, rotary_dim], in the model's dtype."""


@dataclass(frozen=True, slots=True)
class Rope:
    """`inv_freq` float32 [rotary_dim / 2]; `scaling` multiplies cosines and sines (yarn)."""

    inv_freq: torch.Tensor
    scaling: float

    @property
    def dim(self) -> int:
        """Elements of each head that are rotated."""
        return 2 * self.inv_freq.numel()

    def to(self, device: torch.device) -> "Rope":
        """The same frequencies on a device."""
        return Rope(self.inv_freq.to(device), self.scaling)

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> Angles:
        """The step's cosines and signed sines; positions int64 [tokens]."""
        turns = positions.unsqueeze(1).float() * self.inv_freq  # [tokens, dim / 2]
        cos, sin = turns.cos(), turns.sin()
        if self.scaling != 1.0:
            cos, sin = cos.mul_(self.scaling), sin.mul_(self.scaling)
        # rotate_half is a roll by half with the first half negated: the sign sits in the sine.
        return (
            torch.cat((cos, cos), 1).to(dtype).unsqueeze(1),
            torch.cat((-sin, sin), 1).to(dtype).unsqueeze(1),
        )


def rotate_(x: torch.Tensor, angles: Angles) -> None:
    """Rotate x [tokens, heads, >= rotary_dim] in place; elements past rotary_dim are left alone."""
    cos, sin = angles
    dim = cos.shape[-1]
    part = x if x.shape[-1] == dim else x[..., :dim]
    torch.addcmul(part * cos, part.roll(dim // 2, -1), sin, out=part)


def half_split_order(head_dim: int, rotary_dim: int) -> torch.Tensor:
    """Order of a head's elements that turns interleaved rotation into rotation of halves.

    Families after GPT-J rotate neighbours (0, 1), (2, 3)...; with queries and keys both reordered,
    scores are the same and `rotate_` serves. int64 [head_dim].
    """
    even = torch.arange(0, rotary_dim, 2)
    return torch.cat((even, even + 1, torch.arange(rotary_dim, head_dim)))


def rope_parameters(config: Any, layer_type: str | None) -> dict[str, Any]:
    """The rotation's parameters in a transformers config; one layer type's where nested."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if layer_type is not None and isinstance(parameters.get(layer_type), dict):
        parameters = parameters[layer_type]
    return dict(parameters)


def is_nested(config: Any) -> bool:
    """True when a config keeps one set of parameters per layer type (Gemma 3, OLMo 3)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return any(isinstance(value, dict) for value in parameters.values())


def make_rope(config: Any, layer_type: str | None, rotary_dim: int, max_model_len: int) -> Rope:
    """Frequencies of a config for sequences up to `max_model_len` tokens.

    `rotary_dim` elements of each head are rotated (the default kind; scaled kinds say their own).

    The formulas of scaled kinds are transformers' own (modeling_rope_utils.ROPE_INIT_FUNCTIONS), so
    that a served model is rotated as its authors' code rotates it. Raises UnsupportedFamily.
    """
    nested = layer_type if layer_type is not None and is_nested(config) else None
    parameters = rope_parameters(config, nested)
    kind = parameters.get("rope_type", "default")
    if kind not in KNOWN_ROPE_TYPES:
        raise UnsupportedFamily(f"rope_type={kind!r}; wanted one of {sorted(KNOWN_ROPE_TYPES)}")
    if kind == "default":
        base = parameters["rope_theta"]
        # RoFormer (arXiv 2104.09864), equation 15.
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
        return Rope(1.0 / (base**exponents), 1.0)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    # A scaled kind of length: the longest served sequence decides, not the longest in a batch.
    inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](
        config, torch.device("cpu"), seq_len=max_model_len, layer_type=nested
    )
    return Rope(inv_freq.float(), float(scaling))
