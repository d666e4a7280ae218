"""Load on an endpoint: streams that go on and on, each text compared with an undisturbed one.

Knows the OpenAI endpoint only. Texts are sampled with a seed, so a token that is lost, doubled or
drawn anew changes the text; in float32 the same seed gives the same text every time.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

TIMEOUT = httpx.Timeout(300, connect=10)


@dataclass
class Answer:
    """One finished stream; times in seconds of `time.monotonic`."""

    stream: int
    began: float
    first: float | None = None
    ended: float = 0.0
    text: str = ""
    error: str = ""
    finish: str = ""
    gaps: list[tuple[float, float]] = field(default_factory=list)  # when each began, how long


@dataclass(frozen=True)
class Report:
    """What happened to the traffic between two moments."""

    answers: int
    errors: tuple[str, ...]
    wrong: int
    longest_pause_s: float  # in which a client saw nothing, be it for a first token or a next

    def assert_unharmed(self) -> None:
        """No request failed and no text differs from the undisturbed one."""
        assert not self.errors, f"{len(self.errors)} of {self.answers} failed: {self.errors[:3]}"
        assert self.wrong == 0, f"{self.wrong} of {self.answers} texts differ"
        assert self.answers > 0, "no request ended: nothing was seen"


def body(model: str, stream: int, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "prompt": f"stream {stream} says",
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": 1000 + stream,
        "ignore_eos": True,
        "stream": True,
    }


async def ask(
    client: httpx.AsyncClient, url: str, request: dict[str, object], stream: int
) -> Answer:
    """One streamed completion to its end, good or bad."""
    answer = Answer(stream, time.monotonic())
    last = answer.began
    try:
        async with client.stream("POST", f"{url}/completions", json=request) as response:
            if response.status_code != 200:
                answer.error = f"{response.status_code}: {(await response.aread())[:200]!r}"
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = str(event["error"])[:200]
                    break
                now = time.monotonic()
                if answer.first is None:
                    answer.first = now
                answer.gaps.append((last, now - last))
                last = now
                for choice in event["choices"]:
                    answer.text += choice["text"]
                    answer.finish = choice["finish_reason"] or answer.finish
    except (httpx.HTTPError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    if not answer.error and answer.finish != "length":
        answer.error = f"the stream ended with finish_reason {answer.finish!r}"
    answer.ended = time.monotonic()
    return answer


def ask_once(url: str, model: str, *, stream: int = 0, tokens: int = 20) -> Answer:
    """One answer, alone."""

    async def once() -> Answer:
        async with httpx.AsyncClient(timeout=TIMEOUT) as client:
            return await ask(client, url, body(model, stream, tokens), stream)

    return asyncio.run(once())


class Traffic:
    """``streams`` requests at a time, without an end, until `stop`.

    Every request has a connection of its own: so they spread over gateways as strangers' would.
    """

    def __init__(self, url: Callable[[], str], model: str, *, streams: int = 4, tokens: int = 400):
        self._url, self._model = url(), model  # looked up once: the API server may go
        self._streams, self._tokens = streams, tokens
        self.expected: list[str] = []
        self.done: list[Answer] = []
        self.live: dict[int, Answer] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Traffic:
        for stream in range(self._streams):
            answer = ask_once(self._url, self._model, stream=stream, tokens=self._tokens)
            assert not answer.error, f"before anything was disturbed: {answer.error}"
            self.expected.append(answer.text)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for stream in range(self._streams):
                group.create_task(self._keep(stream))

    async def _keep(self, stream: int) -> None:
        while not self._stopping.is_set():
            async with httpx.AsyncClient(timeout=TIMEOUT) as client:
                request = body(self._model, stream, self._tokens)
                answer = await ask(client, self._url, request, stream)
            self.done.append(answer)
            if answer.error:
                await asyncio.sleep(0.5)  # a client that comes back, not a hammer

    def stop(self) -> None:
        """Lets the streams that run end, and starts no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT.read)
            assert not self._thread.is_alive(), "a request hangs"

    def flow(self, patience_s: float = 90) -> None:
        """Returns once every stream has had an answer that began after now."""
        now, deadline = time.monotonic(), time.monotonic() + patience_s
        while time.monotonic() < deadline:
            fresh = {a.stream for a in list(self.done) if a.began > now and not a.error}
            if len(fresh) == self._streams:
                return
            time.sleep(0.1)
        raise AssertionError(f"traffic does not flow: {[a.error for a in self.done[-4:]]}")

    def since(self, moment: float) -> Report:
        """Of every request that was under way at ``moment`` or came later."""
        found = [a for a in list(self.done) if a.ended >= moment]
        pauses = [length for a in found for began, length in a.gaps[1:] if began + length >= moment]
        return Report(
            answers=len(found),
            errors=tuple(a.error for a in found if a.error),
            wrong=sum(not a.error and a.text != self.expected[a.stream] for a in found),
            longest_pause_s=round(max(pauses, default=0.0), 1),
        )
