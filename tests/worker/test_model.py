"""Which runner serves a model, and the face that the engine drives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    Gemma3nTextConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lamella_contract.errors import EngineError, ForbiddenCut, InvalidConfig, UnsupportedFamily
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.hf.packed import ATTENTION_NAME
from lamella_worker.model import ShardedGeneralModel, build_runner, choose
from lamella_worker.readers import folder_reader

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
LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
}  # fmt: skip


def batch_of(start: int, count: int, slot: int = 0, sample: bool = True) -> StepBatch:
    blocks = np.arange(-(-(start + count) // 16), dtype=np.int32)
    return StepBatch((Segment(slot, start, count, blocks, sample),), 16)


def ids(count: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"token_ids": torch.randint(1, 96, (count,), generator=generator)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recurrent")
    torch.manual_seed(0)
    Qwen3NextForCausalLM(Qwen3NextConfig(**SMALL, **LINEAR)).save_pretrained(folder)
    return folder


def opened(folder: Path, config: Any, layers: range, runner: str = "auto") -> ShardedGeneralModel:
    reader = folder_reader(folder)
    return ShardedGeneralModel(config, layers, reader, dtype=torch.float32, runner=runner)


@pytest.mark.parametrize(
    ("config", "wanted", "kind"),
    [
        (LlamaConfig(**SMALL), "auto", "fast"),
        (Qwen3MoeConfig(**SMALL), "auto", "packed"),
        (BloomConfig(), "auto", "sequential"),
        (
            Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
            "auto",
            "sequential",
        ),
        (LlamaConfig(**SMALL), "packed", "packed"),
        (LlamaConfig(**SMALL), "sequential", "sequential"),
    ],
    ids=["fast", "packed", "sequential", "convolutions", "ask-packed", "ask-sequential"],
)
def test_the_best_runner_is_chosen_unless_one_is_asked_for(
    config: Any, wanted: str, kind: str
) -> None:
    assert choose(config, wanted) == kind


def test_a_runner_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="warp"):
        choose(LlamaConfig(**SMALL), "warp")


def test_fast_is_refused_for_a_family_that_it_does_not_know() -> None:
    with pytest.raises(UnsupportedFamily, match="bloom"):
        choose(BloomConfig(), "fast")


@pytest.mark.parametrize("layers", [range(4), range(25, 30), range(22, 28)])
def test_a_cut_among_shared_caches_is_refused(layers: range, llama: Path) -> None:
    config = Gemma3nTextConfig(num_hidden_layers=30, num_kv_shared_layers=10)
    reader = folder_reader(llama)
    if layers.start == 0:
        layers = range(22)
    with pytest.raises(ForbiddenCut, match="reuse the keys and values"):
        build_runner(config, layers.start, layers.stop, reader, dtype=torch.float32)


@pytest.mark.parametrize("layers", [range(2, 2), range(3, 5), range(4, 5)])
def test_layers_that_do_not_exist_are_refused(layers: range, llama: Path) -> None:
    with pytest.raises(InvalidConfig):
        opened(llama, LlamaConfig(**SMALL), layers, "sequential")


@pytest.mark.parametrize("runner", ["fast", "packed", "sequential"])
def test_the_face_of_the_seed_document(runner: str, llama: Path) -> None:
    config = LlamaConfig(**SMALL)
    first = opened(llama, config, range(1), runner)
    last = opened(llama, config, range(1, 4), runner)
    for part in (first, last):
        part.model.setup_caches(batch_size=2, dtype=torch.float32, decoder_max_seq_len=40)
        assert part.max_generated_tokens == 40
        assert part.runner.kv_bytes == len(part.layers) * 2 * 2 * 8 * 4 * (2 * 48)
    hidden, nothing = first.generate(batch_of(0, 20), ids(20))
    assert nothing is None
    assert hidden is not None
    assert hidden.shape == (20, 32)
    none, logits = last.generate(batch_of(0, 20), {"hidden": hidden})
    assert none is None
    assert logits is not None
    assert logits.shape == (1, 96)
    whole = LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        wanted = whole(ids(20)["token_ids"][None]).logits[0, -1]
    assert torch.allclose(logits[0], wanted, atol=1e-5)
    _, unasked = last.generate(batch_of(0, 20, sample=False), {"hidden": hidden})
    assert unasked is None or unasked.shape[0] == 0
    last.model.reset_caches()


def test_pages_of_another_dtype_are_refused(llama: Path) -> None:
    model = opened(llama, LlamaConfig(**SMALL), range(1), "sequential")
    with pytest.raises(InvalidConfig, match="bfloat16"):
        model.setup_caches(batch_size=1, dtype=torch.bfloat16, decoder_max_seq_len=16)


def test_recurrent_state_that_is_out_of_step_is_an_error(recurrent: Path) -> None:
    model = opened(recurrent, Qwen3NextConfig(**SMALL, **LINEAR), range(4))
    model.setup_caches(batch_size=2, dtype=torch.float32, decoder_max_seq_len=32)
    model.runner.step(batch_of(0, 5), ids(5))
    model.runner.step(batch_of(5, 1), ids(1))
    with pytest.raises(EngineError, match="stands at 6, the step starts at 5"):
        model.runner.step(batch_of(5, 1), ids(1))
    model.runner.release(0)
    with pytest.raises(EngineError, match="stands at 0, the step starts at 6"):
        model.runner.step(batch_of(6, 1), ids(1))


def test_a_slot_starts_afresh_at_zero(recurrent: Path) -> None:
    model = opened(recurrent, Qwen3NextConfig(**SMALL, **LINEAR), range(4))
    model.setup_caches(batch_size=2, dtype=torch.float32, decoder_max_seq_len=32)
    fresh = model.runner.step(batch_of(0, 7), ids(7))["logits"]
    model.runner.step(batch_of(0, 9), ids(9, seed=2))
    again = model.runner.step(batch_of(0, 7), ids(7))["logits"]
    assert torch.equal(fresh, again)


@pytest.mark.parametrize(
    "keywords",
    [{"position_bias": torch.zeros(1)}, {"indices": torch.zeros(1)}, {"is_causal": False}],
    ids=["bias", "indices", "bidirectional"],
)
def test_paged_attention_refuses_what_it_does_not_know(
    keywords: dict[str, Any], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(llama, LlamaConfig(**SMALL), range(2), "packed")
    known = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME]

    def strange(*args: Any, **kwargs: Any) -> Any:
        return known(*args, **{**kwargs, **keywords})

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, ATTENTION_NAME, strange)
    with pytest.raises(UnsupportedFamily):
        model.setup_caches(batch_size=1, dtype=torch.float32, decoder_max_seq_len=16)


def test_packing_is_refused_where_layers_do_not_all_attend(recurrent: Path) -> None:
    model = opened(recurrent, Qwen3NextConfig(**SMALL, **LINEAR), range(4), "packed")
    with pytest.raises(UnsupportedFamily, match="not once each"):
        model.setup_caches(batch_size=1, dtype=torch.float32, decoder_max_seq_len=16)
