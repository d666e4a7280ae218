"""A stage's configuration for tests that start no stage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lamella_contract.config import PipelineConfig, StageConfig


@pytest.fixture
def config() -> Callable[..., StageConfig]:
    """`config(stage, **fields)`: one of two stages."""

    def make(stage: int, **fields: object) -> StageConfig:
        pipeline = PipelineConfig(
            name="test",
            model_uri="file:/model",
            model_path="/model",
            commit="",
            num_layers=2,
            splits=(0, 1),
            dtype="float32",
            block_size=16,
            num_blocks=8,
            max_sequences=2,
            max_model_len=128,
            max_step_tokens=64,
            max_queued_tokens=256,
            eos_token_ids=(1,),
            vocab_size=100,
        )
        plain = {
            "pipeline": pipeline,
            "stage": stage,
            "device": "cpu",
            "threads": 1,
            "cpu": None,
            "control_address": "tcp://127.0.0.1:1",
            "gateway_address": "",
            "data_bind": "tcp://127.0.0.1:*",
            "http_address": "127.0.0.1:0",
            "key_file": "/none",
            "peer_keys": (),
            "cache_dir": "",
            "hub_token_file": "",
        }
        return StageConfig(**(plain | fields))  # type: ignore[arg-type]

    return make
