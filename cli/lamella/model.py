"""A model as a launch needs to know it: its profile, and where its files are.

Opens the model's small files through lamella_checkpoint and reads no tensor. A GGUF is converted
first.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lamella import convert
from lamella.target import Target
from lamella_checkpoint import gguf
from lamella_checkpoint.notorch import hide_torch
from lamella_checkpoint.source import Source, open_source
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
        profile = inspect(source, dtype=dtype, stored=target.model.spec.pipeline.quantization)
        return ModelFacts(
            uri=uri if path is not None else f"{uri.partition('@')[0]}@{source.commit}",
            path="" if source.local_path is None else str(source.local_path),
            tokenizer_path=str(source.metadata_folder()),
            profile=profile,
            chats=_has_chat_template(source),
        )
    finally:
        source.close()


def _has_chat_template(source: Source) -> bool:
    """As transformers looks for one: a file of its own, or a field of the tokenizer's config."""
    if "chat_template.jinja" in source.list():
        return True
    from lamella_checkpoint.inspector import small_json

    return bool(small_json(source, "tokenizer_config.json").get("chat_template"))
