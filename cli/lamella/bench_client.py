"""One streamed request of `lamella bench`, on a bare connection.

The client often shares its cores with what it measures. So while an answer comes it only notes when
which bytes came; what they say is read when the clock has stopped. Knows HTTP/1.1 and server-sent
events; knows nothing of statistics.
"""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lamella import client
from lamella.errors import EndpointError

SILENCE_S = 600.0
"""An answer that says nothing for so long has failed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: seconds from its start to each piece of text, tokens in and out, and what went
    wrong."""

    piece_times_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go. `path` is what stands before /v1."""

    host: str
    port: int
    path: str
    tls: bool
    api_key: str = ""

    @classmethod
    def of(cls, url: str, api_key: str = "") -> "Address":
        """From a URL as `client.base_url` makes it. Raises EndpointError."""
        parts = urlsplit(url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise EndpointError(f"{url}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"{url}: got no address, want http://HOST:PORT")
        return cls(parts.hostname, port, parts.path, parts.scheme == "https", api_key)

    def head(self, path: str, length: int) -> bytes:
        """The head of a POST; the server closes the connection after its answer."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"POST {self.path}{path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Connection: close",
            "Accept: text/event-stream",
            "Content-Type: application/json",
            f"Content-Length: {length}",
        ]
        lines += [f"{name}: {value}" for name, value in client.headers(self.api_key).items()]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(slots=True)
class Tape:
    """What came over one connection: (seconds since the request began, bytes), in order."""

    marks: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""


class _Recorder(asyncio.Protocol):
    """Writes the tape. `done` is set when the connection is closed."""

    def __init__(self, request: bytes, tape: Tape) -> None:
        self._request, self._tape = request, tape
        self._start_s = time.perf_counter()
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tape.marks.append((time.perf_counter() - self._start_s, data))

    def connection_lost(self, reason: Exception | None) -> None:
        if reason is not None:
            self._tape.error = f"{type(reason).__name__}: {reason}"
        if not self.done.done():
            self.done.set_result(None)


async def record(address: Address, path: str, body: dict[str, Any], tape: Tape) -> None:
    """Posts the body and records the answer; what fails stands on the tape."""
    payload = json.dumps(body).encode()
    request = address.head(path, len(payload)) + payload
    transport: asyncio.Transport | None = None
    try:
        transport, recorder = await asyncio.get_running_loop().create_connection(
            lambda: _Recorder(request, tape),
            address.host,
            address.port,
            ssl=ssl.create_default_context() if address.tls else None,
        )
        while not recorder.done.done():
            heard = len(tape.marks)
            await asyncio.wait([recorder.done], timeout=SILENCE_S)
            if not recorder.done.done() and len(tape.marks) == heard:
                tape.error = f"nothing came for {SILENCE_S:g} s"
                break
    except OSError as reason:
        tape.error = f"{type(reason).__name__}: {reason}"
    finally:
        if transport is not None:
            transport.abort()


def read(tape: Tape) -> Sample:
    """What a tape says. A stream that ends before its end mark has failed."""
    try:
        return _read(tape)
    except EndpointError as error:
        return Sample(error=str(error))


def _read(tape: Tape) -> Sample:
    status, chunked, rest = _head(tape)
    if status != 200:
        whole = b"".join(data for _, data in _body(rest, chunked))
        raise EndpointError(client.error_text(status, whole.decode(errors="replace")))
    times: list[float] = []
    prompt_tokens = completion_tokens = 0
    ended, left = False, b""
    for at_s, data in _body(rest, chunked):
        *lines, left = (left + data).split(b"\n")
        for line in lines:
            ended = ended or line.startswith(b"data: [DONE]")
            piece = client.parse_line(line.decode(errors="replace"))
            if piece is None:
                continue
            if piece.text:
                times.append(at_s)
            ended = ended or bool(piece.finish)
            prompt_tokens = piece.prompt_tokens or prompt_tokens
            completion_tokens = piece.completion_tokens or completion_tokens
    if not ended:
        raise EndpointError(tape.error or "the stream ended early")
    if not times:
        raise EndpointError("the stream held no text")
    return Sample(tuple(times), prompt_tokens, completion_tokens or len(times))


def _head(tape: Tape) -> tuple[int, bool, list[tuple[float, bytes]]]:
    """Status, whether the body comes in chunks, and what came of the body."""
    head = b""
    for number, (at_s, data) in enumerate(tape.marks):
        head += data
        if b"\r\n\r\n" in head:
            head, _, body = head.partition(b"\r\n\r\n")
            words = head.split(None, 2)
            if len(words) < 2 or not words[1].isdigit():
                break
            chunked = b"transfer-encoding: chunked" in head.lower()
            return int(words[1]), chunked, [(at_s, body), *tape.marks[number + 1 :]]
    raise EndpointError(tape.error or "the connection was closed without an answer")


def _body(marks: list[tuple[float, bytes]], chunked: bool) -> list[tuple[float, bytes]]:
    """The marks without the framing of chunks."""
    if not chunked:
        return marks
    out: list[tuple[float, bytes]] = []
    held, need = b"", 0  # of this chunk, bytes still to come; 0: a size line is next
    for at_s, data in marks:
        held += data
        while held:
            if need:
                taken, held = held[:need], held[need:]
                need -= len(taken)
                out.append((at_s, taken))
                continue
            if held in (b"\r", b"\r\n"):
                break
            size, newline, rest = held.removeprefix(b"\r\n").partition(b"\r\n")
            if not newline:
                break
            try:
                need, held = int(size.split(b";")[0], 16), rest
            except ValueError as error:
                raise EndpointError(f"stream: got {size[:20]!r}, want a chunk's size") from error
            if not need:
                return out
    return out
