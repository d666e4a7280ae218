"""The arithmetic of one decoder as a value: `DecoderSpec`.

Knows no family, no checkpoint and no tensor. table.py makes one from a transformers config;
weights.py and layers.py read it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NormSpec:
    """`kind` is "rms" or "layer"; `offset` is added to the stored weight (Gemma, Nemotron)."""

    kind: str = "rms"
    eps: float = 1e-6
    offset: float = 0.0
    weight: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class NormNames:
    """Checkpoint names of a layer's norms; "" where a family has none."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str = ""


@dataclass(frozen=True, slots=True)
class QKNorm:
    """Norm of queries and keys: over each head, or `whole` over all heads at once (OLMo 2)."""

    norm: NormSpec
    q: str = "q_norm"
    k: str = "k_norm"
    whole: bool = False
    after_rope: bool = False


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Everything that decides the arithmetic of one decoder. Fields in plural are per layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm: NormSpec
    activation: str
    scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[str | None, ...]  # layer type whose rotation is used; None: no rotation
    tied: bool
    rotary_dim: int  # elements of each head that are rotated
    norms: NormNames = NormNames()
    qk_norm: QKNorm | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    fused_qkv: bool = False  # one tensor qkv_proj in the checkpoint
    fused_gate_up: bool = False  # one tensor gate_up_proj in the checkpoint
    gated: bool = True
    mlp_names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    parallel: bool = False  # attention and MLP read the same norm, and both are added
    interleaved: bool = False  # rotation of neighbours instead of halves
    clip_qkv: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
