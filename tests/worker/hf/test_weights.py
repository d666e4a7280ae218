"""A slice reads its own tensors and no others, and ends up with what transformers loads."""

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Qwen3NextConfig,
    T5Config,
)

from lamella_checkpoint.cuts import num_layers
from lamella_checkpoint.inspector import inspect
from lamella_checkpoint.source import LocalSource
from lamella_contract.errors import CorruptModel, MissingTensor, UnsupportedFamily
from lamella_contract.plan import plan
from lamella_worker.hf.slice import build_slice, model_class
from lamella_worker.model import build_runner
from lamella_worker.readers import RenamedReader, folder_reader, trim_heap

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "max_position_embeddings": 64,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gemma2-tied-scaled": Gemma2Config(**SMALL),
    "gpt2-prefixed": GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=96, n_positions=64),
    "mixtral-merged-experts": MixtralConfig(**SMALL, num_local_experts=4),
    "deepseek_v3-buffers": DeepseekV3Config(**{**SMALL, **LATENT}),
    "qwen3_next-recurrent": Qwen3NextConfig(**{**SMALL, **LINEAR}),
}
SPLITS = ((0, 1), (1, 3), (3, 4))


class Witness:
    """A folder's reader that remembers which tensors were asked for."""

    def __init__(self, folder: Path) -> None:
        self.reader = folder_reader(folder)
        self.asked: list[str] = []

    @property
    def names(self) -> Iterable[str]:
        return self.reader.names

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        self.asked.extend(names)
        return self.reader.read(names)


def saved(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model_class(config)._from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def load(config: Any, layers: tuple[int, int], reader: Any, dtype: Any = torch.float32) -> Any:
    return build_slice(config, *layers, reader, dtype=dtype)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_stages_read_every_tensor_once_and_nothing_else(config: Any, tmp_path: Path) -> None:
    folder = saved(config, tmp_path)
    witnesses = [Witness(folder) for _ in SPLITS]
    for layers, witness in zip(SPLITS, witnesses, strict=True):
        load(config, layers, witness)
    asked = [name for witness in witnesses for name in witness.asked]
    twice = {name for name in asked if asked.count(name) > 1}
    embedding = {name for name in asked if "embed_tokens" in name or "wte" in name}
    assert twice == (embedding if config.tie_word_embeddings else set())
    assert set(asked) == set(witnesses[0].names)
    for witness in witnesses:
        assert witness.reader.bytes_read <= 1.01 * witness.reader.bytes_needed


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_slice_holds_what_transformers_loads(
    config: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = saved(config, tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    wanted = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    seen = set()
    for layers in SPLITS:
        piece = load(config, layers, folder_reader(folder), dtype)
        held = {**dict(piece.model.named_parameters()), **dict(piece.model.named_buffers())}
        for name, tensor in held.items():
            assert tensor.dtype == wanted[name].dtype, name
            assert torch.equal(tensor, wanted[name]), name
        seen |= set(held)
    assert seen == set(wanted)


def test_a_repeated_tied_head_is_not_read(tmp_path: Path) -> None:
    config = CONFIGS["llama-tied"]
    folder = saved(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    witness = Witness(folder)
    piece = load(config, (3, 4), witness)
    assert "lm_head.weight" not in witness.asked
    assert torch.equal(piece.model.lm_head.weight, tensors["model.embed_tokens.weight"])


def test_a_tied_model_that_holds_the_head_alone_loads(tmp_path: Path) -> None:
    config = CONFIGS["llama-tied"]
    folder = saved(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for layers in ((0, 4), (0, 2), (2, 4)):
        piece = load(config, layers, folder_reader(folder))
        held = [piece.model.get_input_embeddings().weight] if layers[0] == 0 else []
        held += [piece.model.lm_head.weight] if layers[1] == 4 else []
        assert all(torch.equal(weight, tensors["lm_head.weight"]) for weight in held), layers


@pytest.mark.parametrize(
    ("gone", "layers"),
    [
        ("model.layers.2.mlp.up_proj.weight", (1, 3)),
        ("model.embed_tokens.weight", (0, 1)),
        ("lm_head.weight", (3, 4)),
        ("model.norm.weight", (3, 4)),
    ],
)
def test_a_missing_tensor_is_named(gone: str, layers: tuple[int, int], tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    folder = saved(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingTensor, match=gone.replace(".", r"\.")):
        load(config, layers, folder_reader(folder))


def test_another_stages_missing_tensor_does_not_matter(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    folder = saved(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load(config, (1, 4), folder_reader(folder))


def test_a_missing_expert_is_an_error(tmp_path: Path) -> None:
    config = CONFIGS["mixtral-merged-experts"]
    folder = saved(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    expert = next(name for name in sorted(tensors) if ".1." in name and "experts.2." in name)
    del tensors[expert]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((CorruptModel, MissingTensor)):
        load(config, (1, 3), folder_reader(folder))


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    config = CONFIGS["llama"]
    folder = saved(config, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(48, 31)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptModel, match=r"layers\.1\.mlp\.up_proj"):
        load(config, (1, 3), folder_reader(folder))


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFamily, match="t5"):
        load(T5Config(), (0, 1), folder_reader(saved(CONFIGS["llama"], tmp_path)))


def test_the_number_of_layers_is_the_config_s() -> None:
    assert {num_layers(config) for config in CONFIGS.values()} == {4}


def _memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(field)


@pytest.mark.parametrize(("first", "last"), [(0, 10), (90, 120), (96, 100), (7, 7)])
def test_rows_of_a_tensor_are_read_alone(first: int, last: int, tmp_path: Path) -> None:
    folder = saved(CONFIGS["llama"], tmp_path)
    [name] = [name for name in folder_reader(folder).names if "embed" in name]
    reader = folder_reader(folder)
    table = folder_reader(folder).read([name])[name]
    assert torch.equal(reader.read_rows(name, first, last), table[first:last])
    assert reader.bytes_read == reader.bytes_needed == table[first:last].nbytes
    renamed = RenamedReader(reader, {"table": name})
    assert torch.equal(renamed.read_rows("table", first, last), table[first:last])
    with pytest.raises(MissingTensor, match="no such"):
        reader.read_rows("no such", 0, 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_an_int8_load_peaks_little_above_what_is_planned(tmp_path: Path) -> None:
    wide = {**SMALL, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 80_000}
    config = LlamaConfig(**wide, tie_word_embeddings=True, dtype=torch.bfloat16)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)

    def load() -> Any:
        reader = folder_reader(tmp_path)
        return build_runner(config, 3, 4, reader, dtype=torch.bfloat16, quantization="int8")

    load()
    gc.collect()
    trim_heap()
    before_kib = _memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    kept = load()
    peak_bytes = (_memory_kib("VmHWM") - before_kib) * 1024
    del kept
    profile = inspect(LocalSource(tmp_path), dtype="bfloat16", stored="int8")
    planned = plan(profile, split=(3, 1)).stages[1].weight_bytes
    # The table alone is 123 MB in bf16; a piece of it and the largest matrix are not planned.
    assert 60 << 20 < planned < 80 << 20
    noise_bytes = 32 << 20
    assert peak_bytes <= 1.1 * planned + noise_bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("runner", ["fast", "packed", "sequential"])
def test_loading_peaks_little_above_the_slice(runner: str, tmp_path: Path) -> None:
    wide = {**SMALL, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8}
    config = LlamaConfig(**wide, dtype=torch.float32)
    folder = saved(config, tmp_path)
    build_runner(config, 0, 1, folder_reader(folder), dtype=torch.float32, runner=runner)
    gc.collect()
    trim_heap()
    before_kib = _memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    reader = folder_reader(folder)
    kept = build_runner(config, 2, 8, reader, dtype=torch.float32, runner=runner)
    peak_bytes = (_memory_kib("VmHWM") - before_kib) * 1024
    del kept
    noise_bytes = 16 << 20
    assert reader.bytes_needed > 150 << 20
    assert peak_bytes <= 1.3 * reader.bytes_needed + noise_bytes
