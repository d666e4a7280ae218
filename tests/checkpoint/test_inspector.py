"""From a model's files to its profile, exactly; and every kind of folder that has none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamella_checkpoint.inspector import eos_token_ids, inspect
from lamella_checkpoint.source import open_source
from lamella_contract.errors import (
    CorruptModel,
    MissingTensor,
    ModelError,
    ModelNotFound,
    UnsupportedFamily,
)
from lamella_contract.profile import LayerProfile, ModelProfile

# q, k, v, o, gate, up, down, two norms of the tiny Llama.
LAYER_ITEMS = 16 * 16 + 8 * 16 + 8 * 16 + 16 * 16 + 3 * 24 * 16 + 2 * 16


def expected(folder: Path, item_bytes: int, dtype: str, *, tied: bool) -> ModelProfile:
    layer = LayerProfile(
        weight_bytes=LAYER_ITEMS * item_bytes,
        kv_bytes_per_token=2 * 2 * 4 * item_bytes,  # keys and values, 2 heads of 4
        state_bytes_per_sequence=0,
        kind="full_attention",
    )
    return ModelProfile(
        uri=str(folder),
        commit=open_source(str(folder)).commit,
        family="llama",
        dtype=dtype,
        hidden_size=16,
        vocab_size=32,
        max_model_len=64,
        layers=(layer,) * 3,
        embedding_bytes=32 * 16 * item_bytes,
        head_bytes=32 * 16 * item_bytes,
        final_bytes=16 * item_bytes,
        tied=tied,
        boundary_bytes_per_token=16 * item_bytes,
        allowed_cuts=(1, 2),
        cut_reason="",
    )


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_whole_profile(make_model: Callable[..., Path], dtype: str | None, shards: int) -> None:
    folder = make_model(shards=shards)
    item_bytes = 4 if dtype in (None, "float32") else 2
    profile = inspect(open_source(str(folder)), dtype=dtype)
    assert profile == expected(folder, item_bytes, dtype or "float32", tied=False)
    assert ModelProfile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize("repeated", [False, True], ids=["no head in the file", "head repeated"])
def test_a_tied_head_is_a_copy(
    make_model: Callable[..., Path], tensors_of: Any, llama_config: Any, repeated: bool
) -> None:
    llama_config["tie_word_embeddings"] = True
    folder = make_model(tensors_of(tied=not repeated), llama_config)
    assert inspect(open_source(str(folder))) == expected(folder, 4, "float32", tied=True)


@pytest.mark.parametrize("tied", [False, True])
def test_int8_counts_matrices_by_their_elements_and_scales(
    make_model: Callable[..., Path], tensors_of: Any, llama_config: Any, tied: bool
) -> None:
    llama_config["tie_word_embeddings"] = tied
    folder = make_model(tensors_of(tied=tied), llama_config)
    profile = inspect(open_source(str(folder)), dtype="bfloat16", stored="int8")
    channels = 16 + 8 + 8 + 16 + 24 + 24 + 16
    assert {layer.weight_bytes for layer in profile.layers} == {
        LAYER_ITEMS - 2 * 16 + channels * 8 + 2 * 16 * 2
    }
    assert profile.embedding_bytes == 32 * 16 * 2
    assert profile.head_bytes == 32 * 16 + 32 * 8
    assert profile.final_bytes == 16 * 2
    assert not profile.tied, "the head is a copy of its own, in int8, wherever it is"
    assert profile.quantization == "int8"
    assert ModelProfile.from_json(profile.to_json()) == profile


def test_int8_is_refused_for_families_without_it(make_model: Callable[..., Path]) -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": 3, "vocab_size": 32}
    source = open_source(str(make_model(config=config)))
    with pytest.raises(UnsupportedFamily, match=r"got int8 for gpt2, want none or .* llama, "):
        inspect(source, stored="int8")


def test_the_ids_that_end_an_answer(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    assert inspect(open_source(str(folder))).eos_token_ids == ()
    _config(eos_token_id=2)(folder)
    assert inspect(open_source(str(folder))).eos_token_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    assert inspect(open_source(str(folder))).eos_token_ids == (1, 106)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(CorruptModel, match="generation_config"):
        inspect(open_source(str(folder)))


def test_fields_that_the_config_leaves_out(make_model: Callable[..., Path]) -> None:
    """As many small configs on hubs are: the class knows the defaults, the files the dtype."""
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 32,
    }
    profile = inspect(open_source(str(make_model(config=config))))
    assert profile.dtype == "float32"
    assert profile.max_model_len == 2048
    assert profile.layers[0].kv_bytes_per_token == 2 * 4 * 4 * 4  # as many heads as queries


def test_tensors_that_no_text_model_loads(make_model: Callable[..., Path], tensors_of: Any) -> None:
    extra = {
        "model.vision_tower.encoder.layers.0.mlp.weight": np.zeros((9, 9), np.float32),
        "model.layers.3.mtp.weight": np.zeros((9, 9), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(9, np.float32),
        "multi_modal_projector.weight": np.zeros((9, 9), np.float32),
    }
    folder = make_model({**tensors_of(), **extra})
    assert inspect(open_source(str(folder))) == expected(folder, 4, "float32", tied=False)


def _config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def _text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


BAD: list[Any] = [
    pytest.param(
        lambda folder: (folder / "config.json").unlink(),
        ModelNotFound,
        "holds no config.json",
        id="no config",
    ),
    pytest.param(_text("{"), CorruptModel, "not valid JSON", id="half a config"),
    pytest.param(_text("[]"), CorruptModel, "want an object", id="a list"),
    pytest.param(_text("{}"), UnsupportedFamily, "model_type: got nothing", id="no type"),
    pytest.param(
        _config(model_type="alien"), UnsupportedFamily, "model_type: got 'alien'", id="alien"
    ),
    pytest.param(_config(model_type=["x"]), UnsupportedFamily, "model_type", id="type a list"),
    pytest.param(
        _config(quantization_config={"quant_method": "awq"}),
        UnsupportedFamily,
        "quantized .'awq'.",
        id="quantized",
    ),
    pytest.param(_config(model_type="bart"), UnsupportedFamily, "no causal", id="bart"),
    pytest.param(_config(model_type="bert"), UnsupportedFamily, "no causal", id="bert"),
    pytest.param(_config(model_type="vit"), UnsupportedFamily, "no causal", id="vit"),
    pytest.param(_config(hidden_size="x"), CorruptModel, "hidden_size", id="wrong type"),
    pytest.param(_config(dtype="int4"), UnsupportedFamily, "dtype: got 'int4'", id="dtype"),
    pytest.param(
        _config(num_hidden_layers=5),
        MissingTensor,
        "5 layers and the files hold no tensor of layer 3 and 1 others",
        id="missing layers",
    ),
    pytest.param(
        lambda folder: (folder / "model.safetensors").unlink(),
        ModelNotFound,
        "no safetensors",
        id="no weights",
    ),
]


@pytest.mark.parametrize(("spoil", "kind", "says"), BAD)
def test_bad_models(
    make_model: Callable[..., Path], spoil: Any, kind: type[ModelError], says: str
) -> None:
    folder = make_model()
    spoil(folder)
    with pytest.raises(kind, match=says):
        inspect(open_source(str(folder)))


def test_no_embedding(make_model: Callable[..., Path], tensors_of: Any) -> None:
    tensors = tensors_of()
    del tensors["model.embed_tokens.weight"]
    with pytest.raises(MissingTensor, match="no token embedding"):
        inspect(open_source(str(make_model(tensors))))


@pytest.mark.parametrize(
    ("documents", "ids"),
    [
        ([{"eos_token_id": [1, 106]}, {"eos_token_id": 2}], (1, 106)),
        ([{}, {"eos_token_id": 2}], (2,)),
        ([{"eos_token_id": None}, {"text_config": {"eos_token_id": 3}}], (3,)),
        ([{}, {}], ()),
        ([{"eos_token_id": -1}, {"eos_token_id": [5, 5]}], (5,)),
    ],
    ids=["generation-config", "config", "inner", "none", "odd"],
)
def test_end_of_text_ids(documents: list[dict[str, object]], ids: tuple[int, ...]) -> None:
    assert eos_token_ids(*documents) == ids


WITHOUT_TORCH = """
import sys
from lamella_checkpoint.notorch import hide_torch
hide_torch()
from lamella_checkpoint.inspector import inspect
from lamella_checkpoint.source import open_source
print(inspect(open_source(sys.argv[1])).to_json())
assert sys.modules["torch"] is None
"""


def test_no_torch_is_needed(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(folder)],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert done.stderr == b""
    profile = ModelProfile.from_json(done.stdout)
    assert profile == expected(folder, 4, "float32", tied=False)
