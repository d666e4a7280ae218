"""Frozen dataclasses to plain JSON values and back, strictly.

Knows no particular document: the caller gives the dataclass and the error to raise. Used by the
configuration, the profile and the control messages, so that all of them refuse unknown keys,
missing keys and wrong types alike, with the path of what is wrong.

Types understood: ``bool``, ``int``, ``float`` (whole numbers are taken, NaN and infinities are
not), ``str``, ``X | None``, ``tuple[X, ...]``, ``tuple[X, Y]``, and dataclasses of these.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from lamella_contract.errors import LamellaError, shown

T = TypeVar("T")
MakeError = Callable[[str], LamellaError]


def to_json(value: object) -> str:
    """Canonical JSON of a dataclass: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def to_plain(value: object) -> object:
    """Dicts, lists, strings, numbers, booleans and None for a dataclass of the types above."""
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, object] = {}
        for name in _names(type(value)):
            field = getattr(value, name)
            plain[name] = field if type(field) in _SAID else to_plain(field)  # most are
        return plain
    return value


def from_json(cls: type[T], text: str | bytes, error: MakeError) -> T:
    """A ``cls`` from JSON text; whatever is wrong is raised as ``error(message)``."""
    return from_plain(cls, parse_json(text, error), error)


def parse_json(text: str | bytes, error: MakeError) -> object:
    """JSON's plain values; refuses NaN and a key that stands twice."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as reason:
        raise error(f"not valid JSON: {reason}") from reason


def from_plain(cls: type[T], plain: object, error: MakeError, path: str = "") -> T:
    """A ``cls`` from parsed JSON; ``path`` is where ``plain`` stands in the whole document."""
    if not isinstance(plain, Mapping):
        raise _wrong(error, path, plain, f"an object with the fields of {cls.__name__}")
    fields = _fields(typing.cast(Hashable, cls))  # classes are, but mypy takes no T for one
    values: dict[str, Any] = {}
    for key, item in plain.items():
        if key not in fields:
            raise error(f"{_join(path, str(key))}: unknown field{did_you_mean(str(key), fields)}")
        kind = fields[key][0]
        if type(item) is kind and kind is not float:  # most are
            values[key] = item
        else:
            values[key] = _value(kind, item, error, _join(path, key))
    if len(values) < len(fields):
        missing = [name for name, (_, needed) in fields.items() if needed and name not in values]
        if missing:
            raise error(f"{_join(path, missing[0])}: missing field of {cls.__name__}")
    return cls(**values)


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """``; did you mean 'stages'?`` or, with nothing near, the list of what is known."""
    names = list(known)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(key.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lowered[near[0]]!r}?"
    return f"; known here: {', '.join(sorted(names))}" if names else ""


@functools.cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Each field's type, and whether a document must name it."""
    hints = typing.get_type_hints(cls)
    return {
        f.name: (
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    }


def _value(kind: Any, item: object, error: MakeError, path: str) -> object:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return None if item is None else _value(inner[0], item, error, path)
    if origin is tuple:
        return _tuple(typing.get_args(kind), item, error, path)
    if dataclasses.is_dataclass(kind):
        return from_plain(typing.cast(type, kind), item, error, path)
    if kind is float and type(item) in (int, float):
        return _float(typing.cast(float, item), error, path)
    # `type(...) is`, for a bool is an int to isinstance and `true` is no layer count
    if type(item) is not kind:
        raise _wrong(error, path, item, _SAID.get(kind, str(kind)))
    return item


def _tuple(args: tuple[Any, ...], item: object, error: MakeError, path: str) -> tuple[Any, ...]:
    if not isinstance(item, list | tuple):
        raise _wrong(error, path, item, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_value(args[0], part, error, f"{path}[{i}]") for i, part in enumerate(item))
    if len(item) != len(args):
        raise _wrong(error, path, item, f"a list of {len(args)}")
    return tuple(
        _value(arg, part, error, f"{path}[{i}]")
        for i, (arg, part) in enumerate(zip(args, item, strict=True))
    )


def _float(item: float, error: MakeError, path: str) -> float:
    try:
        number = float(item)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong(error, path, item, "a finite number")
    return number


def _wrong(error: MakeError, path: str, got: object, want: str) -> LamellaError:
    return error(f"{path or 'document'}: got {shown(got)}, want {want}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return found


_SAID = {int: "a whole number", str: "a string", bool: "true or false", float: "a number"}
