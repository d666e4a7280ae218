"""Bytes as people write them: Kubernetes quantities in, binary units out.

Knows no field; the caller says where a quantity stands.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

from lamella_contract.errors import InvalidSpec

_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60}
_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_FACTORS = {**_BINARY, **_DECIMAL}
_QUANTITY = re.compile(
    r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})([A-Za-z]*|[eE]\+?[0-9]{1,2})"
)
# what Kubernetes takes for CPU, memory or GPUs, but for signs
_AMOUNT = re.compile(
    r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?"
)
_WANT = "bytes such as 24Gi, 500M or 1073741824"
MAX_QUANTITY = (1 << 63) - 1  # what Kubernetes can hold
MAX_LENGTH = 32  # characters; the resource's schema has the same bound


def quantity(value: object, path: str = "quantity") -> int:
    """Bytes that a Kubernetes quantity means, rounded up: ``"24Gi"``, ``"1.5G"``, ``"2e9"``, 42.

    Raises `InvalidSpec` at ``path`` for anything else, negative numbers and milli-units included.
    """
    if type(value) is int and 0 <= value <= MAX_QUANTITY:
        return value
    if not isinstance(value, str):
        raise InvalidSpec(path, value, _WANT)
    match = _QUANTITY.fullmatch(value) if len(value) <= MAX_LENGTH else None
    if match is None:
        raise InvalidSpec(path, value, _WANT)
    number, suffix = match.groups()
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        if not suffix[1:].lstrip("+").isdigit():
            raise InvalidSpec(path, value, _WANT)
        factor: int = 10 ** int(suffix[1:])
    elif suffix in _FACTORS:
        factor = _FACTORS[suffix]
    else:
        raise InvalidSpec(path, value, f"{_WANT}{_nearest(number, suffix)}")
    total = math.ceil(Fraction(number.rstrip(".")) * factor)
    if total > MAX_QUANTITY:
        raise InvalidSpec(path, value, f"at most {MAX_QUANTITY} bytes")
    return total


def is_amount(value: object) -> bool:
    """Whether ``value`` can be an amount of a container's resource, such as ``500m`` or 2."""
    if type(value) is int:
        return 0 <= value <= MAX_QUANTITY
    return (
        isinstance(value, str) and len(value) <= MAX_LENGTH and _AMOUNT.fullmatch(value) is not None
    )


def human(size: int) -> str:
    """``24.0 GiB`` and the like: the largest binary unit that leaves at least 1."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _nearest(number: str, suffix: str) -> str:
    """What a wrong suffix probably meant: ``24GB`` is 24G or 24Gi."""
    letter = suffix[:1].upper()
    if letter in ("K", "M", "G", "T") and suffix[1:].lower() in ("b", "ib", "i", ""):
        decimal = "k" if letter == "K" else letter
        return f"; did you mean {number}{decimal} or {number}{letter}i?"
    return ""
