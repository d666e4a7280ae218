"""A GGUF file, written here, becomes a Hugging Face folder with the same numbers."""

from __future__ import annotations

import errno
import logging
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from lamella_checkpoint.errors import DiskFull  # noqa: E402
from lamella_checkpoint.gguf import MARKER_FILE, converted_folder  # noqa: E402
from lamella_checkpoint.headers import read_headers  # noqa: E402
from lamella_checkpoint.inspector import inspect  # noqa: E402
from lamella_checkpoint.slices import SliceReader  # noqa: E402
from lamella_checkpoint.source import open_source  # noqa: E402
from lamella_contract.errors import CorruptModel, ModelNotFound  # noqa: E402
from lamella_worker import convert  # noqa: E402

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 16, 2, 1, 24, 2
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a"]


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A random Llama of two layers in float32."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-float(i) for i in range(len(PIECES))])
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", len(PIECES), HIDDEN)
    add("output.weight", len(PIECES), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for index in range(LAYERS):
        block = f"blk.{index}."
        add(f"{block}attn_q.weight", HIDDEN, HIDDEN)
        add(f"{block}attn_k.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN)
        add(f"{block}attn_v.weight", HIDDEN // HEADS * KV_HEADS, HIDDEN)
        add(f"{block}attn_output.weight", HIDDEN, HIDDEN)
        add(f"{block}ffn_gate.weight", FFN, HIDDEN)
        add(f"{block}ffn_up.weight", FFN, HIDDEN)
        add(f"{block}ffn_down.weight", HIDDEN, FFN)
        add(f"{block}attn_norm.weight", HIDDEN)
        add(f"{block}ffn_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored(path: Path, name: str) -> np.ndarray[Any, Any]:
    reader = gguf.GGUFReader(path)
    tensor = next(item for item in reader.tensors if item.name == name)
    return np.array(tensor.data)


def test_a_gguf_becomes_a_folder_that_is_served(
    tiny_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main([str(tiny_gguf), "--cache-dir", str(tmp_path)]) == 0
    folder = converted_folder(tiny_gguf, tmp_path)
    assert capsys.readouterr().out == f"{folder}\n"
    source = open_source(str(folder))
    assert {"config.json", "tokenizer.json", MARKER_FILE} <= set(source.list())
    profile = inspect(source)
    assert (profile.family, profile.dtype, len(profile.layers)) == ("llama", "float32", LAYERS)
    read = SliceReader(source, read_headers(source).values()).read_all()
    down = read["model.layers.1.mlp.down_proj.weight"].view(np.float32)
    assert np.array_equal(down, stored(tiny_gguf, "blk.1.ffn_down.weight").reshape(-1))
    assert "quantization_config" not in source.read_text("config.json")


def test_a_conversion_is_done_once(
    tiny_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    convert.convert(tiny_gguf, out, dtype="bfloat16")
    assert inspect(open_source(str(out))).dtype == "bfloat16"
    written = (out / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        convert.convert(tiny_gguf, out, dtype="bfloat16")
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert "already converted" in caplog.text
    with pytest.raises(FileExistsError, match="is no conversion of"):
        convert.convert(tiny_gguf, out, dtype="float32")


def test_what_is_no_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNotFound, match="is not a GGUF file"):
        convert.convert(tmp_path / "none.gguf", tmp_path / "out")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\3\0\0\0 and then nothing that makes sense")
    with pytest.raises(CorruptModel, match=r"broken\.gguf"):
        convert.convert(broken, tmp_path / "out")
    assert convert.main([str(broken), str(tmp_path / "out")]) == 1
    assert "broken.gguf" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_no_room(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 3, 7))
    with pytest.raises(DiskFull, match="7 bytes free"):
        convert.convert(tiny_gguf, tmp_path / "out")
    monkeypatch.undo()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "_write", full)
    with pytest.raises(DiskFull, match="no room left"):
        convert.convert(tiny_gguf, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.gguf"]
