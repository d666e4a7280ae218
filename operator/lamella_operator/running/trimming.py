"""What a watch receives, cut down to what is looked at, before anything else decodes it.

Metadata comes with ``managedFields``, which as Python objects take ten times what all the rest
takes: when a thousand models start, thousands of events wait. Knows no kopf and no model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import msgspec

_TRIMMED = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK"})
_KEPT = ("name", "namespace", "uid", "resourceVersion", "labels", "deletionTimestamp")


class Chunks(Protocol):
    """A body that comes in parts."""

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]: ...


class _Metadata(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Thing(msgspec.Struct, rename="camel", omit_defaults=True):
    api_version: str = ""
    kind: str = ""
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


_events = msgspec.json.Decoder(_Event)
_things = msgspec.json.Decoder(_Thing)
_encode = msgspec.json.Encoder().encode


def event(line: bytes) -> bytes:
    """One line of a watch; as it is when it is none that we know (an error, say)."""
    try:
        found = _events.decode(line)
        if found.type not in _TRIMMED:
            return line
        thing = _things.decode(found.object)
    except msgspec.DecodeError:
        return line
    return _encode({"type": found.type, "object": thing})


def item(document: object) -> object:
    """One object of a list."""
    meta = document.get("metadata") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(meta, Mapping):
        return document
    return {**document, "metadata": {key: meta[key] for key in _KEPT if key in meta}}


class Lines:
    """A watch's body whose lines are trimmed; everything else is the body's own."""

    def __init__(self, body: Chunks) -> None:
        self._body = body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Whole lines, as they come."""
        rest = b""
        async for chunk in self._body.iter_chunked(n):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield event(line) + b"\n"
        if rest:
            yield event(rest)
