"""Chooses what runs a slice."""

from typing import Any

import torch

from lamella_worker.hf_slice import build_slice
from lamella_worker.sequential import SequentialRunner


def build_runner(
    config: Any, first: int, last: int, reader: Any, *, dtype: torch.dtype, device: str, runner: str
) -> Any:
    piece = build_slice(config, first, last, reader, dtype=dtype, device=device)
    return SequentialRunner(piece)
