"""Chunks of a streamed answer written straight to their connection: most of a token's cost saved.

Knows HTTP/1.1's chunked coding and uvicorn's protocol class; no requests and no tokens. The way
through ASGI costs a token six coroutines and a walk through h11's states, which do not change
from chunk to chunk. A stream therefore begins and ends through ASGI, and between the two it
writes here. Where that cannot be (another server, HTTP/1.0) there is no `Chunks`, and where the
client reads slowly it refuses.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

EXTENSION: Final = "lamella.chunks"


class Chunks:
    """The body of one response that has begun and is sent in chunks."""

    __slots__ = ("_flow", "_transport")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow

    @property
    def open(self) -> bool:
        """Whether a chunk would go out now: the client is there and reads."""
        return not (self._flow.write_paused or self._transport.is_closing())

    def write(self, body: bytes) -> None:
        """Send one chunk; ``body`` is not empty (an empty chunk ends the response)."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which offers each request a `Chunks` under `EXTENSION`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._app = self.app
        self.app = self._offer

    async def _offer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["http_version"] == "1.1":
            chunks = Chunks(self.transport, self.flow)
            scope.setdefault("extensions", {})[EXTENSION] = chunks
        await self._app(scope, receive, send)


def chunks_of(scope: Scope) -> Chunks | None:
    """What the server offers for this request, if it does."""
    found = scope.get("extensions", {}).get(EXTENSION)
    return found if isinstance(found, Chunks) else None
