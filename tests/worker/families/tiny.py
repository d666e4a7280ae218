"""Tiny random models, one per causal-LM family, for the law of the split.

The fields of a default config are shrunk by name, and a few families get overrides, so that
sliding windows, mixed layers, experts and shared caches really occur within a few layers.
"""

from typing import Any

import torch
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
    "index_n_heads": 2,
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

OVERRIDES: dict[str, dict[str, Any]] = {}


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
    chosen = {k: v for k, v in SMALL.items() if getattr(default, k, None) is not None}
    chosen.update(OVERRIDES.get(model_type, {}))
    for name in cls.sub_configs or {}:
        if name == "text_config" and name not in chosen:
            sub = getattr(default, name)
            chosen[name] = tiny_config(sub.model_type).to_dict()
    config = cls(**chosen)
    config.dtype = "float32"
    return config


def tiny_model(config: Any, seed: int = 0) -> Any:
    """A random model whose logits are of order one, so that 1e-5 means something."""
    torch.manual_seed(seed)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.1)
    return model.eval()
