"""What the user pointed at becomes one manifest, or one clear line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lamella.errors import UsageError
from lamella.target import Overrides, label, parse_split, resolve
from lamella_contract.errors import InvalidSpec, LamellaError, ModelNotFound

ROOT = Path(__file__).parents[2]


def manifest(**spec: Any) -> str:
    document = {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"uri": "hf://org/tiny"}, **spec},
    }
    return json.dumps(document)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "My_Model.v2"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


def test_a_folder_is_served_under_its_name(folder: Path) -> None:
    target = resolve(str(folder), Overrides(stages=3))
    assert target.path == folder
    assert target.model.name == "my-model-v2"
    assert target.model.spec.model.served_name == "My_Model.v2"
    assert target.model.spec.pipeline.stages == 3


def test_a_gguf_is_a_target_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"GGUF....")
    assert resolve(str(path), Overrides()).path == path


def test_a_hub_model_has_no_path() -> None:
    target = resolve("hf://Qwen/Qwen3-32B@main", Overrides())
    assert target.path is None
    assert target.model.spec.model.served_name == "Qwen3-32B"
    assert target.model.spec.model.revision == "main"


def test_a_manifests_relative_path_is_relative_to_the_manifest(folder: Path) -> None:
    path = folder.parent / "model.yaml"
    path.write_text(manifest(model={"uri": "file:My_Model.v2"}))
    assert resolve(str(path), Overrides()).path == folder


@pytest.mark.parametrize(
    ("overrides", "stages", "split"),
    [
        (Overrides(), 2, (10, 8)),
        (Overrides(stages=2), 2, (10, 8)),
        (Overrides(stages=3), 3, None),
        (Overrides(split=(6, 6, 6)), 3, (6, 6, 6)),
    ],
    ids=["manifest", "the-same", "other-stages", "other-split"],
)
def test_options_win_over_the_manifest(
    tmp_path: Path, overrides: Overrides, stages: int, split: tuple[int, ...] | None
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(manifest(pipeline={"stages": 2, "split": [10, 8]}))
    pipeline = resolve(str(path), overrides).model.spec.pipeline
    assert (pipeline.stages, pipeline.split) == (stages, split)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (manifest(pipline={}), InvalidSpec, "spec.pipline: unknown key; did you mean 'pipeline'"),
        (manifest(pipeline={"stages": 0}), InvalidSpec, "spec.pipeline.stages: got 0"),
        (manifest(model={"uri": "pvc://claim/x"}), UsageError, "only a cluster can mount"),
        (manifest(model={"uri": "file:nowhere"}), ModelNotFound, "no such folder"),
        ("a: [", UsageError, "not valid YAML"),
        ("- 1", InvalidSpec, "want a ShardedModel manifest"),
        ("", UsageError, "got 0 documents, want one ShardedModel"),
        ("a: 1\n---\nb: 2", UsageError, "got 2 documents"),
    ],
    ids=["typo", "zero", "pvc", "missing-model", "yaml", "list", "empty", "two"],
)
def test_a_bad_manifest_is_refused(
    tmp_path: Path, text: str, error: type[LamellaError], words: str
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(error, match=words.replace("[", r"\[")):
        resolve(str(path), Overrides())


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing: no such file or folder"):
        resolve(str(tmp_path / "nothing"), Overrides())
    with pytest.raises(ModelNotFound, match=r"no config\.json in it"):
        resolve(str(tmp_path), Overrides())
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as a manifest: it is not text"):
        resolve(str(tmp_path / "model.bin"), Overrides())


def test_stages_and_split_must_agree(folder: Path) -> None:
    with pytest.raises(UsageError, match="got 2 counts, want 3 as --stages says"):
        resolve(str(folder), Overrides(stages=3, split=(1, 2)))


@pytest.mark.parametrize("text", ["", "a", "1,", "0,2", "1;2", "-1,2"])
def test_a_bad_split_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="want layers per stage such as 10,8"):
        parse_split(text)


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("Qwen3-32B", "qwen3-32b"),
        ("A__b", "a-b"),
        ("___", "model"),
        ("x" * 80, "x" * 50),
        ("3b", "model-3b"),
    ],
)
def test_labels(text: str, slug: str) -> None:
    assert label(text) == slug


@pytest.mark.parametrize("name", ["shardedmodel.yaml", "examples/demo.yaml"])
def test_the_samples_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / ".cache/lamella/models/gemma-3-270m"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(str(ROOT / name), Overrides()).model.spec.pipeline.stages
