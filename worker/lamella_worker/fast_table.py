"""What the fast runner knows of each family: one `DecoderSpec` per configuration.

Knows no tensor's value and no modelling code: only a transformers config object. fast.py builds a
slice from the spec; anything that the table does not know is refused here (`UnsupportedFamily`),
and a general runner serves it instead.

Every family is Llama with differences, so each function below says only what differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lamella_contract.errors import UnsupportedFamily
from lamella_worker.rope import KNOWN_ROPE_TYPES, is_nested, rope_parameters

Config: TypeAlias = Any
"""A transformers PreTrainedConfig; its attributes differ by family."""


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


def _llama(c: Config) -> DecoderSpec:
    """The base that the others differ from."""
    heads = int(c.num_attention_heads)
    head_dim = int(getattr(c, "head_dim", None) or c.hidden_size // heads)
    layers = int(c.num_hidden_layers)
    kinds = _layer_types(c)
    eps = getattr(c, "rms_norm_eps", None)
    return DecoderSpec(
        layers=layers,
        hidden=int(c.hidden_size),
        heads=heads,
        kv_heads=int(getattr(c, "num_key_value_heads", None) or heads),
        head_dim=head_dim,
        intermediate=int(c.intermediate_size),
        vocab=int(c.vocab_size),
        norm=NormSpec(eps=1e-6 if eps is None else float(eps)),
        activation=_activation(_either(c, "hidden_act", "hidden_activation")),
        scale=head_dim**-0.5,
        windows=(None,) * layers,
        ropes=kinds if is_nested(c) else ("",) * layers,
        tied=bool(c.tie_word_embeddings),
        rotary_dim=_rotary_dim(c, head_dim),
        qkv_bias=bool(getattr(c, "attention_bias", False)),
        out_bias=bool(getattr(c, "attention_bias", False)),
        mlp_bias=bool(getattr(c, "mlp_bias", False)),
    )


def _windowed(c: Config) -> DecoderSpec:
    """One window for every layer (Mistral)."""
    spec = _llama(c)
    return replace(spec, windows=(_window(c),) * spec.layers, qkv_bias=False, out_bias=False)


def _typed(c: Config) -> DecoderSpec:
    """A window on the layers whose type says so."""
    window = _window(c)
    kinds = _layer_types(c)
    return replace(
        _llama(c), windows=tuple(window if k == "sliding_attention" else None for k in kinds)
    )


def _ministral(c: Config) -> DecoderSpec:
    return replace(_typed(c), qkv_bias=False, out_bias=False)


def _qwen2(c: Config) -> DecoderSpec:
    return replace(_typed(c), qkv_bias=True, out_bias=False, mlp_bias=False)


def _qwen3(c: Config) -> DecoderSpec:
    spec = _typed(c)
    return replace(spec, qk_norm=QKNorm(spec.norm), mlp_bias=False)


def _gemma(c: Config) -> DecoderSpec:
    spec = _llama(c)
    return replace(
        spec,
        norm=replace(spec.norm, offset=1.0),
        embed_scale=spec.hidden**0.5,
        mlp_bias=False,
    )


_SANDWICH = NormNames(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _gemma2(c: Config) -> DecoderSpec:
    typed = _typed(c)
    return replace(
        typed,
        norm=replace(typed.norm, offset=1.0),
        norms=_SANDWICH,
        embed_scale=typed.hidden**0.5,
        scale=float(c.query_pre_attn_scalar) ** -0.5,
        attention_softcap=c.attn_logit_softcapping,
        logit_softcap=c.final_logit_softcapping,
        mlp_bias=False,
    )


def _gemma3(c: Config) -> DecoderSpec:
    spec = _gemma2(c)
    # Its modelling code keeps attn_logit_softcapping and does not use it; refuse the doubtful case.
    _refuse_if(c.attn_logit_softcapping is not None, c, "attn_logit_softcapping")
    return replace(spec, qk_norm=QKNorm(spec.norm), attention_softcap=None)


def _phi3(c: Config) -> DecoderSpec:
    return replace(
        _windowed(c),
        fused_qkv=True,
        fused_gate_up=True,
        mlp_names=("gate_up_proj", "gate_up_proj", "down_proj"),
    )


def _olmo(c: Config) -> DecoderSpec:
    norm = NormSpec("layer", 1e-5, weight=False)
    clip = getattr(c, "clip_qkv", None)
    return replace(_llama(c), norm=norm, clip_qkv=clip, mlp_bias=False)


_AFTER = NormNames("", "post_attention_layernorm", "", "post_feedforward_layernorm")


def _olmo2(c: Config) -> DecoderSpec:
    spec = _llama(c)
    return replace(spec, norms=_AFTER, qk_norm=QKNorm(spec.norm, whole=True), mlp_bias=False)


def _olmo3(c: Config) -> DecoderSpec:
    return replace(_olmo2(c), windows=_typed(c).windows)


def _exaone4(c: Config) -> DecoderSpec:
    spec = _typed(c)
    kinds = _layer_types(c)
    # Full layers of a hybrid model are not rotated.
    rotated = tuple(
        "" if _window(c) is None or kind == "sliding_attention" else None for kind in kinds
    )
    return replace(
        spec,
        norms=_AFTER,
        qk_norm=QKNorm(spec.norm),
        ropes=rotated,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


def _granite(c: Config) -> DecoderSpec:
    return replace(
        _llama(c),
        scale=float(c.attention_multiplier),
        embed_scale=float(c.embedding_multiplier),
        residual_scale=float(c.residual_multiplier),
        logit_scale=1.0 / float(c.logits_scaling),
    )


def _smollm3(c: Config) -> DecoderSpec:
    spec = _typed(c)
    use = getattr(c, "use_sliding_window", False)
    ropes = tuple("" if rotated else None for rotated in c.no_rope_layers[: spec.layers])
    return replace(spec, ropes=ropes, windows=spec.windows if use else (None,) * spec.layers)


def _cohere(c: Config) -> DecoderSpec:
    norm = NormSpec("layer", float(c.layer_norm_eps))
    return replace(
        _llama(c),
        norm=norm,
        norms=NormNames(before_mlp=""),
        qk_norm=QKNorm(norm) if getattr(c, "use_qk_norm", False) else None,
        parallel=True,
        interleaved=True,
        logit_scale=float(c.logit_scale),
        mlp_bias=False,
    )


def _cohere2(c: Config) -> DecoderSpec:
    spec = replace(_cohere(c), qk_norm=None, windows=_typed(c).windows)
    return replace(spec, ropes=tuple(None if w is None else "" for w in spec.windows))


def _starcoder2(c: Config) -> DecoderSpec:
    bias = bool(c.use_bias)
    return replace(
        _windowed(c),
        norm=NormSpec("layer", float(c.norm_epsilon), bias=True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        gated=False,
        mlp_names=("", "c_fc", "c_proj"),
    )


def _stablelm(c: Config) -> DecoderSpec:
    # A norm per head with its own module each: rare, left to the general runner.
    _refuse_if(bool(c.qk_layernorm), c, "qk_layernorm")
    parallel = bool(c.use_parallel_residual)
    return replace(
        _llama(c),
        norm=NormSpec("layer", float(c.layer_norm_eps), bias=True),
        norms=NormNames(before_mlp="" if parallel else "post_attention_layernorm"),
        qkv_bias=bool(c.use_qkv_bias),
        out_bias=False,
        mlp_bias=False,
        parallel=parallel,
    )


def _glm(c: Config) -> DecoderSpec:
    return replace(
        _llama(c),
        interleaved=True,
        out_bias=False,
        mlp_bias=False,
        fused_gate_up=True,
        mlp_names=("gate_up_proj", "gate_up_proj", "down_proj"),
    )


def _glm4(c: Config) -> DecoderSpec:
    names = NormNames(
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    )
    return replace(_glm(c), norms=names)


def _helium(c: Config) -> DecoderSpec:
    return replace(_llama(c), interleaved=True, out_bias=False)


def _seed_oss(c: Config) -> DecoderSpec:
    return replace(_llama(c), out_bias=bool(c.attention_out_bias))


def _arcee(c: Config) -> DecoderSpec:
    return replace(_llama(c), gated=False, mlp_names=("", "up_proj", "down_proj"))


def _ernie(c: Config) -> DecoderSpec:
    bias = bool(c.use_bias)
    return replace(_llama(c), interleaved=True, qkv_bias=bias, out_bias=bias, mlp_bias=bias)


def _nemotron(c: Config) -> DecoderSpec:
    return replace(
        _llama(c),
        norm=NormSpec("layer", float(c.norm_eps), offset=1.0, bias=True),
        gated=False,
        mlp_names=("", "up_proj", "down_proj"),
    )


FAMILIES: dict[str, Callable[[Config], DecoderSpec]] = {
    "llama": _llama,
    "mistral": _windowed,
    "ministral": _ministral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "exaone4": _exaone4,
    "granite": _granite,
    "smollm3": _smollm3,
    "cohere": _cohere,
    "cohere2": _cohere2,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "glm": _glm,
    "glm4": _glm4,
    "helium": _helium,
    "seed_oss": _seed_oss,
    "arcee": _arcee,
    "ernie4_5": _ernie,
    "nemotron": _nemotron,
}
"""By the config's `model_type`."""

_PARTIAL = frozenset({"phi3", "stablelm", "glm", "glm4", "nemotron"})
"""Families whose default rotation reads partial_rotary_factor; others ignore it there."""


def spec_of(config: Config) -> DecoderSpec:
    """The decoder that a config describes. Raises UnsupportedFamily for what the table lacks."""
    family = getattr(config, "model_type", None)
    make = FAMILIES.get(str(family))
    if make is None:
        raise UnsupportedFamily(f"model_type={family!r}; the fast runner has {sorted(FAMILIES)}")
    _check_common(config)
    try:
        spec = make(config)
    except AttributeError as e:
        # Another version of transformers: a field that the table reads is not there.
        raise UnsupportedFamily(f"{family}: {e}; wanted a field that the table knows") from e
    _check_rope(config, spec)
    wrong = [w for w in spec.windows if w is not None and w < 1]
    _refuse_if(bool(wrong), config, "sliding_window")
    _refuse_if(spec.heads % spec.kv_heads != 0, config, "num_key_value_heads")
    _refuse_if(len(spec.windows) != spec.layers or len(spec.ropes) != spec.layers, config, "layers")
    return spec


def _check_common(config: Config) -> None:
    _refuse_if(getattr(config, "quantization_config", None) is not None, config, "quantization")
    bidirectional = getattr(config, "use_bidirectional_attention", None)
    _refuse_if(bool(bidirectional), config, "use_bidirectional_attention")
    _refuse_if(bool(getattr(config, "is_heterogeneous", False)), config, "per-layer settings")
    _refuse_if(bool(getattr(config, "is_encoder_decoder", False)), config, "is_encoder_decoder")
    _refuse_if(getattr(config, "is_causal", True) is False, config, "is_causal")


def _check_rope(config: Config, spec: DecoderSpec) -> None:
    for kind in {k for k in spec.ropes if k is not None}:
        parameters = rope_parameters(config, kind or None)
        rope_type = parameters.get("rope_type", "default")
        _refuse_if(rope_type not in KNOWN_ROPE_TYPES, config, f"rope_type {rope_type!r}")
        _refuse_if("rope_theta" not in parameters, config, "rope_theta")
        partial = parameters.get("partial_rotary_factor") or 1.0
        unread = partial != 1.0 and config.model_type not in _PARTIAL
        _refuse_if(unread, config, f"partial_rotary_factor {partial}")
        _refuse_if(int(spec.head_dim * partial) % 2 != 0, config, "odd rotary width")


def _layer_types(config: Config) -> tuple[str, ...]:
    layers = int(config.num_hidden_layers)
    kinds = tuple(getattr(config, "layer_types", None) or ("full_attention",) * layers)[:layers]
    unknown = sorted(set(kinds) - _LAYER_TYPES)
    _refuse_if(bool(unknown), config, f"layer_types {unknown}")
    return kinds


def _window(config: Config) -> int | None:
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)


def _rotary_dim(config: Config, head_dim: int) -> int:
    partial = 1.0
    if config.model_type in _PARTIAL:
        partial = rope_parameters(config, None).get("partial_rotary_factor") or 1.0
    return int(head_dim * partial)


def _either(config: Config, name: str, other: str) -> Any:
    """The first field, or the second in families that lack the first."""
    return getattr(config, name) if hasattr(config, name) else getattr(config, other, None)


def _activation(name: object) -> str:
    known = _ACTIVATION_NAMES.get(str(name))
    if known is None:
        raise UnsupportedFamily(
            f"activation {name!r}; the fast runner has {sorted(_ACTIVATION_NAMES)}"
        )
    return known


def _refuse_if(condition: bool, config: Config, what: str) -> None:
    if condition:
        raise UnsupportedFamily(f"{config.model_type}: {what} is not known to the fast runner")
