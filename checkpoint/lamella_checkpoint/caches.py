"""What each decoder layer keeps per token and per sequence, read off a config.

Knows config fields, no tensors. The numbers follow what transformers' model code hands to its
cache (heads and widths of keys and values, the latent of MLA, an indexer's keys, recurrent and
convolution states), since that is what the workers store. Sliding layers are counted per token like
full ones: they share the block tables. A test runs every family and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lamella_contract.errors import UnsupportedFamily

_STATE_ITEM_BYTES = 4  # recurrent states are kept in float32 whatever the model's dtype
_NO_ATTENTION = ("linear_attention", "conv", "mamba", "mamba2", "recurrent", "moe", "mlp", "dummy")
_COMPRESSED = ("heavily_compressed_attention", "compressed_sparse_attention")


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer: bytes per token in the pages, bytes per sequence beside them, and its kind."""

    kv_bytes_per_token: int
    state_bytes_per_sequence: int
    kind: str


def layer_caches(config: Any, num_layers: int, item_bytes: int) -> tuple[LayerCache, ...]:
    """The caches of layers ``[0, num_layers)`` of a text config, elements of ``item_bytes``.

    Raises `UnsupportedFamily` when the config has none of the fields known here.
    """
    kinds = _kinds(config, num_layers)
    reused = _reused(config, num_layers)
    found = []
    for index, kind in enumerate(kinds):
        layer = _of_layer(config, index)
        has_kv = kind not in _NO_ATTENTION and index not in reused
        kv_items = _kv_items(layer, index, kind) if has_kv else 0
        state_bytes = _state_bytes(layer, kind, item_bytes)
        found.append(LayerCache(kv_items * item_bytes, state_bytes, kind))
    return tuple(found)


def _kinds(config: Any, num_layers: int) -> tuple[str, ...]:
    """The type of every layer, as the config says it or as its fields imply."""
    stated = _first(config, "layer_types", "layers_block_type")
    if stated is not None and len(stated) >= num_layers:
        return tuple(str(kind) for kind in stated[:num_layers])
    return tuple(_implied_kind(_of_layer(config, index)) for index in range(num_layers))


def _implied_kind(layer: Any) -> str:
    if _first(layer, "sliding_window") is not None and getattr(layer, "use_sliding_window", True):
        return "sliding_attention"
    if _first(layer, "attention_chunk_size") is not None:
        return "chunked_attention"
    return "full_attention"


def _reused(config: Any, num_layers: int) -> frozenset[int]:
    """Layers that read the keys and values of an earlier one and keep none."""
    modes = getattr(config, "kv_sharing_modes", None)
    if modes is not None:
        return frozenset(index for index, mode in enumerate(modes) if mode == "reuse")
    shared = getattr(config, "num_kv_shared_layers", 0) or 0
    return frozenset(range(num_layers - shared, num_layers))


def _of_layer(config: Any, index: int) -> Any:
    """The config as layer ``index`` sees it, where layers differ in heads or widths."""
    layers = getattr(config, "per_layer_config", None)
    try:
        return config if layers is None else layers[index]
    except (IndexError, KeyError):
        return config


def _kv_items(layer: Any, index: int, kind: str) -> int:
    """Elements that one token leaves in this layer's cache."""
    special = _SPECIAL_KV.get(layer.model_type)
    if special is not None:
        return special(layer, kind)
    latent = _first(layer, "kv_lora_rank")
    if latent is not None:
        return int(latent) + _int(layer, "qk_rope_head_dim") + _indexer_items(layer, index, kind)
    heads = _pick(_kv_heads(layer), index)
    key_dim = head_dim(layer)
    value_dim = _first(layer, "v_head_dim") or key_dim
    return heads * (key_dim + int(value_dim)) + _indexer_items(layer, index, kind)


def _indexer_items(layer: Any, index: int, kind: str) -> int:
    """Keys of a sparse-attention indexer, kept by the layers that own one."""
    if kind != "indexed_attention":
        return 0
    owners = getattr(layer, "indexer_types", None)
    shared = owners is not None and _pick_any(owners, index) == "shared"
    return 0 if shared else _int(layer, "index_head_dim")


def _kv_heads(layer: Any) -> Any:
    """Heads of keys and values; a list where layers differ."""
    if getattr(layer, "multi_query", False) and not getattr(
        layer, "new_decoder_architecture", False
    ):
        return 1  # falcon and gpt_bigcode
    names = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")
    return _needed(layer, *names, "num_attention_heads", "n_head", "num_heads")


def head_dim(layer: Any) -> int:
    """Elements of one head, from the config or from the hidden size and the heads."""
    stated = _first(layer, "head_dim", "kv_channels", "attention_head_size")
    if stated is not None:
        return int(stated)
    heads = _needed(layer, "num_attention_heads", "n_head", "num_heads")
    return _int(layer, "hidden_size", "n_embd", "d_model") // int(heads)


def _longcat(layer: Any, kind: str) -> int:
    # Two attentions in each decoder layer.
    return 2 * (_int(layer, "kv_lora_rank") + _int(layer, "qk_rope_head_dim"))


def _mimo(layer: Any, kind: str) -> int:
    # Sliding layers have twice the heads.
    heads = _int(layer, "num_key_value_heads") * (2 if kind == "sliding_attention" else 1)
    return heads * (_int(layer, "head_dim") + _int(layer, "v_head_dim"))


def _inkling(layer: Any, kind: str) -> int:
    prefix = "swa_" if kind == "hybrid_sliding" else ""
    return 2 * _int(layer, f"{prefix}num_key_value_heads") * _int(layer, f"{prefix}head_dim")


def _deepseek_v4(layer: Any, kind: str) -> int:
    # One head shared by keys and values, and the compressor's buffered tokens: an upper bound.
    return 3 * _int(layer, "head_dim")


_SPECIAL_KV: Mapping[str, Callable[[Any, str], int]] = {
    "longcat_flash": _longcat,
    "mimo_v2_flash": _mimo,
    "inkling_text": _inkling,
    "deepseek_v4": _deepseek_v4,
}


def _state_bytes(layer: Any, kind: str, item_bytes: int) -> int:
    """Bytes that a sequence keeps in this layer whatever its length."""
    if kind == "conv":
        return _int(layer, "hidden_size") * _int(layer, "conv_L_cache") * item_bytes
    if kind.startswith("hybrid") and _first(layer, "number_of_conv_states"):
        # Short convolutions on keys, values and twice on the hidden state (inkling).
        width = _inkling(layer, kind) + 2 * _int(layer, "hidden_size")
        return width * _int(layer, "conv_kernel_size") * item_bytes
    if kind in _COMPRESSED:
        rate = layer.compress_rates[kind]
        return 4 * int(rate) * _int(layer, "head_dim") * item_bytes
    if kind in ("mamba", "mamba2") or kind.startswith("hybrid"):
        return _mamba_bytes(layer, item_bytes)
    if kind == "linear_attention":
        return _linear_bytes(layer, item_bytes)
    return 0


def _linear_bytes(layer: Any, item_bytes: int) -> int:
    """Gated delta nets and their kin: a matrix per value head, and a convolution over q, k, v."""
    if _first(layer, "linear_num_heads") is not None:  # kimi_linear: three separate convolutions
        heads, dim = _int(layer, "linear_num_heads"), _int(layer, "linear_head_dim")
        conv = 3 * heads * dim * _int(layer, "linear_conv_kernel_dim")
        return heads * dim * dim * _STATE_ITEM_BYTES + conv * item_bytes
    if _first(layer, "linear_num_value_heads") is None:  # minimax: lightning attention
        heads, dim = _int(layer, "num_attention_heads"), head_dim(layer)
        return heads * dim * dim * _STATE_ITEM_BYTES
    values, value_dim = _int(layer, "linear_num_value_heads"), _int(layer, "linear_value_head_dim")
    keys, key_dim = _int(layer, "linear_num_key_heads"), _int(layer, "linear_key_head_dim")
    conv = (2 * keys * key_dim + values * value_dim) * _int(layer, "linear_conv_kernel_dim")
    return values * key_dim * value_dim * _STATE_ITEM_BYTES + conv * item_bytes


def _mamba_bytes(layer: Any, item_bytes: int) -> int:
    """State-space layers: a matrix per channel or head, and a short convolution."""
    state = _int(layer, "mamba_d_state", "ssm_state_size", "state_size")
    kernel = _int(layer, "mamba_d_conv", "conv_kernel", "conv_kernel_size")
    heads = _first(layer, "mamba_n_heads", "mamba_num_heads")
    if heads is not None:
        inner = int(heads) * _int(layer, "mamba_d_head", "mamba_head_dim")
        conv = inner + 2 * int(_first(layer, "mamba_n_groups", "n_groups") or 1) * state
    else:
        inner = _int(layer, "mamba_expand", "expand") * _int(layer, "hidden_size")
        conv = inner
    return inner * state * _STATE_ITEM_BYTES + conv * kernel * item_bytes


def _first(config: Any, *names: str) -> Any:
    """The first of the fields that is there and not None."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def _needed(config: Any, *names: str) -> Any:
    value = _first(config, *names)
    if value is None:
        raise UnsupportedFamily(
            f"what a layer of {config.model_type} keeps cannot be told: its config.json has no "
            f"{names[0]}"
        )
    return value


def _int(config: Any, *names: str) -> int:
    return int(_needed(config, *names))


def _pick_any(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, list | tuple) else value


def _pick(value: Any, index: int) -> int:
    return int(_pick_any(value, index))
