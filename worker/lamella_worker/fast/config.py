"""Reading a transformers config: fields that families name differently, values that are refused.

Knows attributes only, no family's arithmetic. `families` makes a `DecoderSpec` from what it reads.
"""

from typing import Any, TypeAlias

from lamella_contract.errors import UnsupportedFamily
from lamella_worker.fast.rope import rope_parameters

Config: TypeAlias = Any
"""A transformers PreTrainedConfig; its attributes differ by family."""


_ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})

PARTIAL_ROTATION = frozenset({"phi3", "stablelm", "glm", "glm4", "nemotron"})
"""Families whose default rotation reads partial_rotary_factor; others ignore it there."""


def layer_types_of(config: Config) -> tuple[str, ...]:
    """The attention of each layer; UnsupportedFamily for a kind that is not known."""
    layers = int(config.num_hidden_layers)
    kinds = tuple(getattr(config, "layer_types", None) or ("full_attention",) * layers)[:layers]
    unknown = sorted(set(kinds) - _LAYER_TYPES)
    refuse_if(bool(unknown), config, f"layer_types {unknown}")
    return kinds


def window_of(config: Config) -> int | None:
    """Tokens that a sliding layer looks back, itself included; None without a window."""
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)


def rotary_dim_of(config: Config, head_dim: int) -> int:
    """Dimensions of a head that are rotated."""
    partial = 1.0
    if config.model_type in PARTIAL_ROTATION:
        partial = rope_parameters(config, None).get("partial_rotary_factor") or 1.0
    return int(head_dim * partial)


def either(config: Config, name: str, other: str) -> Any:
    """The first field, or the second in families that lack the first."""
    return getattr(config, name) if hasattr(config, name) else getattr(config, other, None)


def activation_of(name: object) -> str:
    """Our name of an activation; UnsupportedFamily for one that is not known."""
    known = _ACTIVATION_NAMES.get(str(name))
    if known is None:
        raise UnsupportedFamily(
            f"activation {name!r}; the fast runner has {sorted(_ACTIVATION_NAMES)}"
        )
    return known


def refuse_if(condition: bool, config: Config, what: str) -> None:
    """Raise UnsupportedFamily, naming the setting, when the condition holds."""
    if condition:
        raise UnsupportedFamily(f"{config.model_type}: {what} is not known to the fast runner")
