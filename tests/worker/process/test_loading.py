"""What may pass is tried again while the stage says so; what cannot is left to the caller."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lamella_contract.config import StageConfig
from lamella_contract.errors import (
    CorruptModel,
    DownloadStalled,
    HubUnreachable,
    LamellaError,
    OutOfMemory,
)
from lamella_worker.downloader import ShardDownloader
from lamella_worker.process.loading import LONGEST_RETRY_S, check_device, load_at_last
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.stage import StageEngine

Config = Callable[..., StageConfig]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(1, 2, 1, (1, 2))


def test_a_hub_that_is_away_is_asked_again_and_the_stage_says_so(
    config: Config, telemetry: Telemetry
) -> None:
    errors: list[LamellaError] = [HubUnreachable("no route"), DownloadStalled("no byte")] * 5
    pauses: list[float] = []
    troubles: list[str] = []
    engine = object()

    def load(stage: StageConfig, told: Telemetry) -> StageEngine:
        if errors:
            raise errors.pop(0)
        return engine  # type: ignore[return-value]

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        troubles.append(str(telemetry.snapshot()["error"]))

    assert load_at_last(config(1), telemetry, load, pause) is engine
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, *[LONGEST_RETRY_S] * 4]
    assert troubles[:2] == ["no route", "no byte"]
    assert telemetry.snapshot()["error"] == ""


def test_a_corrupt_model_is_not_tried_again(config: Config, telemetry: Telemetry) -> None:
    def load(stage: StageConfig, told: Telemetry) -> StageEngine:
        raise CorruptModel("a file is short")

    with pytest.raises(CorruptModel):
        load_at_last(config(1), telemetry, load, lambda seconds: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that a planner takes for a small Qwen2 of two layers; its tensors are zeros."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    document = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **sizes, **heads}
    (tmp_path / "config.json").write_text(json.dumps(document | {"torch_dtype": "float32"}))
    tensors = {"model.embed_tokens.weight": (100, 16), "lm_head.weight": (100, 16)}
    tensors["model.norm.weight"] = (16,)
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = (16, 16)
    save_file({n: torch.zeros(s) for n, s in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_device_with_too_little_memory_is_refused_by_the_headers(
    config: Config, model: Path
) -> None:
    stage = config(1, device="cuda:0")
    pipeline = dataclasses.replace(stage.pipeline, model_path=str(model), num_blocks=64)
    stage = dataclasses.replace(stage, pipeline=pipeline)
    weights = 4 * (16 * 16 + 16 + 100 * 16)  # a layer, the last norm, the head
    pages = 4 * 64 * 16 * 2 * 8  # float32, tokens, keys and values of one head of 8
    check_device(stage, ShardDownloader(), lambda device: weights + pages)
    with pytest.raises(OutOfMemory, match=r"needs 71\.3 KiB on cuda:0, 10\.0 KiB are free"):
        check_device(stage, ShardDownloader(), lambda device: 10 * 1024)
    with pytest.raises(OutOfMemory):
        check_device(stage, ShardDownloader(), lambda device: weights + pages - 1)
