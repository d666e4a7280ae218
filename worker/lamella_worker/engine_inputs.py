"""What may go into `infer_tensor` and what comes out, as arrays: checks and conversions only.

It knows no model object and no session. Everything here runs before any compute, so that a wrong
argument costs nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lamella_contract.errors import EngineError
from lamella_worker.batch import Bundle, Segment, StepBatch
from lamella_worker.engine_errors import InvalidInput
from lamella_worker.engine_sessions import Input
from lamella_worker.shard import Shard


def check_input(shard: Shard, data: Any, config: Mapping[str, Any] | None) -> Input:
    """`data` as what the stage computes on: int64 [rows, n] or float32 [rows, n, hidden].

    A first stage takes 2-D integers in the vocabulary, a later one 3-D floats as wide as the
    model. Raises InvalidInput (a ValueError) for anything else. `config` None leaves the checks
    that need it for a second call.
    """
    if data is None:
        raise InvalidInput("input_data is null, wanted an array")
    if isinstance(data, torch.Tensor):
        data = data.detach().to("cpu")
        data = data.float().numpy() if data.is_floating_point() else data.numpy()
    if not isinstance(data, np.ndarray):
        raise InvalidInput(f"input_data is a {type(data).__name__}, wanted an array")
    config = config or {}
    if data.size == 0:
        raise InvalidInput(f"input_data has shape {data.shape}, wanted at least one token")
    return _check_ids(data, config) if shard.is_first else _check_hidden(data, config)


def _check_ids(data: NDArray[Any], config: Mapping[str, Any]) -> NDArray[np.int64]:
    if not np.issubdtype(data.dtype, np.integer):
        raise InvalidInput(
            f"input_data has dtype {data.dtype}, a first stage wants integers (token ids)"
        )
    if data.ndim != 2:
        raise InvalidInput(
            f"input_data has shape {data.shape}, a first stage wants [batch, tokens]"
        )
    check_ids_range(data, config.get("vocab_size"))
    return data.astype(np.int64)


def check_ids_range(ids: NDArray[Any], vocab_size: Any) -> None:
    """InvalidInput unless every id is in [0, vocab_size); an unknown size is not checked."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (isinstance(vocab_size, int) and high >= vocab_size):
        wanted = f"ids in [0, {vocab_size})" if isinstance(vocab_size, int) else "ids of 0 or more"
        raise InvalidInput(f"token ids go from {low} to {high}, wanted {wanted}")


def _check_hidden(data: NDArray[Any], config: Mapping[str, Any]) -> NDArray[np.float32]:
    if not np.issubdtype(data.dtype, np.floating):
        raise InvalidInput(
            f"input_data has dtype {data.dtype}, a later stage wants floats (hidden states)"
        )
    if data.ndim != 3:
        raise InvalidInput(
            f"input_data has shape {data.shape}, a later stage wants [batch, tokens, hidden]"
        )
    width = config.get("hidden_size")
    if isinstance(width, int) and data.shape[2] != width:
        raise InvalidInput(f"hidden states are {data.shape[2]} wide, the model is {width} wide")
    return data.astype(np.float32)


def make_batch(
    slots: tuple[int, ...], start: int, count: int, slot_blocks: int, block_size: int, sample: bool
) -> StepBatch:
    """A step of `count` tokens from `start` in each slot; slot s owns the s-th run of blocks."""
    used = -(-(start + count) // block_size)
    return StepBatch(
        tuple(
            Segment(
                slot=slot,
                start=start,
                count=count,
                blocks=np.arange(slot * slot_blocks, slot * slot_blocks + used, dtype=np.int32),
                sample=sample,
            )
            for slot in slots
        ),
        block_size,
    )


def make_bundle(
    chunk: Input, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Bundle:
    """Rows packed: int64 [rows, n] -> token_ids [rows * n]; [rows, n, hidden] -> hidden."""
    tensor = torch.from_numpy(np.ascontiguousarray(chunk))
    if chunk.ndim == 2:
        return {"token_ids": tensor.reshape(-1).to(device)}
    return {"hidden": tensor.reshape(-1, chunk.shape[2]).to(device, dtype)}


def take_output(
    shard: Shard, hidden: torch.Tensor | None, logits: torch.Tensor | None, count: int
) -> NDArray[np.float32]:
    """What the caller gets: logits [rows, vocab] of the last position, or hidden states.

    Hidden states come out as float32 [rows, count, hidden]: of what was computed again before the
    `count` new tokens nothing is handed on. Raises EngineError when the model gave the other one.
    """
    if shard.is_last:
        if logits is None:
            raise EngineError(f"layers {shard.layers} end the model, but it gave no logits")
        return _as_float32(logits[:, -1] if logits.ndim == 3 else logits)
    if hidden is None:
        raise EngineError(f"layers {shard.layers} do not end the model, but it gave no hidden")
    return _as_float32(hidden[:, -count:])


def _as_float32(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array
