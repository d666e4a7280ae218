"""Headers and indexes of safetensors files: what is right, and everything that can be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from lamella_checkpoint.headers import TensorInfo, read_header, read_headers
from lamella_checkpoint.source import LocalSource
from lamella_contract.errors import CorruptModel, MissingTensor, ModelError, ModelNotFound

FILE = "model.safetensors"


def written(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with this header, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    (folder / FILE).write_bytes(struct.pack("<Q", size) + raw + data)
    return folder


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_agrees_with_the_reference_implementation(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    tensors = read_headers(LocalSource(folder))
    data = (folder / FILE).read_bytes()
    with safe_open(folder / FILE, framework="np") as reference:
        assert set(tensors) == set(reference.keys())
        for name, info in tensors.items():
            value = reference.get_tensor(name)
            assert info.shape == value.shape
            assert data[info.start : info.end] == value.tobytes()


def test_shards_by_index(make_model: Callable[..., Path]) -> None:
    whole, sharded = make_model(name="whole"), make_model(shards=3, name="sharded")
    one, three = read_headers(LocalSource(whole)), read_headers(LocalSource(sharded))
    assert set(one) == set(three)
    assert len({info.file for info in three.values()}) == 3


def test_files_without_wanted_tensors_are_not_opened(make_model: Callable[..., Path]) -> None:
    folder = make_model(shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    file = index["lm_head.weight"]
    for other in set(index.values()) - {file}:
        (folder / other).write_bytes(b"broken")
    headers = read_headers(LocalSource(folder), lambda name: name == "lm_head.weight")
    assert {info.file for info in headers.values()} == {file}


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    save_file(
        {"none": np.zeros((0, 4), np.float32), "one": np.float32([3.0]).reshape(())},
        tmp_path / FILE,
    )
    headers = read_headers(LocalSource(tmp_path))
    assert headers["none"].nbytes == 0
    assert headers["one"].shape == ()
    assert headers["one"].elements == 1


def test_rows_are_ranges() -> None:
    info = TensorInfo("w", "BF16", (8, 4), FILE, 100, 164)
    part = info.rows(2, 5)
    assert (part.shape, part.start, part.end) == ((3, 4), 116, 140)


BROKEN: list[Any] = [
    pytest.param(lambda p: (p / FILE).write_bytes(b""), "has 0 bytes", id="empty file"),
    pytest.param(lambda p: (p / FILE).write_bytes(b"1234"), "has 4 bytes", id="four bytes"),
    pytest.param(lambda p: written(p, {}, length=10**6), "truncated or no safe", id="long header"),
    pytest.param(lambda p: written(p, {}, length=2**63), "truncated or no safe", id="absurd"),
    pytest.param(lambda p: written(p, b"{not json"), "not valid JSON", id="no JSON"),
    pytest.param(lambda p: written(p, b"\xff\xfe"), "not UTF-8", id="no text"),
    pytest.param(lambda p: written(p, b"[" * 20000), "not valid JSON", id="deep JSON"),
    pytest.param(lambda p: written(p, [1]), "want an object", id="a list"),
    pytest.param(
        lambda p: written(p, b'{"a": {}, "a": {}}'), "'a' appears twice", id="a name twice"
    ),
    pytest.param(lambda p: written(p, {"a": 3}), "tensor a: got 3", id="no entry"),
    pytest.param(lambda p: written(p, {"a": {}}), "dtype: got nothing", id="empty entry"),
    pytest.param(lambda p: written(p, {"a": entry("F13")}), "dtype: got 'F13'", id="dtype"),
    pytest.param(lambda p: written(p, {"a": entry(dtype=[])}), "dtype: got", id="dtype a list"),
    pytest.param(lambda p: written(p, {"a": entry(shape=[-2])}), "shape: got", id="shape"),
    pytest.param(lambda p: written(p, {"a": entry(shape=[True])}), "shape: got", id="bool"),
    pytest.param(lambda p: written(p, {"a": entry(offsets=[8, 0])}), "offsets", id="backwards"),
    pytest.param(lambda p: written(p, {"a": entry(offsets=[0])}), "offsets", id="one offset"),
    pytest.param(lambda p: written(p, {"a": entry(offsets=[0.0, 8.0])}), "offsets", id="floats"),
    pytest.param(
        lambda p: written(p, {"a": entry(offsets=[0, 4])}, bytes(4)), "takes 8 bytes", id="bytes"
    ),
    pytest.param(
        lambda p: written(p, {"a": entry()}, bytes(7)), "is truncated: tensor a", id="truncated"
    ),
    pytest.param(
        lambda p: written(p, {"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "a and b overlap",
        id="overlap",
    ),
]


@pytest.mark.parametrize(("spoil", "says"), BROKEN)
def test_damaged_files(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(tmp_path)
    with pytest.raises(CorruptModel, match=says):
        read_headers(LocalSource(tmp_path))


def _index(document: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        if callable(document):
            document(path)
            return
        path.write_text(document if isinstance(document, str) else json.dumps(document))

    return spoil


def _promise(path: Path) -> None:
    table = json.loads(path.read_text())
    table["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(table))


INDEXES: list[Any] = [
    pytest.param(_index("{"), CorruptModel, "not valid JSON", id="no JSON"),
    pytest.param(_index([]), CorruptModel, "weight_map: got nothing", id="a list"),
    pytest.param(_index({"weight_map": {}}), CorruptModel, "weight_map", id="empty"),
    pytest.param(_index({"weight_map": {"a": 1}}), CorruptModel, "want a file name", id="no name"),
    pytest.param(
        _index({"weight_map": {"a": "gone.safetensors"}}),
        ModelNotFound,
        "names gone.safetensors, which is not",
        id="absent file",
    ),
    pytest.param(
        _index({"weight_map": {"a": "../x.safetensors"}}), CorruptModel, "leads out", id="dots"
    ),
    pytest.param(
        _index({"weight_map": {"a": "/etc/passwd"}}), CorruptModel, "leads out", id="absolute"
    ),
    pytest.param(_index({"weight_map": {"a": "..\\x"}}), CorruptModel, "leads out", id="backslash"),
    pytest.param(_index(_promise), MissingTensor, "promises tensor ghost", id="missing tensor"),
]


@pytest.mark.parametrize(("spoil", "kind", "says"), INDEXES)
def test_damaged_indexes(
    make_model: Callable[..., Path],
    spoil: Callable[[Path], object],
    kind: type[ModelError],
    says: str,
) -> None:
    folder = make_model(shards=2)
    spoil(folder)
    with pytest.raises(kind, match=says):
        read_headers(LocalSource(folder))


def test_no_weights_and_pickled_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="holds no safetensors file"):
        read_headers(LocalSource(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match="pickled, which is never read"):
        read_headers(LocalSource(tmp_path))


def test_one_tensor_in_two_files_without_an_index(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": np.zeros(2, np.float32)}, tmp_path / name)
    with pytest.raises(CorruptModel, match=r"is in a\.safetensors and in b\.safetensors"):
        read_headers(LocalSource(tmp_path))


@settings(deadline=None)  # a loaded machine is slow
@given(data=st.binary(max_size=200), length=st.none() | st.integers(0, 300))
def test_no_bytes_raise_anything_but_corrupt_model(
    data: bytes, length: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    prefix = b"" if length is None else struct.pack("<Q", length)
    (folder / FILE).write_bytes(prefix + data)
    source = LocalSource(folder)
    try:
        read_header(source, FILE)
    except CorruptModel:
        pass
    finally:
        source.close()
