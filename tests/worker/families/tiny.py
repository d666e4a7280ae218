"""Tiny random models, one per causal-LM family, for the law of the split.

The fields of a default config are shrunk by name, and a few families get overrides, so that
sliding windows, mixed layers, experts and shared caches really occur within a few layers.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

LAYERS = 5
WINDOW = 8
VOCAB = 128
ORIGINAL_MAX = 32  # long-rope and dynamic NTK change their frequencies here
SERVED_MAX = 96

# Ten families that people use and that have no pipeline plan in transformers (gptj has one).
EXTRA = (
    "gpt2", "opt", "falcon", "bloom", "gptj", "gpt_bigcode", "stablelm", "nemotron", "granitemoe",
    "lfm2",
)  # fmt: skip

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "index_n_heads": 8,
    "index_head_dim": 16,
    "index_topk": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": LAYERS,
    "n_inner": 48,
    "n_positions": 256,
    "rotary_dim": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_ln_in_parallel_attn": None,
}

_MIXED = ["sliding_attention", "full_attention"]
_LAYER_TYPES = [_MIXED[i % 2] for i in range(LAYERS)]
_LINEAR_TYPES = ["linear_attention", "full_attention"] * 2 + ["linear_attention"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ROPE_BY_TYPE = {"sliding_attention": _ROPE, "full_attention": {**_ROPE, "rope_theta": 5000.0}}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": ORIGINAL_MAX,
    "factor": 8.0,
}
_DYNAMIC = {
    "rope_type": "dynamic",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": ORIGINAL_MAX,
}
_GEMMA3N: dict[str, Any] = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
    "intermediate_size": [48] * 6,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "laurel_rank": 8,
    "rope_parameters": _ROPE_BY_TYPE,
}
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}, "5": {"head_dim": 16}},
}
_DOTS3: dict[str, Any] = {
    "per_layer_config": {},
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "layer_types": ["indexed_attention", "sliding_attention"] * 2 + ["indexed_attention"],
    "mlp_layer_types": ["dense"] + ["sparse"] * 4,
    "shared_experts_intermediate_size": 24,
    "head_dim": 16,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {
        "layer_types": _LAYER_TYPES, "rope_parameters": _ROPE_BY_TYPE, "logit_scale": 1.0
    },
    "dots1": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "first_k_dense_replace": 1, "layer_types": _LAYER_TYPES,
    },
    "deepseek_v2": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "topk_method": "greedy", "first_k_dense_replace": 1,
    },
    "glm_moe_dsa": {
        "indexer_types": ["full", "full", "shared", "full", "shared"],
        "mlp_layer_types": ["dense"] + ["sparse"] * 4,
    },
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "minicpm3": {"dim_model_base": 32, "scale_emb": 1},
    "dots3_note_text": _DOTS3,
    "ministral": {"head_dim": 8, "layer_types": _LAYER_TYPES},
    "minimax": {"head_dim": 8, "block_size": 4, "layer_types": _LINEAR_TYPES},
    "nemotron": {"num_key_value_heads": 2},
    "gemma3n_text": _GEMMA3N,
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "kimi_linear": {
        "num_experts_per_token": 2, "linear_head_dim": 8, "linear_num_heads": 4,
        "layer_types": _LINEAR_TYPES, "mlp_layer_types": ["dense"] + ["sparse"] * 4,
    },
    "bailing_hybrid": {
        "num_experts_per_token": 2, "linear_head_dim": 8, "linear_num_heads": 4,
        "num_expert_group": 1, "topk_group": 1, "layer_types": _LINEAR_TYPES,
        "mlp_layer_types": ["dense"] + ["sparse"] * 4,
    },
    "longcat_flash": {
        "num_layers": 5, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "zero_expert_num": 2,
    },
    "hy_v4": {
        "indexer_types": ["full", "shared", "shared", "full", "shared"],
        "mlp_layer_types": ["dense"] + ["sparse"] * 4,
    },
    "phi3": {
        "rope_parameters": _LONGROPE, "original_max_position_embeddings": ORIGINAL_MAX,
        "sliding_window": None,
    },
    "qwen2": {
        "rope_parameters": _DYNAMIC, "use_sliding_window": True, "max_window_layers": 2,
        "max_position_embeddings": ORIGINAL_MAX,
    },
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2, "layer_types": _LAYER_TYPES},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
}  # fmt: skip

# Weights this much smaller where random ones of full size make the family unstable (a recurrent
# state that grows without bound amplifies the order of additions).
GAIN: dict[str, float] = {
    "granite": 0.6,
    "granite_swa": 0.6,
    "granitemoe": 0.7,
    "nemotron": 0.6,
    "sarvam_moe": 0.7,
    "sarvam_mla": 0.7,
    "deepseek_v32": 0.7,
    "exaone_moe": 0.7,
    "kimi_linear": 0.7,
    "minicpm3": 0.7,
    "deepseek_v4": 0.5,
    "lara_mini": 0.5,
    "olmo_hybrid": 0.5,
    "qwen3_5_text": 0.4,
    "qwen3_5_moe_text": 0.4,
    "qwen3_next": 0.4,
}


# The whole model needs a package (timm) that is not among ours: its language model is saved under
# the names that the whole model's file has.
TEXT_ONLY = ("gemma3n",)

# Another seed where the first one has two of the indexer's scores within rounding of each other:
# the chosen positions then follow the order of additions.
SEEDS: dict[str, int] = {"glm_moe_dsa": 3}


def families() -> list[str]:
    """Every causal-LM model type with a pipeline plan, and the ten others."""
    found = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        cls = CONFIG_MAPPING[model_type]
        parts = (cls, *(cls.sub_configs or {}).values())
        if any(getattr(part, "base_model_pp_plan", None) for part in parts):
            found.append(model_type)
    return sorted({*found, *EXTRA})


def tiny_config(model_type: str) -> Any:
    """A config of this family with every known size made small."""
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    stored = default.to_dict()
    chosen = {k: v for k, v in SMALL.items() if stored.get(k) is not None}
    if "kv_lora_rank" in chosen:  # latent attention has a key head per query head
        chosen["num_key_value_heads"] = SMALL["num_attention_heads"]
    chosen.update(OVERRIDES.get(model_type, {}))
    for name in ("vision_config", "audio_config"):
        if name in stored and stored[name] is not None and name not in chosen:
            chosen[name] = shrink_tower(stored[name])
    for name in cls.sub_configs or {}:
        if name == "text_config" and name not in chosen:
            sub = getattr(default, name)
            chosen[name] = tiny_config(sub.model_type).to_dict()
    config = cls(**chosen)
    config.dtype = "float32"
    return config


def save_model(config: Any, model: Any, folder: Path) -> None:
    """Write the model as its users would find it."""
    model.save_pretrained(folder)
    if config.model_type in TEXT_ONLY:
        config.save_pretrained(folder)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        renamed = {n.replace("model.", "model.language_model.", 1): t for n, t in tensors.items()}
        save_file(renamed, file, metadata={"format": "pt"})


def shrink_tower(stored: dict[str, Any]) -> dict[str, Any]:
    """A vision or audio tower that costs nothing: text never passes through it."""
    small = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_blocks": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_heads": 2, "head_dim": 8,
        "image_size": 28, "patch_size": 14, "crop_size": 28, "depth": 1, "input_size": 16,
        "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "kv_channels": 8,
        "nemo_conv_channels": 16, "adapter_in_dim": 16, "adapter_input_size": 16,
        "adapter_out_dim": 32, "conf_num_hidden_layers": 1, "out_hidden_size": 32,
    }  # fmt: skip
    stored = {k: v for k, v in stored.items() if k != "per_layer_config"}
    return {**stored, **{k: v for k, v in small.items() if isinstance(stored.get(k), int)}}


def tiny_model(config: Any) -> Any:
    """A random model whose logits are of order one, so that 1e-5 means something."""
    torch.manual_seed(SEEDS.get(config.model_type, 0))
    if config.model_type in TEXT_ONLY:
        config = config.text_config
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if cls.config_class is not type(config):
        config = config.get_text_config()
    gain = GAIN.get(config.model_type, 1.0)
    model = cls._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() >= 2:
                factor = 1.0 if name.startswith(("lm_head", "model.embed_tokens.")) else gain
                parameter.normal_(0.0, factor * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.1)
    return model.eval()
