"""`ShardInferenceState`: what an engine knows of a request between two calls.

It knows no model. Only three small numbers cross a hop (`to_dict`): never a mask and never all
positions, which grow with the context and which every stage can derive from the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lamella_worker.engine_errors import InvalidInput

_CARRIED = ("token_count", "position", "step")


@dataclass(slots=True)
class ShardInferenceState:
    """Where a request stands.

    `tokens` [batch, n] int64, `input_pos` [n] int64 and `mask` stay on the stage and are never
    sent; `position` is the number of tokens that the stage has processed, `token_count` the number
    that the request has had so far, `step` how many calls were made for it.
    """

    tokens: torch.Tensor | None = None
    input_pos: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    token_count: int = 0
    position: int = 0
    step: int = 0

    def to_dict(self) -> dict[str, int]:
        """What crosses a hop."""
        return {name: getattr(self, name) for name in _CARRIED}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> ShardInferenceState:
        """Missing, null and unknown keys are fine (a peer may be older or newer).

        Raises InvalidInput for a carried number that is not an integer of 0 or more.
        """
        state = cls()
        for name in _CARRIED:
            value = None if data is None else data.get(name)
            if value is None:
                continue
            if type(value) is not int or value < 0:
                raise InvalidInput(f"{name}={value!r}, wanted an integer of 0 or more")
            setattr(state, name, value)
        return state
