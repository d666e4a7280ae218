"""The families that the fast runner computes: what each makes of its configuration.

Knows only attributes of a transformers config object. table.py checks a config and then
calls the entry of `FAMILIES` for it; what is not computed here is refused with `UnsupportedFamily`.

Every family is Llama with differences, so each function says only what differs.
"""

from collections.abc import Callable
from dataclasses import replace

from lamella_worker.fast.config import (
    Config,
    activation_of,
    either,
    layer_types_of,
    refuse_if,
    rotary_dim_of,
    window_of,
)
from lamella_worker.fast.rope import is_nested
from lamella_worker.fast.spec import DecoderSpec, NormNames, NormSpec, QKNorm


def _llama(c: Config) -> DecoderSpec:
    """The base that the others differ from."""
    heads = int(c.num_attention_heads)
    head_dim = int(getattr(c, "head_dim", None) or c.hidden_size // heads)
    layers = int(c.num_hidden_layers)
    kinds = layer_types_of(c)
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
        activation=activation_of(either(c, "hidden_act", "hidden_activation")),
        scale=head_dim**-0.5,
        windows=(None,) * layers,
        ropes=kinds if is_nested(c) else ("",) * layers,
        tied=bool(c.tie_word_embeddings),
        rotary_dim=rotary_dim_of(c, head_dim),
        qkv_bias=bool(getattr(c, "attention_bias", False)),
        out_bias=bool(getattr(c, "attention_bias", False)),
        mlp_bias=bool(getattr(c, "mlp_bias", False)),
    )


def _windowed(c: Config) -> DecoderSpec:
    """One window for every layer (Mistral)."""
    spec = _llama(c)
    return replace(spec, windows=(window_of(c),) * spec.layers, qkv_bias=False, out_bias=False)


def _typed(c: Config) -> DecoderSpec:
    """A window on the layers whose type says so."""
    window = window_of(c)
    kinds = layer_types_of(c)
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
    refuse_if(c.attn_logit_softcapping is not None, c, "attn_logit_softcapping")
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
    kinds = layer_types_of(c)
    # Full layers of a hybrid model are not rotated.
    rotated = tuple(
        "" if window_of(c) is None or kind == "sliding_attention" else None for kind in kinds
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
    refuse_if(bool(c.qk_layernorm), c, "qk_layernorm")
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
