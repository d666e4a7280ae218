"""Fixes rotary frequencies that would otherwise follow the longest row of a forward pass.

Knows the rotary modules of transformers only by the attributes of its `dynamic_rope_update`.
Long-rope and dynamic NTK choose their frequencies from the largest position they are given, so a
row's result would depend on its neighbours, and cached keys would be of another frequency than
later queries. Served models take those of the served maximum, for every row, always.
"""

from typing import Any

import torch


def freeze_rope(model: Any, max_model_len: int) -> int:
    """Take the frequencies of a sequence of `max_model_len` for good; how many modules changed."""
    changed = 0
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            if _follows_length(kinds):
                _run(module, max_model_len, None)
                module.rope_type = "default"
                changed += 1
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if _follows_length(kind):
                    _run(module, max_model_len, layer_type)
                    kinds[layer_type] = "default"
                    changed += 1
    return changed


def _follows_length(kind: Any) -> bool:
    return isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")


def _run(module: Any, max_model_len: int, layer_type: str | None) -> None:
    """Let the module see the last served position once: it sets its own frequencies."""
    device = next(module.buffers()).device
    positions = torch.tensor([[max_model_len - 1]], device=device)
    x = torch.zeros(1, 1, 1, device=device)
    if layer_type is None:
        module(x, positions)
    else:
        module(x, positions, layer_type)
