"""Which part of the pipeline a tensor belongs to, and what a layer keeps per token and sequence."""

from __future__ import annotations

from typing import Any

import pytest

from lamella_checkpoint.caches import LayerCache, layer_caches
from lamella_checkpoint.families import Place, places, slice_names
from lamella_contract.errors import UnsupportedFamily

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def layer(index: int) -> Place:
    return Place("layer", index)


EMBEDDING, FINAL, HEAD, IGNORED = (
    Place("embedding"),
    Place("final"),
    Place("head"),
    Place("ignored"),
)

NAMES: list[Any] = [
    pytest.param(
        {
            "model.embed_tokens.weight": EMBEDDING,
            "model.layers.0.mlp.experts.7.w1.weight": layer(0),
            "model.layers.1.self_attn.q_proj.weight": layer(1),
            "model.layers.2.eh_proj.weight": IGNORED,  # multi-token prediction, past the end
            "model.norm.weight": FINAL,
            "lm_head.weight": HEAD,
        },
        id="llama, deepseek",
    ),
    pytest.param(
        {
            "wte.weight": EMBEDDING,
            "wpe.weight": EMBEDDING,
            "h.0.attn.bias": IGNORED,  # the causal mask, kept as a buffer long ago
            "h.0.attn.c_attn.bias": layer(0),
            "h.1.ln_1.weight": layer(1),
            "ln_f.weight": FINAL,
        },
        id="gpt2 without a prefix",
    ),
    pytest.param(
        {
            "model.decoder.embed_tokens.weight": EMBEDDING,
            "model.decoder.embed_positions.weight": EMBEDDING,
            "model.decoder.project_in.weight": EMBEDDING,
            "model.decoder.layers.0.fc1.weight": layer(0),
            "model.decoder.layers.1.fc1.weight": layer(1),
            "model.decoder.final_layer_norm.weight": FINAL,
            "model.decoder.project_out.weight": FINAL,
        },
        id="opt",
    ),
    pytest.param(
        {
            "word_embeddings.weight": EMBEDDING,
            "word_embeddings_layernorm.bias": EMBEDDING,
            "h.0.input_layernorm.weight": layer(0),
            "h.1.input_layernorm.weight": layer(1),
            "ln_f.bias": FINAL,
        },
        id="bloom",
    ),
    pytest.param(
        {
            "gpt_neox.embed_in.weight": EMBEDDING,
            "gpt_neox.layers.0.attention.bias": IGNORED,
            "gpt_neox.layers.0.attention.dense.bias": layer(0),
            "gpt_neox.layers.1.attention.dense.bias": layer(1),
            "gpt_neox.final_layer_norm.weight": FINAL,
            "embed_out.weight": HEAD,
        },
        id="gpt_neox",
    ),
    pytest.param(
        {
            "language_model.model.embed_tokens.weight": EMBEDDING,
            "language_model.model.layers.0.mlp.up_proj.weight": layer(0),
            "language_model.model.layers.1.mlp.up_proj.weight": layer(1),
            "language_model.model.norm.weight": FINAL,
            "multi_modal_projector.mm_soft_emb_norm.weight": IGNORED,
            "vision_tower.vision_model.embeddings.patch_embedding.weight": IGNORED,
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": IGNORED,
            "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight": IGNORED,
        },
        id="gemma3 with eyes",
    ),
    pytest.param(
        {
            "model.language_model.embed_tokens.weight": EMBEDDING,
            "model.language_model.embed_tokens_per_layer.weight": EMBEDDING,
            "model.language_model.per_layer_model_projection.weight": EMBEDDING,
            "model.language_model.altup_projections.0.weight": EMBEDDING,
            "model.language_model.altup_unembed_projections.0.weight": FINAL,
            "model.language_model.layers.0.altup.correct_output_scale": layer(0),
            "model.language_model.layers.1.laurel.linear_left.weight": layer(1),
            "model.language_model.norm.weight": FINAL,
            "model.audio_tower.conformer.0.norm.weight": IGNORED,
        },
        id="gemma3n",
    ),
    pytest.param(
        {
            "transformer.wte.weight": EMBEDDING,
            "transformer.blocks.0.norm_1.weight": layer(0),
            "transformer.blocks.1.norm_1.weight": layer(1),
            "transformer.norm_f.weight": FINAL,
        },
        id="mpt",
    ),
]


@pytest.mark.parametrize("expected", NAMES)
def test_places(expected: dict[str, Place]) -> None:
    assert places(expected, 2) == expected


def test_a_looped_model_is_one_layer() -> None:
    names = ["model.H.layers.0.w", "model.L.layers.0.w", "model.L.layers.1.w"]
    assert set(places(names, 9, looped=True).values()) == {layer(0)}


SLICES: list[Any] = [
    pytest.param(range(1), True, {"embed.weight", "layers.0.w"}, id="first"),
    pytest.param(range(1, 2), True, {"layers.1.w"}, id="middle"),
    pytest.param(range(2, 3), True, {"layers.2.w", "norm.weight", "lm_head.weight"}, id="last"),
    pytest.param(range(2, 3), False, {"layers.2.w", "norm.weight", "embed.weight"}, id="tied"),
]


@pytest.mark.parametrize(("layers", "has_head", "expected"), SLICES)
def test_slice_names(layers: range, has_head: bool, expected: set[str]) -> None:
    names = ["embed.weight", "norm.weight", *(f"layers.{i}.w" for i in range(3))]
    names += ["lm_head.weight"] if has_head else []
    assert set(slice_names(names, 3, layers)) == expected


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 8}
LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
}
DELTA = {
    **HEADS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": [LINEAR, FULL],
}
# Measured by running the family's own code: items per token, bytes of float32 state, kind.
CACHES: list[Any] = [
    pytest.param("llama", HEADS, [(32, 0, FULL)] * 2, id="llama: grouped queries"),
    pytest.param(
        "gpt2",
        {"n_embd": 32, "n_head": 4, "n_layer": 2},
        [(64, 0, FULL)] * 2,
        id="gpt2: no grouping, other names",
    ),
    pytest.param(
        "falcon",
        {"hidden_size": 32, "num_attention_heads": 4, "multi_query": True},
        [(16, 0, FULL)] * 2,
        id="falcon: one head for all",
    ),
    pytest.param(
        "gpt_bigcode",
        {"n_embd": 32, "n_head": 4, "multi_query": True},
        [(16, 0, FULL)] * 2,
        id="gpt_bigcode",
    ),
    pytest.param(
        "mistral",
        {**HEADS, "sliding_window": 8},
        [(32, 0, SLIDING)] * 2,
        id="mistral: sliding",
    ),
    pytest.param(
        "gemma2",
        {**HEADS, "sliding_window": 8},
        [(32, 0, SLIDING), (32, 0, FULL)],
        id="gemma2: mixed",
    ),
    pytest.param("deepseek_v3", LATENT, [(24, 0, FULL)] * 2, id="deepseek_v3: the latent"),
    pytest.param(
        "longcat_flash",
        {**LATENT, "num_layers": 2},
        [(48, 0, FULL)] * 2,
        id="longcat: two attentions a layer",
    ),
    pytest.param(
        "glm_moe_dsa",
        {**LATENT, "index_head_dim": 16, "indexer_types": ["full", "shared"]},
        [(40, 0, "indexed_attention"), (24, 0, "indexed_attention")],
        id="glm dsa: an indexer's keys",
    ),
    pytest.param(
        "gemma3n_text",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": [SLIDING, FULL] * 2,
            "intermediate_size": [8] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
        },
        [(32, 0, SLIDING), (32, 0, FULL), (0, 0, SLIDING), (0, 0, FULL)],
        id="gemma3n: shared keys and values",
    ),
    pytest.param(
        "gemma4_text",
        {
            **HEADS,
            "num_hidden_layers": 2,
            "layer_types": [SLIDING, FULL],
            "per_layer_config": {"1": {"head_dim": 16}},
        },
        [(32, 0, SLIDING), (64, 0, FULL)],
        id="gemma4: wider full layers",
    ),
    pytest.param(
        "mimo_v2_flash",
        {**HEADS, "v_head_dim": 8, "layer_types": [FULL, SLIDING]},
        [(32, 0, FULL), (64, 0, SLIDING)],
        id="mimo: more heads when sliding",
    ),
    pytest.param(
        "qwen3_next", DELTA, [(0, 2048, LINEAR), (32, 0, FULL)], id="qwen3_next: delta nets"
    ),
    pytest.param("olmo_hybrid", DELTA, [(0, 2048, LINEAR), (32, 0, FULL)], id="olmo_hybrid"),
    pytest.param(
        "kimi_linear",
        {
            **LATENT,
            "linear_num_heads": 4,
            "linear_head_dim": 8,
            "linear_conv_kernel_dim": 4,
            "layer_types": [LINEAR, FULL],
        },
        [(0, 2560, LINEAR), (24, 0, FULL)],
        id="kimi_linear",
    ),
    pytest.param(
        "lfm2",
        {**HEADS, "conv_L_cache": 3, "layer_types": ["conv", FULL]},
        [(0, 32 * 3 * 4, "conv"), (32, 0, FULL)],
        id="lfm2: convolutions",
    ),
    pytest.param(
        "minimax",
        {**HEADS, "layer_types": [LINEAR, FULL]},
        [(0, 4 * 8 * 8 * 4, LINEAR), (32, 0, FULL)],
        id="minimax: lightning attention",
    ),
]


@pytest.mark.parametrize(("family", "fields", "expected"), CACHES)
def test_caches(family: str, fields: dict[str, Any], expected: list[tuple[int, int, str]]) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    layers = len(expected)
    if not {"n_layer", "num_layers"} & set(fields):
        fields = {"num_hidden_layers": layers, **fields}
    config = CONFIG_MAPPING[family](**fields)
    assert layer_caches(config, layers, 4) == tuple(
        LayerCache(items * 4, state_bytes, kind) for items, state_bytes, kind in expected
    )


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_families_whose_caches_are_not_known(family: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with pytest.raises(UnsupportedFamily, match=f"a layer of {family} keeps cannot be told"):
        layer_caches(CONFIG_MAPPING[family](), 2, 2)
