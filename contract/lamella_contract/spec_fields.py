"""Reading a manifest's objects: each key is taken once, and what nobody took is refused.

Knows no manifest: `spec` says which keys there are. Everything wrong is an `InvalidSpec` whose
path is written as the user would (``spec.pipeline.stageSpecs[1].memory``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lamella_contract.errors import InvalidSpec
from lamella_contract.forms import did_you_mean
from lamella_contract.units import quantity

MOST = (1 << 31) - 1  # what a field of the resource can hold


class Fields:
    """One object of a manifest, at ``path``; a key that is null counts as absent."""

    def __init__(self, value: object, path: str, known: tuple[str, ...]) -> None:
        if not isinstance(value, Mapping):
            raise InvalidSpec(path or "manifest", value, "an object")
        self.path = path
        self._values = value
        for key in value:
            if key not in known:
                where = self.at(str(key))
                near = did_you_mean(str(key), known)
                raise InvalidSpec(
                    where, value[key], f"a known key{near}", f"{where}: unknown key{near}"
                )

    def at(self, key: str) -> str:
        """Path of ``key``."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def child(self, key: str, known: tuple[str, ...]) -> Fields | None:
        """The object under ``key``, None if absent."""
        value = self.get(key)
        return None if value is None else Fields(value, self.at(key), known)

    def text(
        self, key: str, default: str | None = None, *, want: str = "a string", most: int = 1024
    ) -> str:
        """A string of 1 to ``most`` characters; required when there is no default."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value:
            raise InvalidSpec(self.at(key), value, want)
        if len(value) > most:
            raise InvalidSpec(self.at(key), value, f"at most {most} characters")
        return value

    def count(self, key: str, least: int, most: int = MOST) -> int | None:
        """A whole number in ``[least, most]``, None if absent."""
        value = self.get(key)
        return None if value is None else whole(value, self.at(key), least, most)

    def bytes(self, key: str) -> int | None:
        """A positive quantity of bytes, None if absent."""
        value = self.get(key)
        if value is None:
            return None
        size = quantity(value, self.at(key))
        if size == 0:
            raise InvalidSpec(self.at(key), value, "more than 0 bytes")
        return size

    def mapping(self, key: str, most: int = MOST) -> Mapping[str, Any]:
        """An object of at most ``most`` keys, kept as it is; empty if absent."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise InvalidSpec(self.at(key), value, "an object")
        if len(value) > most:
            raise InvalidSpec(self.at(key), f"{len(value)} keys", f"at most {most}")
        return dict(value)

    def strings(self, key: str, most: int = MOST) -> Mapping[str, str]:
        """An object of strings; empty if absent. A key in it that is null counts as absent too."""
        value = {name: text for name, text in self.mapping(key, most).items() if text is not None}
        for name, item in value.items():
            if not isinstance(item, str):
                raise InvalidSpec(f"{self.at(key)}[{name!r}]", item, "a string")
        return value

    def flag(self, key: str) -> bool:
        """true or false; false if absent."""
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise InvalidSpec(self.at(key), value, "true or false")
        return bool(value)

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of ``known``; the first if absent."""
        value = self.get(key)
        if value is None:
            return known[0]
        if value not in known:
            raise InvalidSpec(self.at(key), value, f"one of {', '.join(known)}")
        return str(value)

    def items(self, key: str, most: int = MOST) -> list[Any] | None:
        """A list of 1 to ``most`` items, None if absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value:
            raise InvalidSpec(self.at(key), value, "a list of at least one item")
        return self._short(key, value, most)

    def _short(self, key: str, value: Sequence[Any], most: int) -> list[Any]:
        if len(value) > most:
            raise InvalidSpec(self.at(key), f"{len(value)} items", f"at most {most}")
        return list(value)

    def mappings(self, key: str, most: int = MOST) -> tuple[Mapping[str, Any], ...]:
        """A list of at most ``most`` objects kept as they are; empty if absent."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise InvalidSpec(self.at(key), value, "a list of objects")
        self._short(key, value, most)
        for index, item in enumerate(value):
            if not isinstance(item, Mapping):
                raise InvalidSpec(f"{self.at(key)}[{index}]", item, "an object")
        return tuple(dict(item) for item in value)


def whole(value: object, path: str, least: int, most: int = MOST) -> int:
    """A whole number in ``[least, most]``; true and false are none."""
    if type(value) is not int or not least <= value <= most:
        bound = f"of at least {least}" if most == MOST else f"from {least} to {most}"
        raise InvalidSpec(path, value, f"a whole number {bound}")
    return value
