"""A model as a launch needs to know it: profile, end-of-text ids, where its files are.

Opens the model's small files through lamella_checkpoint and reads no tensor. A GGUF is converted
first.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lamella import convert
from lamella.target import Target
from lamella_checkpoint import gguf
from lamella_checkpoint.notorch import hide_torch
from lamella_checkpoint.source import Source, open_source
from lamella_contract import names
from lamella_contract.errors import CorruptModel
from lamella_contract.profile import ModelProfile


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`path` is the local folder, "" when stages read from `uri`.

    `tokenizer_path` is always local; `chats` tells whether the tokenizer has a chat template.
    """

    uri: str
    path: str
    tokenizer_path: str
    profile: ModelProfile
    eos_token_ids: tuple[int, ...]
    chats: bool = False


def learn(target: Target, cache_home: Path, console: Console) -> ModelFacts:
    """Raises ModelError and its children, or UsageError when a GGUF cannot be converted."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    hide_torch()  # config classes need none
    from lamella_checkpoint.inspector import inspect

    source_spec = target.model.spec.model
    path = target.path
    dtype = target.model.spec.pipeline.dtype
    if path is not None and (found := gguf.find_gguf(path)) is not None:
        path = convert.converted(found, cache_home, console, dtype=dtype or convert.DTYPE)
    uri = source_spec.uri if path is None else f"file:{path}"
    revision = source_spec.revision if path is None else None
    source = open_source(uri, revision=revision, cache_dir=cache_home)
    try:
        profile = inspect(source, dtype=dtype)
        return ModelFacts(
            uri=uri if path is not None else f"{uri.partition('@')[0]}@{source.commit}",
            path="" if source.local_path is None else str(source.local_path),
            tokenizer_path=str(source.metadata_folder()),
            profile=profile,
            eos_token_ids=eos_token_ids(
                _small_json(source, names.GENERATION_CONFIG_FILE),
                _small_json(source, names.MODEL_CONFIG_FILE),
            ),
            chats=_has_chat_template(source),
        )
    finally:
        source.close()


def eos_token_ids(*documents: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: the first document that names any wins; () when none does."""
    for document in documents:
        text_config = document.get("text_config")
        inner = text_config if isinstance(text_config, dict) else {}
        for value in (document.get("eos_token_id"), inner.get("eos_token_id")):
            ids = value if isinstance(value, list) else [value]
            found = tuple(dict.fromkeys(i for i in ids if type(i) is int and i >= 0))
            if found:
                return found
    return ()


def _has_chat_template(source: Source) -> bool:
    """As transformers looks for one: a file of its own, or a field of the tokenizer's config."""
    if "chat_template.jinja" in source.list():
        return True
    return bool(_small_json(source, "tokenizer_config.json").get("chat_template"))


def _small_json(source: Source, name: str) -> Mapping[str, Any]:
    """A JSON object among the model's files; empty when there is no such file."""
    if name not in source.list():
        return {}
    try:
        document = json.loads(source.read_text(name))
    except ValueError as error:
        raise CorruptModel(f"{name}: not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise CorruptModel(f"{name}: got {type(document).__name__}, want an object")
    return document
