"""Takes the fields of a JSON object one by one, each checked, and refuses what is left.

Knows JSON values and OpenAI's error form, no particular request. A field that is null counts as
left out, as it does at OpenAI. Every refusal names the field, what came and what was wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lamella_contract.errors import shown
from lamella_contract.forms import did_you_mean

from .errors import ApiError, invalid


class Fields:
    """The fields of one JSON object; ``path`` is where it stands (``messages[2].``).

    Each method takes one field out and returns it, or the default when it is absent or null.
    """

    def __init__(self, document: object, path: str = "", what: str = "The request body") -> None:
        if not isinstance(document, dict):
            raise invalid(path.rstrip(".") or None, f"{what} must be a JSON object.")
        self._left = dict(document)
        self._known: list[str] = []
        self._path = path

    def any(self, name: str) -> object:
        self._known.append(name)
        return self._left.pop(name, None)

    def required(self, name: str) -> object:
        value = self.any(name)
        if value is None:
            raise invalid(self._path + name, f"Missing required parameter: '{self._path}{name}'.")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.any(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, value, "a string")
        return value

    def number(self, name: str, default: float, low: float, high: float = math.inf) -> float:
        """A number in [low, high]."""
        value = self.any(name)
        if value is None:
            return default
        # bool is an int to Python, and a temperature of `true` is a client's mistake
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, "a number")
        if not low <= value <= high or not math.isfinite(value):
            raise self.wrong(name, value, _range(low, high, "a number"))
        return float(value)

    def integer(self, name: str, low: int | None = None, high: int | None = None) -> int | None:
        """A whole number in [low, high]."""
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, value, "a whole number")
        if (low is not None and value < low) or (high is not None and value > high):
            floor = -math.inf if low is None else low
            raise self.wrong(
                name, value, _range(floor, math.inf if high is None else high, "a whole number")
            )
        return value

    def off(self, name: str, *harmless: object, hint: str = "") -> None:
        """A field that is not supported: accepted at the values that change nothing."""
        value = self.any(name)
        if value is None or any(type(value) is type(ok) and value == ok for ok in harmless):
            return
        only = " or ".join(shown(ok) for ok in harmless) or "leaving it out"
        raise invalid(
            self._path + name,
            f"Unsupported parameter: '{self._path}{name}' is not supported by this server "
            f"(got {shown(value)}; accepted: {only}).{hint}",
            code="unsupported_parameter",
        )

    def wrong(self, name: str, got: object, want: str) -> ApiError:
        return invalid(
            self._path + name,
            f"Invalid value for '{self._path}{name}': got {shown(got)}, want {want}.",
        )

    def done(self) -> None:
        """Raises `ApiError` for a field that nobody took."""
        for name in self._left:
            raise invalid(
                self._path + name,
                f"Unknown parameter: '{self._path}{name}'{did_you_mean(name, self._known)}.",
                code="unknown_parameter",
            )


def items(value: object) -> list[object] | None:
    """``value`` as a list, or None when it is none."""
    return value if isinstance(value, list) else None


def whole_numbers(values: list[object]) -> tuple[int, ...] | None:
    """``values`` as ints, or None when one is not (true and false are not)."""
    found = tuple(value for value in values if type(value) is int)
    return found if len(found) == len(values) else None


def entries(value: object) -> Mapping[str, object] | None:
    """``value`` as an object, or None when it is none."""
    return value if isinstance(value, dict) else None


def _range(low: float, high: float, what: str) -> str:
    if high == math.inf:
        return f"{what} of at least {_shown(low)}"
    if low == -math.inf:
        return f"{what} of at most {_shown(high)}"
    return f"{what} from {_shown(low)} to {_shown(high)}"


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
