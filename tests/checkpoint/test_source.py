"""Opening models in folders, and telling what is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella_checkpoint.errors import NeedsConversion
from lamella_checkpoint.gguf import MARKER_FILE, converted_folder, find_gguf, is_converted
from lamella_checkpoint.source import LocalSource, Source, default_cache_dir, open_source
from lamella_contract.errors import CorruptModel, ModelError, ModelNotFound, UnsupportedFamily


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://localhost{}"])
def test_ways_to_name_a_folder(make_model: Callable[..., Path], form: str) -> None:
    folder = make_model(name="my model")
    path = str(folder) if form == "{}" else str(folder).replace(" ", "%20")
    source = open_source(form.format(path))
    assert isinstance(source, Source)
    assert source.local_path == folder
    assert source.list() == ("config.json", "model.safetensors")


def test_the_commit_of_a_folder_moves_with_any_edit(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    first = open_source(str(folder)).commit
    assert open_source(str(folder)).commit == first
    os.utime(folder / "config.json", (1, 1))
    assert open_source(str(folder)).commit != first


def test_a_folder_of_links_is_a_model(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model()
    links = tmp_path / "snapshot"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    source = open_source(str(links))
    assert source.read_text("config.json") == (folder / "config.json").read_text()


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        open_source(str(tmp_path / "gone"))
    (tmp_path / "file.txt").write_text("hello")
    with pytest.raises(ModelNotFound, match="is a file"):
        open_source(str(tmp_path / "file.txt"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "", "x\0y"])
def test_names_stay_inside(make_model: Callable[..., Path], name: str) -> None:
    with pytest.raises(CorruptModel, match="leads out"):
        open_source(str(make_model())).size(name)


def test_ranges_stay_inside(make_model: Callable[..., Path]) -> None:
    source = LocalSource(make_model())
    size = source.size("config.json")
    for start, end in ((-1, 3), (0, size + 1), (size + 1, size + 2)):
        with pytest.raises(CorruptModel, match="were wanted of a file"):
            source.read_into("config.json", start, end, memoryview(bytearray(end - start)))
    with pytest.raises(ModelNotFound, match="holds no nothing"):
        source.size("nothing")


def test_many_small_buffers_in_one_read(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    source = LocalSource(folder)
    data = bytearray(3000)
    view = memoryview(data)
    source.read_scatter("model.safetensors", 7, [view[i : i + 1] for i in range(3000)])
    assert bytes(data) == (folder / "model.safetensors").read_bytes()[7:3007]
    source.close()


def test_gguf_files_are_told(tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF\3\0\0\0")
    for uri in (str(gguf), f"file:{gguf}", str(tmp_path)):
        with pytest.raises(NeedsConversion, match="convert") as caught:
            open_source(uri)
        assert caught.value.path == gguf
        assert isinstance(caught.value, ModelError)
    (tmp_path / "config.json").write_text("{}")
    assert open_source(str(tmp_path)).list() == ("config.json", "tiny.gguf")


def test_several_gguf_files(tmp_path: Path) -> None:
    for name in ("a-q4.gguf", "a-q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match=r"several GGUF files \(a-q4\.gguf, a-q8\.gguf\)"):
        find_gguf(tmp_path)
    part = tmp_path / "b-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFamily, match="one of 2 parts"):
        find_gguf(part)


def test_a_conversion_is_found_by_content(tmp_path: Path) -> None:
    gguf = tmp_path / "my model (1).gguf"
    gguf.write_bytes(b"GGUF one")
    first = converted_folder(gguf, tmp_path)
    assert first.parent == tmp_path / "models"
    assert first.name.startswith("my-model-1-")
    assert converted_folder(gguf, tmp_path, "bfloat16") != first
    assert not is_converted(first)
    first.mkdir(parents=True)
    (first / MARKER_FILE).write_text('{"source_sha256": "x", "dtype": "float32"}')
    assert is_converted(first)
    assert is_converted(first, "x", "float32")
    assert not is_converted(first, "y")
    assert not is_converted(first, dtype="bfloat16")
    gguf.write_bytes(b"GGUF two")
    assert converted_folder(gguf, tmp_path) != first


def test_the_cache_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMELLA_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("LAMELLA_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "lamella"
