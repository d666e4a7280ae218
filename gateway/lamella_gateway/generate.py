"""Answers a generation over HTTP: as a stream of events or as one document.

Knows ASGI, a ticket and an answer; no routes and no replicas. Both are ASGI applications. The
first bytes go out with the first news, so that a failure before it still has a status code; a
failure after it is an event. One task watches for the client's hang-up; none is made per token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from .answer import Answer
from .chunks import Chunks, chunks_of
from .dispatch import Dispatcher
from .errors import ApiError
from .metrics import Metrics
from .openai_responses import KEEP_ALIVE, ResponseWriter, error_event
from .ticket import Ticket

_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # proxies that collect answers would undo the streaming
)


@dataclass(slots=True)
class Generation:
    """One request on its way to its answer. ``arrived_s`` is a time of the event loop."""

    dispatcher: Dispatcher
    ticket: Ticket
    answer: Answer
    writer: ResponseWriter
    metrics: Metrics
    arrived_s: float
    request_id: str
    first_s: float = 0.0

    async def step(self) -> str | None:
        """Text of the next news; None when there is nothing but time gone by.

        Raises `ApiError` when the request failed. A stop string ends the work at the replica.
        """
        ids, finish = await self.ticket.news()
        return self.feed(ids, finish) if ids or finish else None

    def feed(self, ids: Sequence[int], finish: str) -> str:
        """Text of these news."""
        if not self.first_s and ids:
            self.first_s = asyncio.get_running_loop().time()
            self.metrics.first_token_s.observe(self.first_s - self.arrived_s)
        self.answer.cached_tokens = self.ticket.entry.cached_tokens
        text = self.answer.feed(ids, finish)
        if self.answer.finish_reason is not None:
            self.dispatcher.close(self.ticket)
        return text

    @property
    def over(self) -> bool:
        return self.ticket.gone or self.answer.finish_reason is not None

    def headers(self, *others: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        return [*others, (b"x-request-id", self.request_id.encode("ascii"))]

    def end(self) -> None:
        """Whatever happened, nothing of the request is left behind."""
        self.dispatcher.close(self.ticket)
        tokens = self.answer.usage.completion_tokens
        self.metrics.generated_tokens.inc(tokens)
        if tokens > 1:
            spent_s = asyncio.get_running_loop().time() - self.first_s
            self.metrics.per_token_s.observe(spent_s / (tokens - 1))


class StreamedAnswer:
    """Server-sent events, one write per batch of news.

    The first and the last are written by the request's task. Those between are written as they
    come, by whoever brings them, where the server has `Chunks` and the client reads them.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._started = False
        self._chunks: Chunks | None = None
        self._left: str | None = None  # the last text, which the task has still to write
        self._bug: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        watcher = _watch(receive, lambda: generation.dispatcher.hung_up(generation.ticket))
        self._chunks = chunks_of(scope)
        try:
            await self._stream(send)
        except ApiError as error:
            if not self._started:
                raise
            await _write(send, error_event(error), more=False)
        finally:
            watcher.cancel()
            generation.ticket.show = None
            if self._started:
                generation.metrics.streams.dec()
            generation.end()

    async def _stream(self, send: Send) -> None:
        generation, writer = self._generation, self._generation.writer
        while not generation.over:
            # nobody writes between two writes of this task
            generation.ticket.show = self._show if self._started and self._chunks else None
            text = await generation.step()
            generation.ticket.show = None
            if self._bug is not None:
                raise self._bug
            if generation.ticket.gone:
                return
            if self._left is not None:
                text = self._left + (text or "")
            chunk = KEEP_ALIVE if text is None else writer.text(text) if text else b""
            if not self._started:
                self._started = True
                generation.metrics.streams.inc()
                headers = generation.headers(*_STREAM_HEADERS)
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                chunk = writer.begin() + chunk
            if generation.over:
                answer = generation.answer
                chunk += writer.end(answer.finish_reason, answer.usage)
                await _write(send, chunk, more=False)
            elif chunk:
                await _write(send, chunk, more=True)

    def _show(self) -> bool:
        """Write what the ticket has; False when the task must be woken."""
        generation, chunks = self._generation, self._chunks
        ticket = generation.ticket
        if chunks is None or not chunks.open:
            return False
        ids, ticket.ids = ticket.ids, []
        try:
            text = generation.feed(ids, "")
        except Exception as bug:  # it is this request's, and not of whoever brings news
            self._bug = bug
        else:
            if not generation.over:
                if text:
                    chunks.write(generation.writer.text(text))
                return True
            self._left = text
        ticket.show = None
        return False


class WholeAnswer:
    """One JSON document when the answer is complete."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        watcher = _watch(receive, lambda: generation.dispatcher.hung_up(generation.ticket))
        parts = []
        try:
            while not generation.over:
                parts.append(await generation.step() or "")
        finally:
            watcher.cancel()
            generation.end()
        if generation.ticket.gone:
            return
        answer = generation.answer
        body = generation.writer.whole("".join(parts), answer.finish_reason, answer.usage)
        headers = generation.headers(
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
        )
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _write(send, body, more=False)


async def _write(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _watch(receive: Receive, hung_up: Callable[[], None]) -> asyncio.Task[None]:
    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        hung_up()

    return asyncio.create_task(wait())
