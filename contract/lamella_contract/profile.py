"""What the planner must know of a model: bytes per layer, caches per token, where it may be cut.

Knows nothing of tensors or files: the inspector (`lamella_checkpoint`) writes a profile from a
model's config and file headers, the planner and the status read it. All byte counts are of the
dtype and quantization that will be served, not of the files.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella_contract import forms, names
from lamella_contract.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One decoder layer.

    ``kv_bytes_per_token`` is paged and grows with the context; ``state_bytes_per_sequence`` is
    held once per sequence whatever its length (recurrent and convolution state). ``kind`` is the
    layer's type as Hugging Face names it ("full_attention", "sliding_attention", ...).
    """

    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_sequence: int
    kind: str

    def __post_init__(self) -> None:
        for field in ("weight_bytes", "kv_bytes_per_token", "state_bytes_per_sequence"):
            _at_least(field, getattr(self, field), 0)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One model at one commit.

    ``embedding_bytes`` weigh on the first stage, ``final_bytes`` (last norm) and ``head_bytes`` on
    the last. With ``tied`` the last stage needs its own copy of the embedding as head, so
    ``head_bytes`` counts that copy; the planner leaves it out when one stage holds both ends.
    ``boundary_bytes_per_token`` cross each cut per token. A stage may start at each layer index
    in ``allowed_cuts`` (0 need not be listed); ``cut_reason`` says why others are forbidden.
    ``eos_token_ids`` end an answer. With ``quantization`` the head has weights of its own on every
    stage that has a head, so ``tied`` is false.
    """

    uri: str
    commit: str
    family: str
    dtype: str
    hidden_size: int
    vocab_size: int
    max_model_len: int
    layers: tuple[LayerProfile, ...]
    embedding_bytes: int
    head_bytes: int
    final_bytes: int
    tied: bool
    boundary_bytes_per_token: int
    allowed_cuts: tuple[int, ...]
    cut_reason: str = ""
    eos_token_ids: tuple[int, ...] = ()
    quantization: str = "none"

    def __post_init__(self) -> None:
        if self.dtype not in names.DTYPES:
            raise InvalidConfig(f"dtype: got {self.dtype!r}, want one of {', '.join(names.DTYPES)}")
        if self.quantization not in names.QUANTIZATIONS:
            known = ", ".join(names.QUANTIZATIONS)
            raise InvalidConfig(f"quantization: got {self.quantization!r}, want one of {known}")
        for field in ("hidden_size", "vocab_size", "max_model_len"):
            _at_least(field, getattr(self, field), 1)
        for field in (
            "embedding_bytes",
            "head_bytes",
            "final_bytes",
            "boundary_bytes_per_token",
        ):
            _at_least(field, getattr(self, field), 0)
        if not self.layers:
            raise InvalidConfig("layers: got none, want at least one")
        for cut in self.allowed_cuts:
            if not 0 <= cut < len(self.layers):
                raise InvalidConfig(
                    f"allowed_cuts: got {cut}, want layer indexes below {len(self.layers)}"
                )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def weight_bytes(self) -> int:
        """All weights when one stage holds the whole model (a tied head counted once)."""
        head = 0 if self.tied else self.head_bytes
        layers = sum(layer.weight_bytes for layer in self.layers)
        return self.embedding_bytes + layers + self.final_bytes + head

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(layer.kv_bytes_per_token for layer in self.layers)

    def to_json(self) -> str:
        return forms.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelProfile:
        """Raises `InvalidConfig` for unknown, missing or wrong fields."""
        return forms.from_json(cls, text, InvalidConfig)


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidConfig(f"{field}: got {value}, want at least {least}")
