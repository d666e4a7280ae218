"""Metadata that the API server sends, cut down to what is looked at while it is decoded.

It comes with ``managedFields``, which as Python objects take ten times what all the rest takes,
and a page of a LIST has hundreds of objects. Knows no kopf and no model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import msgspec

_TRIMMED = frozenset({"ADDED", "MODIFIED", "DELETED"})


class Chunks(Protocol):
    """A body that comes in parts."""

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]: ...


class _Metadata(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class _Thing(msgspec.Struct, rename="camel", omit_defaults=True):
    api_version: str = ""
    kind: str = ""
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Page(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    metadata: msgspec.Raw
    items: list[_Thing] | msgspec.UnsetType | None = msgspec.UNSET


_events = msgspec.json.Decoder(_Event)
_things = msgspec.json.Decoder(_Thing)
_pages = msgspec.json.Decoder(_Page)
_encode = msgspec.json.Encoder().encode


Told = Callable[[Any, bool], None]
"""Told of an object in an event, and whether it is gone."""


def event(line: bytes, told: Told) -> bytes:
    """A bookmark in place of a line of a watch whose object ``told`` was told; the line itself when
    it is none that we know (an error, say)."""
    try:
        found = _events.decode(line)
        if found.type not in _TRIMMED:
            return line
        thing = _things.decode(found.object)
    except msgspec.DecodeError:
        return line
    told(msgspec.to_builtins(thing), found.type == "DELETED")
    version = thing.metadata.resource_version
    mark = {"apiVersion": thing.api_version, "kind": thing.kind}
    return _encode(
        {"type": "BOOKMARK", "object": {**mark, "metadata": {"resourceVersion": version}}}
    )


def document(body: bytes) -> Any:
    """What a request answers, as `json.loads` would have it; a list's items are trimmed.

    A list of no metadata says ``items: null``, which becomes an empty list.
    """
    try:
        page = _pages.decode(body)
    except msgspec.DecodeError:
        return json.loads(body)
    if page.items is msgspec.UNSET:
        return json.loads(body)
    return {
        "apiVersion": page.api_version,
        "kind": page.kind,
        "metadata": msgspec.json.decode(page.metadata),
        "items": msgspec.to_builtins(page.items or []),
    }


class Lines:
    """A watch's body whose objects ``told`` is told, and bookmarks in their place; everything else
    is the body's own."""

    def __init__(self, body: Chunks, told: Told) -> None:
        self._body, self._told = body, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Whole lines, as they come."""
        rest = b""
        async for chunk in self._body.iter_chunked(n):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield event(line, self._told) + b"\n"
        if rest:
            yield event(rest, self._told)
