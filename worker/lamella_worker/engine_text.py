"""What a model's folder says of text and of sizes: its configuration and its tokenizer.

It knows no weights: it is read before them, and alone when only `encode` or `decode` is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamella_contract.errors import CorruptModel, ModelNotFound, UnsupportedFamily
from lamella_contract.names import MODEL_CONFIG_FILE
from lamella_worker.engine_errors import InputTooLong, InvalidInput
from lamella_worker.engine_inputs import check_ids_range


@dataclass(frozen=True, slots=True)
class TextTools:
    """What `encode` and `decode` need of one model."""

    tokenizer: Any
    config: Mapping[str, Any] | None


def load_model_config(path: str | Path) -> dict[str, Any]:
    """The configuration of the model in a folder, with the defaults that config.json leaves out.

    Besides the configuration's own keys: `torch_dtype` a torch.dtype, `max_seq_len` the longest
    context in tokens or None, `hf_config` the object that the model's code is built from. Sizes are
    the text part's where a model has several parts. Raises ModelNotFound, CorruptModel or
    UnsupportedFamily.
    """
    from transformers import AutoConfig

    folder = Path(path)
    if not (folder / MODEL_CONFIG_FILE).is_file():
        raise ModelNotFound(f"{folder}: holds no {MODEL_CONFIG_FILE}")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError as error:  # an unknown model_type; broken JSON comes as OSError
        raise UnsupportedFamily(f"{folder}: {error}") from error
    except (OSError, TypeError, KeyError) as error:
        raise CorruptModel(f"{folder / MODEL_CONFIG_FILE}: {error}") from error
    text = config.get_text_config(decoder=True)
    dtype = text.dtype or config.dtype or torch.float32
    return {
        **text.to_dict(),
        "torch_dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype,
        "max_seq_len": context_length(text),
        "hf_config": config,
    }


def context_length(config: Any) -> int | None:
    """The longest context that a configuration declares, under the names families use."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if type(value) is int and value > 0:
            return value
    return None


async def resolve_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a model's folder. Raises ModelNotFound or CorruptModel."""
    return await asyncio.to_thread(_load_tokenizer, Path(path))


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ModelNotFound(f"{folder}: no such folder")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raise bare Exceptions from Rust
        raise CorruptModel(f"{folder}: its tokenizer cannot be loaded: {error}") from error


def encode(tools: TextTools, prompt: Any) -> NDArray[np.int64]:
    """Token ids int64 [1, n]. Raises InvalidInput for no text and InputTooLong, cuts nothing."""
    if not isinstance(prompt, str):
        raise InvalidInput(f"prompt is a {type(prompt).__name__}, wanted text")
    if not prompt:
        raise InvalidInput("prompt is empty, wanted text")
    ids = tools.tokenizer.encode(prompt)
    if isinstance(ids, torch.Tensor):
        ids = ids.detach().cpu().numpy()
    array = np.asarray(ids, dtype=np.int64).reshape(1, -1)
    if array.size == 0:
        raise InvalidInput("prompt holds no tokens, wanted text")
    limit = (tools.config or {}).get("max_seq_len")
    if isinstance(limit, int) and array.shape[1] > limit:
        raise InputTooLong(f"prompt has {array.shape[1]} tokens, the model holds {limit}")
    return array


def decode(tools: TextTools, tokens: Any) -> str:
    """Text of ids [n] or [1, n]. Raises InvalidInput for other shapes, types and unknown ids."""
    ids = np.asarray(tokens)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise InvalidInput(f"tokens have shape {ids.shape}, wanted [n] or [1, n]")
    if ids.size == 0:
        return ""
    if not np.issubdtype(ids.dtype, np.integer):
        raise InvalidInput(f"tokens have dtype {ids.dtype}, wanted integers")
    check_ids_range(ids, _known_ids(tools))
    return str(tools.tokenizer.decode(ids.tolist()))


def _known_ids(tools: TextTools) -> int | None:
    """How many ids there are: the tokenizer's, or the model's where it is padded beyond those."""
    sizes = [(tools.config or {}).get("vocab_size")]
    with contextlib.suppress(TypeError):  # a tokenizer without a size: the model's alone counts
        sizes.append(len(tools.tokenizer))
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    return max(known) if known else None
