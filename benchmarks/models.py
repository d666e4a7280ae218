"""Random models of a known size, with a tokenizer, for measurements: no download, no licence.

    python benchmarks/models.py m768 FOLDER

Makes a Hugging Face folder: config.json, model.safetensors (bf16, normal with deviation 0.02), a
byte-level tokenizer and a plain chat template. The text that such a model writes is noise.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

SIZES: dict[str, dict[str, Any]] = {
    # 152 million parameters: the size that the figures in docs/performance.md are about.
    "m768": {
        "hidden_size": 768,
        "intermediate_size": 2112,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    # 702 million parameters: 1.4 GB, for stages that weigh something.
    "m1536": {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    # 1.03 billion parameters: two stages of 1.0 GB each.
    "m2048": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    # 18 million parameters: hundreds of faults in half an hour.
    "m384": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 8000,
    },
    # 0.3 million parameters: starts at once.
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}


def make_config(size: str) -> LlamaConfig:
    """The configuration of a named size."""
    shape = {"vocab_size": 32000, **SIZES[size]}
    return LlamaConfig(
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        **shape,
    )


def make_tensors(config: LlamaConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint, bf16."""
    generator = torch.Generator().manual_seed(seed)
    hidden = config.hidden_size
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads or heads
    head_dim = config.head_dim or hidden // heads

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(0.02).to(torch.bfloat16)

    one = torch.ones(hidden, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": draw(config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": draw(heads * head_dim, hidden),
            prefix + "self_attn.k_proj.weight": draw(kv_heads * head_dim, hidden),
            prefix + "self_attn.v_proj.weight": draw(kv_heads * head_dim, hidden),
            prefix + "self_attn.o_proj.weight": draw(hidden, heads * head_dim),
            prefix + "mlp.gate_proj.weight": draw(config.intermediate_size, hidden),
            prefix + "mlp.up_proj.weight": draw(config.intermediate_size, hidden),
            prefix + "mlp.down_proj.weight": draw(hidden, config.intermediate_size),
            prefix + "input_layernorm.weight": one.clone(),
            prefix + "post_attention_layernorm.weight": one.clone(),
        }
    tensors["model.norm.weight"] = one.clone()
    tensors["lm_head.weight"] = draw(config.vocab_size, hidden)
    return tensors


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Bytes as tokens; ids past the bytes decode to a word each, so that every id has a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    for i in range(len(vocab), vocab_size):
        vocab[f"\u0120w{i}"] = i  # the byte-level spelling of " w123"
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    make: Any = PreTrainedTokenizerFast  # untyped
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        chat_template=CHAT_TEMPLATE,
    )
    return made


def make_folder(size: str, folder: Path) -> Path:
    """Write the model once; a folder that is complete is left alone."""
    done = folder / "config.json"
    if done.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(size)
    save_file(make_tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(config.vocab_size).save_pretrained(folder)
    generation = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    # Last: it is what says that the folder is complete.
    config.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(make_folder(arguments.size, arguments.folder))


if __name__ == "__main__":
    main()
