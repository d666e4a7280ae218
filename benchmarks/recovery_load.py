"""Streams that never stop asking, and what became of each answer. Knows HTTP and a deck of
requests; nothing of faults.

Half of the deck is greedy and half is drawn with a seed, so that each request has one right answer.
A greedy answer of a random model soon repeats itself, which hides a lost token; a drawn one does
not, and its whole text is compared.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PROMPTS = (4, 30, 90, 180, 300)
"""Lengths of the deck's prompts, tokens."""

ANSWER_TIMEOUT_S = 180.0
"""An answer that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Card:
    """One request of the deck."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int | None  # None: greedy

    def body(self) -> dict[str, Any]:
        """What is posted to /v1/completions."""
        drawn = {"temperature": 0} if self.seed is None else {"temperature": 1, "seed": self.seed}
        return {
            "model": "bench",
            "prompt": list(self.prompt),
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **drawn,
        }


@dataclass(slots=True)
class Answer:
    """What came back. `tokens` as the usage tells them; `error` "" for a whole answer."""

    card: int
    text: str = ""
    tokens: int = 0
    error: str = ""
    cut: bool = False  # the connection was lost, not the request refused
    began_s: float = 0.0
    ended_s: float = 0.0
    times_s: list[float] = field(default_factory=list)  # of each piece, monotonic


def make_deck(vocabulary: int, *, cards: int, seed: int, longest: int) -> list[Card]:
    """The same deck for the same seed."""
    draw = random.Random(seed)
    deck = []
    for number in range(cards):
        length = PROMPTS[number % len(PROMPTS)]
        prompt = tuple(draw.randrange(3, vocabulary) for _ in range(length))
        tokens = draw.randrange(longest // 2, longest)
        deck.append(Card(prompt, tokens, None if number % 2 else draw.randrange(1 << 31)))
    return deck


async def ask(port: int, card: Card, answer: Answer) -> None:
    """One streamed answer, written into `answer` as it comes."""
    body = json.dumps(card.body()).encode()
    answer.began_s = time.monotonic()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            answer.cut = not status
            answer.error = f"{status.decode().strip()} {(await reader.read(2000)).decode()[-300:]}"
            return
        await _read(reader, answer)
    except OSError as reason:
        answer.error, answer.cut = f"{type(reason).__name__}: {reason}", True
    finally:
        answer.ended_s = time.monotonic()
        if writer is not None:
            writer.close()


async def _read(reader: asyncio.StreamReader, answer: Answer) -> None:
    pieces: list[str] = []
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            answer.text = "".join(pieces)
            return
        document = json.loads(line[6:])
        if "error" in document:
            answer.error = str(document["error"]["message"])
            return
        if document.get("usage"):
            answer.tokens = int(document["usage"]["completion_tokens"])
        for choice in document.get("choices", ()):
            if choice["text"]:
                answer.times_s.append(time.monotonic())
                pieces.append(choice["text"])
    answer.error, answer.cut = "the stream ended early", True


class Load(threading.Thread):
    """`streams` requests at once until `stop`; every card in turn. `on_answer` is called in this
    thread."""

    def __init__(
        self,
        port: int,
        deck: list[Card],
        *,
        streams: int,
        on_answer: Callable[[Answer], None],
        rounds: int | None = None,
    ) -> None:
        """`rounds`: the deck is asked so often and no more; None: until `stop`."""
        super().__init__(name="load", daemon=True)
        self._port = port
        self._deck = deck
        self._streams = streams
        self._on_answer = on_answer
        self._left = None if rounds is None else rounds * len(deck)
        self._next = 0
        self._stopping = threading.Event()
        self._free = threading.Event()
        self._free.set()
        self.live: dict[int, Answer] = {}  # by stream
        self.pieces_s: list[float] = []  # arrival of every piece of every stream, monotonic

    def run(self) -> None:
        asyncio.run(self._all())

    def stop(self) -> None:
        """No new requests; returns when the last answer is there, or has been waited for too
        long."""
        self.abandon()
        self.join(ANSWER_TIMEOUT_S + 10.0)

    def abandon(self) -> None:
        """No new requests; nobody waits for those that live."""
        self._stopping.set()
        self._free.set()

    def hold(self) -> None:
        """Begin no request until `go_on`."""
        self._free.clear()

    def go_on(self) -> None:
        self._free.set()

    def lasts_s(self) -> list[float]:
        """When each live stream had its last piece, or began."""
        live = list(self.live.values())
        return [answer.times_s[-1] if answer.times_s else answer.began_s for answer in live]

    def size_of(self, answer: Answer) -> int:
        """Tokens of a live answer and its prompt, about: a piece may be more than one."""
        return len(self._deck[answer.card].prompt) + len(answer.times_s)

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(stream) for stream in range(self._streams)))

    async def _one(self, stream: int) -> None:
        while not self._stopping.is_set() and self._left != 0:
            if not self._free.is_set():
                await asyncio.sleep(0.02)
                continue
            card, self._next = self._next % len(self._deck), self._next + 1
            if self._left is not None:
                self._left -= 1
            answer = self.live[stream] = Answer(card)
            answer.times_s = Marks(self.pieces_s)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await ask(self._port, self._deck[card], answer)
            except TimeoutError:
                answer.error = f"no whole answer in {ANSWER_TIMEOUT_S:g} s: it hangs"
                answer.ended_s = time.monotonic()
            del self.live[stream]
            self._on_answer(answer)
            if answer.error:
                await asyncio.sleep(0.1)  # nobody listens: do not hammer


class Marks(list[float]):
    """Times of one stream that are also added to those of all."""

    def __init__(self, everyone: list[float]) -> None:
        super().__init__()
        self._everyone = everyone

    def append(self, value: float) -> None:
        super().append(value)
        self._everyone.append(value)
