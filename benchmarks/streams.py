"""Many streamed completions at once from one thread, at a few microseconds a token.

The client shares the cores with what it measures, so it parses nothing that it need not: one
selector, raw sockets, kept connections, and pieces counted by their prefix. Prompts are token ids
drawn anew for each request.

The client of `lamella bench` (bench_client.py) is for any endpoint: it has TLS, a connection for
each request and only pieces with text. One stream costs it 5 us a token more, sixteen nothing.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import time
from dataclasses import dataclass, field

PIECE, END = b"data: {", b"data: [DONE]"
PATIENCE_S = 120.0


@dataclass(slots=True)
class Answer:
    """One request: when it was asked, when each piece came (perf_counter seconds), its tokens."""

    asked_s: float
    pieces_s: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def ttft_s(self) -> float:
        return self.pieces_s[0] - self.asked_s

    @property
    def tpot_s(self) -> float:
        """Seconds per token after the first."""
        return (self.pieces_s[-1] - self.pieces_s[0]) / (self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.pieces_s, self.pieces_s[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for: tokens in and out, the first ids of its prompt, sampling fields."""

    prompt: int
    tokens: int
    seed: int = 0
    fields: tuple[tuple[str, object], ...] = (("temperature", 0),)


class Client:
    """One connection; at most one request on it at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer: Answer | None = None
        self._tail = b""

    def ask(self, ask: Ask) -> None:
        """Send one request."""
        choose = random.Random(ask.seed)
        prompt = [choose.randrange(300, 30000) for _ in range(ask.prompt)]
        told = {
            "model": "bench", "prompt": prompt, "max_tokens": ask.tokens, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}, **dict(ask.fields),
        }  # fmt: skip
        body = json.dumps(told).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._tail = b""
        self.answer = Answer(time.perf_counter())
        self.socket.sendall(head.encode() + body)

    def read(self) -> bool:
        """Take in what has come; whether the answer is complete."""
        data = self.socket.recv(1 << 18)
        answer = self.answer
        if not data or answer is None:
            raise SystemExit(f"the server hung up: {self._tail[-300:]!r}")
        now_s = time.perf_counter()
        joined = self._tail + data
        new = joined.count(PIECE) - self._tail.count(PIECE)
        answer.pieces_s += [now_s] * new
        if END in joined and joined.endswith(b"0\r\n\r\n"):
            at = joined.rfind(b'"usage":{')
            usage, _ = json.JSONDecoder().raw_decode(joined[at + 8 :].decode())
            answer.tokens = int(usage["completion_tokens"])
            del answer.pieces_s[-2:]  # why it ended, and the usage
            return True
        if joined.startswith(b"HTTP/1.1 ") and not joined.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server refused: {joined[:500]!r}")
        self._tail = joined[-1024:] if new else joined
        return False


def run(port: int, asks: list[Ask], concurrency: int) -> list[Answer]:
    """`concurrency` clients share `asks`, without a pause; the answers in the order they ended."""
    answers: list[Answer] = []
    waiting = list(reversed(asks))
    with selectors.DefaultSelector() as selector:
        for _ in range(min(concurrency, len(asks))):
            client = Client(port)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask(waiting.pop())
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            if not ready:
                raise SystemExit(f"no piece came for {PATIENCE_S:g} s")
            for key, _ in ready:
                client = key.data
                if not client.read():
                    continue
                assert client.answer is not None
                answers.append(client.answer)
                if waiting:
                    client.ask(waiting.pop())
                else:
                    selector.unregister(client.socket)
                    client.socket.close()
    return answers
