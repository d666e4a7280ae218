"""Process configurations: JSON both ways, strictly, and what is refused.

``pytest tests/contract/test_config.py``
"""

from __future__ import annotations

import dataclasses
import json

import pytest

from lamella_contract.config import GatewayConfig, PipelineConfig, StageConfig
from lamella_contract.errors import InvalidConfig

PIPELINE = PipelineConfig(
    name="qwen",
    model_uri="file:/m",
    model_path="/m",
    commit="c0ffee",
    num_layers=18,
    splits=(0, 10),
    dtype="bfloat16",
    block_size=16,
    num_blocks=64,
    max_sequences=8,
    max_model_len=512,
    max_step_tokens=256,
    max_queued_tokens=4096,
    eos_token_ids=(1, 106),
    vocab_size=1000,
)
STAGE = StageConfig(
    pipeline=PIPELINE,
    stage=1,
    device="cpu",
    threads=1,
    cpu=None,
    control_address="tcp://127.0.0.1:5701",
    gateway_address="",
    data_bind="tcp://127.0.0.1:*",
    http_address="127.0.0.1:0",
    key_file="/k",
    peer_keys=(("stage-0", "a" * 40), ("gateway-0", "b" * 40)),
    cache_dir="",
    hub_token_file="",
)
GATEWAY = GatewayConfig(
    name="gateway-0",
    served_name="qwen",
    http_host="127.0.0.1",
    http_port=8000,
    replicas=("tcp://127.0.0.1:5700",),
    tokenizer_path="/m",
    key_file="/k",
    peer_keys=(("stage-0", "a" * 40),),
    model_hash=PIPELINE.model_hash().hex(),
    max_model_len=512,
    max_queued_tokens=4096,
    vocab_size=1000,
    eos_token_ids=(1,),
)
CONFIGS = {"pipeline": PIPELINE, "stage": STAGE, "gateway": GATEWAY}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_json_both_ways(config) -> None:
    assert type(config).from_json(config.to_json()) == config


def test_the_hash_is_of_content_alone() -> None:
    spaced = json.dumps(json.loads(PIPELINE.to_json()), indent=4)
    assert PipelineConfig.from_json(spaced).config_hash() == PIPELINE.config_hash()
    assert len(PIPELINE.config_hash()) == 16
    for field in dataclasses.fields(PipelineConfig):
        value = getattr(PIPELINE, field.name)
        other = {
            "splits": (0, 9),
            "dtype": "float32",
            "runner": "packed",
            "quantization": "int8",
            "eos_token_ids": (),
        }.get(
            field.name,
            value + (1 if isinstance(value, int) else "x")
            if not isinstance(value, tuple)
            else value,
        )
        changed = dataclasses.replace(PIPELINE, **{field.name: other})
        assert changed.config_hash() != PIPELINE.config_hash(), field.name
    assert GATEWAY.model_hash_bytes() == PIPELINE.model_hash()


def test_requests_may_move_between_pipelines_that_serve_the_same_model_alike() -> None:
    moved = {"splits": (0, 9), "replica": 3, "num_blocks": 7, "name": "other", "runner": "packed"}
    assert dataclasses.replace(PIPELINE, **moved).model_hash() == PIPELINE.model_hash()
    for field, value in {
        "model_uid": "u",
        "commit": "c",
        "vocab_size": 9,
        "max_model_len": 9,
        "eos_token_ids": (9,),
        "quantization": "int8",
    }.items():
        other = dataclasses.replace(PIPELINE, **{field: value})
        assert other.model_hash() != PIPELINE.model_hash(), field


def test_ranges_and_ends() -> None:
    first = dataclasses.replace(STAGE, stage=0)
    assert [PIPELINE.layer_range(stage) for stage in (0, 1)] == [(0, 10), (10, 18)]
    assert (first.is_first, first.is_last, first.role) == (True, False, "stage-0")
    assert (STAGE.is_first, STAGE.is_last, STAGE.role) == (False, True, "stage-1")
    assert STAGE.peer_key("gateway-0") == "b" * 40
    with pytest.raises(InvalidConfig, match="no key of 'stage-9'"):
        STAGE.peer_key("stage-9")


SPLITS = "want first layers that rise from 0 and stay below num_layers=18"
WRONG = {
    "splits empty": (PIPELINE, {"splits": ()}, f"splits: got [], {SPLITS}"),
    "splits late": (PIPELINE, {"splits": (1, 4)}, f"splits: got [1, 4], {SPLITS}"),
    "splits falling": (PIPELINE, {"splits": (0, 4, 4)}, f"splits: got [0, 4, 4], {SPLITS}"),
    "splits beyond": (PIPELINE, {"splits": (0, 18)}, f"splits: got [0, 18], {SPLITS}"),
    "dtype": (
        PIPELINE,
        {"dtype": "int8"},
        "dtype: got 'int8', want one of bfloat16, float16, float32",
    ),
    "runner": (
        PIPELINE,
        {"runner": "x"},
        "runner: got 'x', want one of auto, fast, packed, sequential",
    ),
    "quantization": (
        PIPELINE,
        {"quantization": "int4"},
        "quantization: got 'int4', want one of none, int8",
    ),
    "quantization of a runner": (
        PIPELINE,
        {"quantization": "int8", "runner": "packed"},
        "quantization: got 'int8' with runner 'packed', want runner auto or fast",
    ),
    "quantization of a device": (
        STAGE,
        {"pipeline": dataclasses.replace(PIPELINE, quantization="int8"), "device": "cuda:1"},
        "quantization: got 'int8' on 'cuda:1', want device cpu or quantization none",
    ),
    "blocks": (PIPELINE, {"num_blocks": 0}, "num_blocks: got 0, want more than 0"),
    "stage": (STAGE, {"stage": 2}, "stage: got 2, want 0 to 1"),
    "cpu": (STAGE, {"cpu": -1}, "cpu: got -1, want a core's number or null"),
    "threads": (STAGE, {"threads": 0}, "threads: got 0, want more than 0"),
    "device": (STAGE, {"device": ""}, "device: got an empty string, want a value"),
    "role": (
        STAGE,
        {"peer_keys": (("stage-01", "k"),)},
        "peer_keys: got role 'stage-01', want stage-<k> or gateway-<k>",
    ),
    "role twice": (
        STAGE,
        {"peer_keys": (("stage-0", "k"), ("stage-0", "l"))},
        "peer_keys: a role stands twice",
    ),
    "port": (GATEWAY, {"http_port": 70000}, "http_port: got 70000, want 0 to 65535"),
    "hash": (GATEWAY, {"model_hash": "xyz"}, "model_hash: got 'xyz', want 32 hex digits"),
    "replicas": (
        GATEWAY,
        {"replicas": ()},
        "replicas: got 0 addresses and discover='', want the address of at least one stage 0, or a "
        "name to look them up by",
    ),
    "tokenizer": (
        GATEWAY,
        {"model_uri": "hf://a/b"},
        "tokenizer_path: got '/m' and model_uri='hf://a/b', want one of them",
    ),
}


@pytest.mark.parametrize(("config", "change", "message"), WRONG.values(), ids=WRONG)
def test_a_config_that_cannot_work_is_refused(config, change: dict, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        dataclasses.replace(config, **change)
    assert str(caught.value) == message


def edited(change: dict[str, object], *, without: str = "") -> str:
    plain = json.loads(STAGE.to_json())
    plain.update(change)
    plain.pop(without, None)
    return json.dumps(plain)


PIPELINE_PLAIN = json.loads(PIPELINE.to_json())
DOCUMENTS = {
    "no JSON": ("{", "not valid JSON: Expecting property name"),
    "no object": ("[]", "document: got [], want an object with the fields of StageConfig"),
    "unknown": (edited({"thread": 1}), "thread: unknown field; did you mean 'threads'?"),
    "missing": (edited({}, without="device"), "device: missing field of StageConfig"),
    "type": (edited({"threads": "1"}), "threads: got '1', want a whole number"),
    "bool": (edited({"threads": True}), "threads: got True, want a whole number"),
    "float": (edited({"suspect_after_s": "1"}), "suspect_after_s: got '1', want a number"),
    "optional": (edited({"cpu": "1"}), "cpu: got '1', want a whole number"),
    "pair": (edited({"peer_keys": [["a"]]}), "peer_keys[0]: got ['a'], want a list of 2"),
    "nested": (
        edited({"pipeline": {**PIPELINE_PLAIN, "splits": [0, "1"]}}),
        "pipeline.splits[1]: got '1', want a whole number",
    ),
    "nested unknown": (
        edited({"pipeline": {**PIPELINE_PLAIN, "split": []}}),
        "pipeline.split: unknown field; did you mean 'splits'?",
    ),
}


@pytest.mark.parametrize(("text", "message"), DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        StageConfig.from_json(text)
    assert str(caught.value).startswith(message)


def test_defaults_may_be_left_out_and_whole_numbers_are_numbers() -> None:
    assert StageConfig.from_json(edited({}, without="parent_pid")) == STAGE
    assert StageConfig.from_json(edited({"suspect_after_s": 2})).suspect_after_s == 2.0
