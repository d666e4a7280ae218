"""What the user pointed at (manifest, folder, GGUF, hf:// address) as one manifest.

Reads the manifest and nothing of the model. Options of the command line win over the manifest; a
model without a manifest gets the one that says just where it is, so everything after this knows
manifests only.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamella.errors import UsageError
from lamella_checkpoint import gguf
from lamella_contract import names, spec
from lamella_contract.errors import InvalidSpec, ModelNotFound

_URIS = ("hf://", "file:", "pvc://", "oci://")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says of the model itself; None leaves it to the manifest."""

    stages: int | None = None
    split: tuple[int, ...] | None = None
    stage_memory: int | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    max_sequences: int | None = None
    served_name: str | None = None
    revision: str | None = None
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The manifest, and the folder or GGUF file on this machine that it names (None for a
    hub's)."""

    model: spec.ShardedModel
    path: Path | None


def resolve(where: str, overrides: Overrides) -> Target:
    """Raises InvalidSpec, ModelNotFound or UsageError."""
    if where.startswith(_URIS):
        return _target(_wrapped(where), overrides, Path.cwd())
    path = Path(where).expanduser()
    if path.is_dir() or gguf.is_gguf(path):
        return _target(_wrapped(f"file:{path.absolute()}"), overrides, Path.cwd())
    return _target(read_manifest(path), overrides, path.absolute().parent)


def is_manifest(where: str) -> bool:
    """Whether `where` is a file that can be read again, to see what has changed."""
    path = Path(where).expanduser()
    return not where.startswith(_URIS) and path.is_file() and not gguf.is_gguf(path)


def read_manifest(path: Path) -> Mapping[str, Any]:
    """The one document in a YAML or JSON file. Raises UsageError or InvalidSpec."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file or folder") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"{path}: cannot be read as a manifest: {reason}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    documents = [document for document in documents if document is not None]
    if len(documents) != 1:
        raise UsageError(f"{path}: got {len(documents)} documents, want one {names.KIND}")
    if not isinstance(documents[0], dict):
        raise InvalidSpec(str(path), documents[0], f"a {names.KIND} manifest")
    return documents[0]


def parse_split(text: str) -> tuple[int, ...]:
    """`10,8` -> (10, 8). Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--split: got {text!r}, want layers per stage such as 10,8")
    return tuple(int(part) for part in parts)


def label(text: str) -> str:
    """A model's name as a manifest takes it: a letter, then lower case, digits and dashes."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not slug[:1].isalpha():
        slug = f"model-{slug}"
    return slug[: names.MAX_MODEL_NAME].strip("-")


def _wrapped(uri: str) -> Mapping[str, Any]:
    """The manifest of a model that was named without one."""
    last = re.split(r"[/:]", uri.split("@")[0].rstrip("/"))[-1].removesuffix(".gguf")
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": label(last)},
        "spec": {"model": {"uri": uri, "servedName": last or "model"}},
    }


def _target(document: Mapping[str, Any], overrides: Overrides, base: Path) -> Target:
    model = _override(spec.parse(document), overrides)
    uri = model.spec.model.parsed
    if uri.scheme == "hf":
        return Target(model, None)
    if uri.scheme != "file":
        raise UsageError(
            f"spec.model.uri: got {model.spec.model.uri!r}, which only a cluster can mount; "
            "want file: or hf:// to serve it here"
        )
    path = Path(os.path.normpath(base / Path(uri.location).expanduser()))
    _require_model(path)
    return Target(model, path)


def _require_model(path: Path) -> None:
    """Raises ModelNotFound with what is missing: the path, or a config in it."""
    if not path.exists():
        raise ModelNotFound(f"{path}: no such folder or GGUF file")
    if path.is_dir():
        if not (path / names.MODEL_CONFIG_FILE).exists() and gguf.find_gguf(path) is None:
            raise ModelNotFound(
                f"{path}: no {names.MODEL_CONFIG_FILE} in it; want a Hugging Face model folder, "
                "or one with a GGUF file"
            )
    elif not gguf.is_gguf(path):
        raise ModelNotFound(f"{path}: got a file that is no GGUF, want a model folder or a GGUF")


def _override(model: spec.ShardedModel, overrides: Overrides) -> spec.ShardedModel:
    pipeline = _pipeline(model.spec.pipeline, overrides)
    context = dataclasses.replace(
        model.spec.context,
        max_model_len=overrides.max_model_len or model.spec.context.max_model_len,
        max_sequences=overrides.max_sequences or model.spec.context.max_sequences,
    )
    source = dataclasses.replace(
        model.spec.model,
        served_name=overrides.served_name or model.spec.model.served_name,
        revision=overrides.revision or model.spec.model.revision,
    )
    changed = dataclasses.replace(model.spec, model=source, pipeline=pipeline, context=context)
    return dataclasses.replace(model, spec=changed)


def _pipeline(pipeline: spec.PipelineSpec, overrides: Overrides) -> spec.PipelineSpec:
    """The manifest's pipeline with the command line's stages, split, memory and dtype."""
    stages, split = pipeline.stages, pipeline.split
    if overrides.split is not None:
        stages, split = len(overrides.split), overrides.split
        if overrides.stages not in (None, stages):
            raise UsageError(
                f"--split: got {stages} counts, want {overrides.stages} as --stages says"
            )
    elif overrides.stages is not None and overrides.stages != stages:
        stages, split = overrides.stages, None
    return dataclasses.replace(
        pipeline,
        stages=stages,
        split=split,
        stage_memory=overrides.stage_memory or pipeline.stage_memory,
        dtype=overrides.dtype or pipeline.dtype,
        quantization=overrides.quantization or pipeline.quantization,
        # Per-stage memory was declared for the stages of the manifest, not for other ones.
        stage_specs=pipeline.stage_specs if len(pipeline.stage_specs) == stages else (),
    )
