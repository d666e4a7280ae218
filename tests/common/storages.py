"""Counts the memory of live tensors, for tests of what something really allocates."""

from __future__ import annotations

import gc
from typing import Any

import torch


def live_bytes() -> int:
    """Bytes of every CPU tensor's memory that somebody in this process holds, each counted once."""
    gc.collect()
    found: dict[int, int] = {}
    things: list[Any] = gc.get_objects()
    for thing in things:
        if type(thing) is torch.Tensor and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            if storage.device.type == "cpu":
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
