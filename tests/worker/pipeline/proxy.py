"""A twin of a bad network: TCP links through a thread of this process, hurt as a test says.

Knows bytes and connections, nothing of ZeroMQ. "forth" is what the dialling side sends, "back" what
it is sent. Loaded by conftest.py as ``pipeline_proxy``, for helpers beside tests have no import
path.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

Way = Literal["forth", "back"]
WAYS: tuple[Way, Way] = ("forth", "back")
WAIT_S = 10.0
RECORDED = 1 << 20
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
LOCALHOST = "127.0.0.1"


@dataclass(eq=False)
class Connection:
    """One connection through a link."""

    near: asyncio.StreamWriter  # to whoever dialled
    far: asyncio.StreamWriter
    passes: dict[Way, asyncio.Event] = field(
        default_factory=lambda: {way: asyncio.Event() for way in WAYS}
    )
    sent: bytearray = field(default_factory=bytearray)  # forth, from the first byte on

    def reset(self) -> None:
        for writer in (self.near, self.far):
            end = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Link:
    """One address that leads to another; every method is for the test's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Callable[[], int]) -> None:
        self._loop = loop
        self._target = target
        self._open: dict[Way, bool] = dict.fromkeys(WAYS, True)
        self._corrupt: dict[Way, int | None] = dict.fromkeys(WAYS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.connections: list[Connection] = []
        self.delay_s = 0.0
        self.corrupted = 0
        self.made = 0
        self.port = 0

    # -- for tests -----------------------------------------------------------------------------

    def hold(self, *ways: Way) -> None:
        """From now on nothing passes; TCP keeps it, and so does the proxy."""
        self._do(lambda: self._set_open(ways or WAYS, now=True, is_open=False))

    def hold_present(self) -> None:
        """Nothing passes on the connections that stand; new ones are healthy."""

        def job() -> None:
            for connection in self.connections:
                for way in WAYS:
                    connection.passes[way].clear()

        self._do(job)

    def heal(self) -> None:
        """Everything passes again, what was held first."""
        self._do(lambda: self._set_open(WAYS, now=True, is_open=True))

    def reset(self) -> None:
        """Every connection that stands ends with a reset on both sides."""
        self._do(lambda: [connection.reset() for connection in list(self.connections)])

    def corrupt(self, way: Way, at: int) -> None:
        """Flip bits of byte `at` (negative: from the end) of the next piece that passes."""
        self._corrupt[way] = at

    def replay(self) -> None:
        """Dial the target once more and send what the last connection has sent, byte by byte."""
        sent = bytes(self.connections[-1].sent)
        assert sent

        async def job() -> None:
            _, writer = await asyncio.open_connection(LOCALHOST, self._target())
            self._writers.append(writer)
            writer.write(sent)
            await writer.drain()

        asyncio.run_coroutine_threadsafe(job(), self._loop).result(WAIT_S)

    # -- the loop's thread ---------------------------------------------------------------------

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOCALHOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def end(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        self.connections.clear()
        await asyncio.sleep(0)  # transports are closed by callbacks

    def _do(self, job: Callable[[], object]) -> None:
        async def run() -> None:
            job()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def _set_open(self, ways: tuple[Way, ...], *, now: bool, is_open: bool) -> None:
        for way in ways:
            self._open[way] = is_open
            for connection in self.connections if now else ():
                (connection.passes[way].set if is_open else connection.passes[way].clear)()

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection(LOCALHOST, self._target())
        except OSError:
            near.transport.abort()
            return
        self.made += 1
        self._writers += (near, far)
        connection = Connection(near, far)
        for way in WAYS:
            if self._open[way]:
                connection.passes[way].set()
        self.connections.append(connection)
        self._spawn(self._pump(connection, "forth", reader, far))
        self._spawn(self._pump(connection, "back", far_reader, near))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        connection: Connection,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            while piece := await reader.read(1 << 16):
                if way == "forth" and len(connection.sent) < RECORDED:
                    connection.sent += piece
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await connection.passes[way].wait()
                writer.write(self._hurt(piece, way))
                await writer.drain()
            await connection.passes[way].wait()
            writer.close()
        except OSError:
            connection.reset()  # one end was reset: the other must not believe that it lives
        if way == "forth" and connection in self.connections:
            self.connections.remove(connection)

    def _hurt(self, piece: bytes, way: Way) -> bytes:
        at, self._corrupt[way] = self._corrupt[way], None
        if at is None:
            return piece
        self.corrupted += 1
        hurt = bytearray(piece)
        hurt[at] ^= 0x50
        return bytes(hurt)


class Proxy(threading.Thread):
    """All links of one pipeline; `close` ends it."""

    def __init__(self) -> None:
        super().__init__(name="proxy", daemon=True)
        self._loop = asyncio.new_event_loop()
        self.links: list[Link] = []
        self.start()

    def run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def link(self, target: Callable[[], int]) -> Link:
        """A new address for the port that `target` says when somebody dials."""
        link = Link(self._loop, target)
        asyncio.run_coroutine_threadsafe(link.begin(), self._loop).result(WAIT_S)
        self.links.append(link)
        return link

    def close(self) -> None:
        for link in self.links:
            asyncio.run_coroutine_threadsafe(link.end(), self._loop).result(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(WAIT_S)
