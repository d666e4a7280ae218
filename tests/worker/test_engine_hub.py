"""The engine's shards from a hub: own bytes only, one commit, and again without a network.

The hub is the small one on loopback that the checkpoint package's tests are run against.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lamella_contract.errors import GatedModel, HubUnreachable, ModelNotFound
from lamella_worker.downloader import ShardDownloader
from lamella_worker.engine import Shard, TorchDynamicShardInferenceEngine


def _hub_fixture() -> Any:
    # Test folders are no packages, so the twin is loaded from its file.
    path = Path(__file__).parents[1] / "checkpoint" / "conftest.py"
    spec = importlib.util.spec_from_file_location("lamella_tests_small_hub", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.hub


hub = _hub_fixture()

REPO = "tiny/llama"
URI = f"hf://{REPO}"
LAYERS = 4
PROMPT = np.array([[3, 1, 4, 1, 5, 9, 2, 6]])


def files(seed: int, folder: Path) -> dict[str, bytes]:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=256, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def oracle(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(PROMPT)).logits[:, -1].numpy()


def shard(first: int, last: int) -> Shard:
    return Shard.of(URI, range(first, last), LAYERS)


async def answer(cache: Path, **how: Any) -> tuple[Any, list[TorchDynamicShardInferenceEngine]]:
    engines = []
    data: Any = PROMPT
    state = None
    for part in (shard(0, 1), shard(1, LAYERS)):
        engine = TorchDynamicShardInferenceEngine(ShardDownloader(cache, **how), device="cpu")
        engines.append(engine)
        data, state = await engine.infer_tensor("r", part, data, state)
    return data, engines


def test_two_stages_from_a_hub_then_offline(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    hub.push(REPO, files(0, tmp_path / "m"))
    logits, engines = asyncio.run(answer(tmp_path / "cache"))
    np.testing.assert_allclose(logits, oracle(tmp_path / "m"), atol=1e-5)
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert engines[0].memory()["weight_bytes"] < 0.4 * size
    hub.seen.clear()
    again, _ = asyncio.run(answer(tmp_path / "cache", offline=True))
    np.testing.assert_array_equal(again, logits)
    assert hub.seen == []


def test_a_branch_that_moves_between_configuration_and_weights(hub: Any, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    hub.push(REPO, files(1, tmp_path / "a"))
    later = files(2, tmp_path / "b")
    hub.fault("config.json", before=lambda: hub.push(REPO, later))
    engine = TorchDynamicShardInferenceEngine(ShardDownloader(tmp_path / "cache"), device="cpu")
    logits, _ = asyncio.run(engine.infer_tensor("r", shard(0, LAYERS), PROMPT))
    assert logits is not None
    np.testing.assert_allclose(logits, oracle(tmp_path / "a"), atol=1e-5)


def test_only_the_cached_slice_is_there_offline(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    hub.push(REPO, files(3, tmp_path / "m"))

    async def ensure(part: Shard, offline: bool) -> TorchDynamicShardInferenceEngine:
        downloader = ShardDownloader(tmp_path / "cache", offline=offline)
        engine = TorchDynamicShardInferenceEngine(downloader, device="cpu")
        await engine.ensure_shard(part)
        return engine

    asyncio.run(ensure(shard(0, 1), offline=False))
    asyncio.run(ensure(shard(0, 1), offline=True))
    with pytest.raises(HubUnreachable, match="tiny/llama"):
        asyncio.run(ensure(shard(1, 3), offline=True))


@pytest.mark.parametrize(
    ("status", "error"), [(403, GatedModel), (404, ModelNotFound)], ids=["gated", "absent"]
)
def test_what_the_hub_refuses(
    status: int, error: type[Exception], hub: Any, tmp_path: Path
) -> None:
    hub.push(REPO, {"config.json": b"{}"})
    hub.fault("", status=status, times=9)
    engine = TorchDynamicShardInferenceEngine(ShardDownloader(tmp_path), device="cpu")
    with pytest.raises(error):
        asyncio.run(engine.ensure_shard(shard(0, 1)))
    assert engine.model_instance is None
