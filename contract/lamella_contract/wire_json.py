"""JSON bodies, for frames so rare that reading them in a capture is worth more than their bytes.

Knows no message: `forms` refuses unknown and missing keys and wrong types by the dataclass.
"""

from __future__ import annotations

from typing import TypeVar

from lamella_contract import forms
from lamella_contract.errors import WireError
from lamella_contract.wire_base import Reader

MAX_JSON = 1 << 20  # bytes; no rare message comes near

T = TypeVar("T")


def write_json(message: object) -> bytes:
    """Canonical JSON of a message's dataclass."""
    try:
        return forms.to_json(message).encode()
    except ValueError as reason:
        raise WireError(f"{type(message).__name__} cannot be packed: {reason}") from reason


def read_json(cls: type[T], reader: Reader) -> T:
    """The rest of a frame as a ``cls``; raises `WireError`."""
    raw = reader.rest()
    if len(raw) > MAX_JSON:
        raise WireError(f"{cls.__name__}: got {len(raw)} bytes, want at most {MAX_JSON}")
    return forms.from_json(cls, raw, WireError)
