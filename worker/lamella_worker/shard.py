"""`Shard`: the slice of a model that one engine holds, in the seed document's words.

It knows no weights and no devices. The end is *inclusive* here because the seed's tests say so;
the rest of the project counts half-open, and the only place where one becomes the other is
`Shard.layers` and `Shard.of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella_worker.engine_errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Shard:
    """Layers `start_layer` to `end_layer`, both included, of the `n_layers` of a model.

    Raises InvalidInput (a ValueError) unless `0 <= start_layer <= end_layer < n_layers`.
    """

    model_id: str
    start_layer: int
    end_layer: int
    n_layers: int

    def __post_init__(self) -> None:
        if not isinstance(self.model_id, str) or not self.model_id:
            raise InvalidInput(f"model_id={self.model_id!r}, wanted a non-empty string")
        for name in ("start_layer", "end_layer", "n_layers"):
            value = getattr(self, name)
            if type(value) is not int:
                raise InvalidInput(f"{name}={value!r}, wanted an integer")
        if not 0 <= self.start_layer <= self.end_layer < self.n_layers:
            raise InvalidInput(
                f"start_layer={self.start_layer}, end_layer={self.end_layer}, "
                f"n_layers={self.n_layers}, wanted 0 <= start <= end < n"
            )

    @property
    def layers(self) -> range:
        """The layers as the rest of the project counts them: half-open."""
        return range(self.start_layer, self.end_layer + 1)

    @classmethod
    def of(cls, model_id: str, layers: range, n_layers: int) -> Shard:
        """The shard of a half-open range of layers; the inverse of `layers`."""
        return cls(model_id, layers.start, layers.stop - 1, n_layers)

    @property
    def is_first(self) -> bool:
        """It takes token ids."""
        return self.start_layer == 0

    @property
    def is_last(self) -> bool:
        """It gives logits."""
        return self.end_layer == self.n_layers - 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; `from_dict` reads it."""
        return {
            "model_id": self.model_id,
            "start_layer": self.start_layer,
            "end_layer": self.end_layer,
            "n_layers": self.n_layers,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shard:
        """Raises InvalidInput when a key is missing, unknown or wrong."""
        wanted = {"model_id", "start_layer", "end_layer", "n_layers"}
        if set(data) != wanted:
            raise InvalidInput(f"shard has keys {sorted(data)}, wanted {sorted(wanted)}")
        return cls(**{name: data[name] for name in wanted})
