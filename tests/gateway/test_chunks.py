"""Tokens of a stream are written straight to their connection: what comes out is the same."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from gateway_lab import Lab, Served

from lamella_gateway.chunks import Chunks, chunks_of

HELLO = "hello world, how are you? the quick brown fox jumps over the lazy dog"
ASK = {"model": "toy", "prompt": "the fox", "max_tokens": 200, "stream": True}


def raw(served: Served, version: str) -> bytes:
    """The whole answer to one request of an HTTP version."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    text = json.dumps(ASK)
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def shown(answer: bytes) -> str:
    lines = [line for line in answer.splitlines() if line.startswith(b"data: {")]
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_every_version_of_http_gets_the_same_text(lab: Lab, version: str) -> None:
    answer = raw(lab.serve(lab.twin(HELLO)), version)
    assert shown(answer) == HELLO
    assert answer.rstrip().endswith(b"data: [DONE]" if version == "1.0" else b"\r\n0")


def test_streams_on_one_connection_follow_one_another(lab: Lab) -> None:
    served = lab.serve(lab.twin(HELLO))
    with httpx.Client(base_url=served.url, timeout=20) as http:
        texts = [shown(http.post("/v1/completions", json=ASK).content) for _ in range(3)]
    assert texts == [HELLO] * 3


def test_a_bug_ends_the_request_that_it_belongs_to(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = lab.serve(lab.twin(HELLO))
    make = served.gateway.generation

    async def with_a_bug(request: Any, arrived_s: float) -> Any:
        generation = await make(request, arrived_s)
        feed, fed = generation.answer.feed, []

        def bug(ids: Any, finish: str = "") -> str:
            fed.append(ids)
            if len(fed) > 2:
                raise ValueError("a bug")
            return feed(ids, finish)

        monkeypatch.setattr(generation.answer, "feed", bug)
        return generation

    monkeypatch.setattr(served.gateway, "generation", with_a_bug)
    with httpx.Client(base_url=served.url, timeout=20) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/v1/completions", json=ASK)
        monkeypatch.setattr(served.gateway, "generation", make)
        assert shown(http.post("/v1/completions", json=ASK).content) == HELLO
    assert "a bug" in caplog.text
    assert served.live() == 0


class Flow:
    write_paused = False


class Transport:
    def __init__(self) -> None:
        self.closing = False
        self.written = b""

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.written += data


def test_a_chunk_is_written_as_http_wants_it() -> None:
    transport: Any = Transport()
    flow: Any = Flow()
    chunks = Chunks(transport, flow)
    chunks.write(b"x" * 26)
    assert transport.written == b"1a\r\n" + b"x" * 26 + b"\r\n"


@pytest.mark.parametrize(
    ("paused", "closing", "is_open"),
    [
        pytest.param(False, False, True, id="the-client-reads"),
        pytest.param(True, False, False, id="it-does-not-read"),
        pytest.param(False, True, False, id="it-is-gone"),
    ],
)
def test_nothing_is_written_past_a_client(paused: bool, closing: bool, is_open: bool) -> None:
    transport: Any = Transport()
    flow: Any = Flow()
    transport.closing, flow.write_paused = closing, paused
    assert Chunks(transport, flow).open is is_open


def test_another_server_offers_nothing() -> None:
    assert chunks_of({"type": "http"}) is None
