"""Which checkpoint tensors a fast slice is made of, and how they become one layer's weights.

Knows names and layouts, no arithmetic of a step. `needed_tensors` lets a stage read exactly its own
bytes; `read_layer` is called layer by layer, so that at most one layer stands in memory twice, or
one matrix (`apart`).
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lamella_contract.errors import CorruptModel, MissingTensor
from lamella_worker.fast.linear import Linear, MakeLinear, make_linear
from lamella_worker.fast.rope import half_split_order
from lamella_worker.fast.spec import DecoderSpec, NormSpec

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm"


class TensorReader(Protocol):
    """Where a slice's tensors come from; the caller frees what it was given."""

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The named tensors, whatever their dtype; MissingTensor when one is in no file."""
        ...

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Of rows [first, last) of one tensor those that there are."""
        ...


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer, ready to compute. Norms are (weight, bias), either may be None."""

    qkv: Linear
    out: Linear
    gate: Linear | None
    up: Linear
    down: Linear
    norms: dict[str, "NormWeights"]


@dataclass(frozen=True, slots=True)
class NormWeights:
    """Parameters of one norm in the checkpoint's dtype."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None


def layer_prefix(layer: int) -> str:
    """Where a layer's tensors stand in the checkpoint."""
    return f"model.layers.{layer}."


def needed_tensors(spec: DecoderSpec, first_layer: int, last_layer: int) -> list[str]:
    """Names of every tensor of the layers `[first_layer, last_layer)` and their ends, in order."""
    names = [EMBEDDING] if first_layer == 0 else []
    for layer in range(first_layer, last_layer):
        names += [layer_prefix(layer) + name for name in layer_tensors(spec)]
    if last_layer == spec.layers:
        names += _norm_tensors(FINAL_NORM, spec.norm)
        head = EMBEDDING if spec.tied else HEAD
        names += [] if head in names else [head]
    return names


def layer_tensors(spec: DecoderSpec) -> list[str]:
    """Names of one layer's tensors, without the layer's prefix."""
    names: list[str] = []
    attention = ["qkv_proj"] if spec.fused_qkv else ["q_proj", "k_proj", "v_proj"]
    for module in attention:
        names += _linear_tensors(f"self_attn.{module}", spec.qkv_bias)
    names += _linear_tensors("self_attn.o_proj", spec.out_bias)
    gate, up, down = (f"mlp.{name}" for name in spec.mlp_names)
    if spec.gated and not spec.fused_gate_up:
        names += _linear_tensors(gate, spec.mlp_bias)
    names += _linear_tensors(up, spec.mlp_bias) + _linear_tensors(down, spec.mlp_bias)
    for name in _block_norms(spec):
        names += _norm_tensors(name, spec.norm)
    if spec.qk_norm is not None:
        for name in (spec.qk_norm.q, spec.qk_norm.k):
            names += _norm_tensors(f"self_attn.{name}", spec.qk_norm.norm)
    return names


def read_layer(
    reader: TensorReader,
    spec: DecoderSpec,
    layer: int,
    dtype: torch.dtype,
    device: torch.device,
    make: MakeLinear = make_linear,
    apart: bool = False,
) -> LayerWeights:
    """Read one layer and lay it out; the tensors read are dropped before it returns.

    `apart`: each product's weights are read when it is made. Of a layer that shrinks as it is laid
    out one matrix is then in memory beside the rest, for some requests more.
    """
    names = layer_tensors(spec)
    gate, up, down = (f"mlp.{name}" for name in spec.mlp_names)
    attention = tuple(f"self_attn.{name}_proj" for name in ("qkv", "q", "k", "v"))
    products = {*attention, "self_attn.o_proj", gate, up, down}

    def read(wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        """Tensors of the modules that are wanted."""
        chosen = {n: layer_prefix(layer) + n for n in names if wanted(n.rpartition(".")[0])}
        found = reader.read(list(chosen.values())) if chosen else {}
        return {n: _take(found, full).to(device, dtype) for n, full in chosen.items()}

    tensors = read(lambda module: not apart or module not in products)

    def of(*modules: str) -> dict[str, torch.Tensor]:
        return read(lambda module: module in modules) if apart else tensors

    if spec.fused_gate_up:
        both = of(up).pop("mlp.gate_up_proj.weight")
        gates: Linear | None = make(both[: spec.intermediate].contiguous(), None)
        ups = make(both[spec.intermediate :].contiguous(), None)
        del both
    else:
        gates = _linear(of(gate), gate, make) if spec.gated else None
        ups = _linear(of(up), up, make)
    norms = {name: _norm(tensors, name) for name in _block_norms(spec)}
    if spec.qk_norm is not None:
        for name in (spec.qk_norm.q, spec.qk_norm.k):
            norms[name] = _reordered(_norm(tensors, f"self_attn.{name}"), spec)
    return LayerWeights(
        qkv=_qkv(of(*attention), spec, make),
        out=_linear(of("self_attn.o_proj"), "self_attn.o_proj", make),
        gate=gates,
        up=ups,
        down=_linear(of(down), down, make),
        norms=norms,
    )


def read_norm(
    reader: TensorReader, name: str, spec: NormSpec, dtype: torch.dtype, device: torch.device
) -> NormWeights:
    """A norm that stands outside the layers."""
    names = _norm_tensors(name, spec)
    found = reader.read(names) if names else {}
    tensors = {n: _take(found, n).to(device=device, dtype=dtype) for n in names}
    return _norm(tensors, name)


def read_matrix(
    reader: TensorReader, name: str, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The embedding or the head, [vocabulary, hidden]."""
    return _take(reader.read([name]), name).to(device=device, dtype=dtype)


def read_pieces(
    reader: TensorReader, name: str, rows: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """The same in pieces of at most `rows` rows, on the CPU; none is kept."""
    for first in itertools.count(0, rows):
        piece = reader.read_rows(name, first, first + rows)
        count = piece.shape[0]
        if count:
            yield piece.to(dtype)
        if count < rows:
            return
        del piece


def _take(found: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    tensor = found.pop(name, None)
    if tensor is None:
        raise MissingTensor(f"{name}: the reader did not give it; wanted by the fast runner")
    return tensor


def _linear_tensors(name: str, bias: bool) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"] if bias else [f"{name}.weight"]


def _norm_tensors(name: str, norm: NormSpec) -> list[str]:
    kept = (("weight", norm.weight), ("bias", norm.bias))
    return [f"{name}.{part}" for part, there in kept if there]


def _block_norms(spec: DecoderSpec) -> list[str]:
    n = spec.norms
    names = (n.before_attention, n.after_attention, n.before_mlp, n.after_mlp)
    return [name for name in names if name]


def _linear(tensors: dict[str, torch.Tensor], name: str, make: MakeLinear) -> Linear:
    weight = tensors.pop(f"{name}.weight")
    return make(weight, tensors.pop(f"{name}.bias", None))


def _norm(tensors: dict[str, torch.Tensor], name: str) -> NormWeights:
    return NormWeights(tensors.pop(f"{name}.weight", None), tensors.pop(f"{name}.bias", None))


def _qkv(tensors: dict[str, torch.Tensor], spec: DecoderSpec, make: MakeLinear) -> Linear:
    """Queries, keys and values in one product: [(heads + 2 kv_heads) * head_dim, hidden]."""
    if spec.fused_qkv:
        return _linear(tensors, "self_attn.qkv_proj", make)
    parts: dict[str, list[torch.Tensor]] = {"weight": [], "bias": []}
    for module, heads in (("q", spec.heads), ("k", spec.kv_heads), ("v", spec.kv_heads)):
        for kind, into in parts.items():
            tensor = tensors.pop(f"self_attn.{module}_proj.{kind}", None)
            if tensor is None:
                continue
            if tensor.shape[0] != heads * spec.head_dim:
                wanted = heads * spec.head_dim
                raise CorruptModel(f"{module}_proj.{kind}: {tensor.shape[0]} rows; wanted {wanted}")
            into.append(_split_halves(tensor, spec) if module != "v" else tensor)
    bias = torch.cat(parts["bias"]) if parts["bias"] else None
    return make(torch.cat(parts["weight"]), bias)


def _split_halves(tensor: torch.Tensor, spec: DecoderSpec) -> torch.Tensor:
    """Rows of q or k reordered within each head, for families that rotate neighbours."""
    if not spec.interleaved:
        return tensor
    order = half_split_order(spec.head_dim, spec.rotary_dim).to(tensor.device)
    heads = tensor.view(-1, spec.head_dim, *tensor.shape[1:])
    return heads.index_select(1, order).reshape(tensor.shape)


def _reordered(norm: NormWeights, spec: DecoderSpec) -> NormWeights:
    """A query or key norm's weights in the order of the reordered heads."""
    if not spec.interleaved or norm.weight is None:
        return norm
    order = half_split_order(spec.head_dim, spec.rotary_dim).to(norm.weight.device)
    return NormWeights(norm.weight.index_select(-1, order), norm.bias)
