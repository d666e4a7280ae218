"""The bare client of `lamella bench`: framing, what counts as an answer, and how servers differ."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import bench
from lamella.bench_client import Address, Sample, Tape, read
from lamella.errors import EndpointError

LOAD = bench.Load(concurrency=2, requests=2, input_tokens=8, output_tokens=3)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENTS = (
    b'data: {"choices":[{"text":"one"}]}\n\n',
    b'data: {"choices":[{"text":" two"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


def chunked(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*EVENTS)
PLAIN = HEAD + b"Connection: close\r\n\r\n" + b"".join(EVENTS)


@pytest.mark.parametrize("whole", [CHUNKED, PLAIN], ids=["chunked", "until closed"])
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_however_the_network_cuts_it(whole: bytes, cuts: list[int]) -> None:
    ends = [*sorted(cuts), len(whole)]
    pieces = [whole[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    sample = read(Tape([(float(n), piece) for n, piece in enumerate(pieces)]))
    assert (len(sample.piece_times_s), sample.prompt_tokens, sample.completion_tokens) == (2, 9, 2)
    assert list(sample.piece_times_s) == sorted(sample.piece_times_s)
    assert sample.error == ""


@pytest.mark.parametrize(
    ("came", "tape_error", "error"),
    [
        (b"", "", "the connection was closed without an answer"),
        (b"", "ConnectionResetError: reset", "ConnectionResetError: reset"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "", "the connection was closed without an answer"),
        (HEAD + b"\r\n" + EVENTS[0], "", "the stream ended early"),
        (HEAD + b"\r\n" + EVENTS[0], "nothing came for 600 s", "nothing came for 600 s"),
        (HEAD + b"\r\n" + EVENTS[3], "", "the stream held no text"),
        (HEAD + b'\r\ndata: {"error":{"message":"lost a stage"}}\n\n', "", "lost a stage"),
        (HEAD + b'\r\ndata: {"error":"lost a stage"}\n\n', "", "lost a stage"),
        (
            b'HTTP/1.1 429 Busy\r\n\r\n{"error":{"message":"queue full"}}',
            "",
            "HTTP 429: queue full",
        ),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "", "want a chunk's size"),
    ],
    ids=[
        "nothing", "reset", "no HTTP", "cut", "silent", "no text", "error event",
        "bare error event", "refused", "bad chunk",
    ],
)  # fmt: skip
def test_what_is_a_failure(came: bytes, tape_error: str, error: str) -> None:
    sample = read(Tape([(0.1, came)] if came else [], tape_error))
    assert error in sample.error
    assert sample.piece_times_s == ()


def test_a_finish_reason_ends_a_stream_as_well_as_an_end_mark() -> None:
    text = b'\r\ndata: {"choices":[{"text":"a","finish_reason":"length"}]}\n\n'
    assert read(Tape([(0.5, HEAD + text)])) == Sample((0.5,), 0, 1)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a", Address("a", 80, "", False)),
        ("http://[::1]:9/x", Address("::1", 9, "/x", False)),
        ("https://a.b/c", Address("a.b", 443, "/c", True)),
    ],
    ids=["plain", "IPv6 and a path", "TLS"],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.of(url) == address


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:port"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(EndpointError):
        Address.of(url)


def test_the_head_of_a_request() -> None:
    head = Address("::1", 9, "/x", False, "secret").head("/v1/completions", 7).decode()
    assert head.startswith("POST /x/v1/completions HTTP/1.1\r\nHost: [::1]:9\r\n")
    assert "\r\nAuthorization: Bearer secret\r\n" in head
    assert "\r\nContent-Length: 7\r\n" in head
    assert head.endswith("\r\n\r\n")


class Picky(BaseHTTPRequestHandler):
    """An endpoint that refuses fields; tokens are characters, a chat template adds five."""

    refuses: tuple[str, ...] = ()
    tells_usage = True
    seen: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        refused = [field for field in self.refuses if field in body]
        if refused:
            self._send(422, json.dumps({"error": {"message": f"unknown: {refused}"}}))
            return
        chat = "messages" in body
        tokens = len(body["messages"][0]["content"]) + 5 if chat else len(body["prompt"])
        usage = {"prompt_tokens": tokens, "completion_tokens": body["max_tokens"]}
        piece = {"delta": {"content": "x"}} if chat else {"text": "x"}
        chunks = [{"choices": [piece]}] * body["max_tokens"]
        chunks.append({"choices": [], **({"usage": usage} if self.tells_usage else {})})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send(200, "".join(lines) + "data: [DONE]\n\n")

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def picky() -> Iterator[type[Picky]]:
    class Own(Picky):
        seen: ClassVar[list[dict[str, Any]]] = []
        url = ""

    with ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        Own.url = f"http://127.0.0.1:{server.server_port}"
        yield Own
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("refuses", "lacks"),
    [
        ((), ()),
        (("ignore_eos",), ("ignore_eos",)),
        (("ignore_eos", "stream_options"), ("ignore_eos", "stream_options")),
    ],
    ids=["takes all", "no ignore_eos", "neither"],
)
@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_endpoints_are_asked_as_they_want(
    picky: Any, refuses: tuple[str, ...], lacks: tuple[str, ...], chat: bool
) -> None:
    picky.refuses = refuses
    model, (level,) = asyncio.run(bench.run(picky.url, "", [LOAD], chat=chat))
    assert (model, level.failures, level.completion_tokens) == ("tiny", 0, 6)
    assert level.prompt_tokens == 2 * LOAD.input_tokens, "as many tokens as were asked for"
    measured = picky.seen[-2:]
    for field in ("ignore_eos", "stream_options"):
        assert all((field in body) != (field in lacks) for body in measured)


def test_pieces_are_counted_where_no_usage_is_told(picky: Any) -> None:
    picky.tells_usage = False
    _, (level,) = asyncio.run(bench.run(picky.url, "", [LOAD]))
    assert (level.completion_tokens, level.prompt_tokens) == (6, 0)


def test_an_endpoint_that_takes_nothing_is_an_error(picky: Any) -> None:
    picky.refuses = ("model",)
    with pytest.raises(EndpointError, match="HTTP 422: unknown"):
        asyncio.run(bench.run(picky.url, "", [LOAD]))


def told(*pipelines: dict[str, Any]) -> dict[str, Any]:
    return {"pipelines": list(pipelines)}


def line(*points: tuple[int, float], ready: bool = True) -> dict[str, Any]:
    roofline = [{"requests": n, "tokens_per_s": rate} for n, rate in points]
    return {"ready": ready, "roofline": roofline}


@pytest.mark.parametrize(
    ("status", "concurrency", "want"),
    [
        ({}, 4, 0.0),
        (told({"ready": True}), 4, 0.0),
        (told(line((1, 50.0), (4, 180.0))), 4, 180.0),
        (told(line((1, 50.0), (4, 200.0))), 2, 100.0),
        (told(line((1, 50.0), (4, 200.0))), 8, 0.0),
        (told(line((1, 50.0), (4, 200.0)), line((1, 40.0), (4, 160.0))), 8, 360.0),
        (told(line((4, 200.0)), line((4, 160.0), ready=False)), 4, 200.0),
    ],
    ids=[
        "no gateway of ours", "not measured yet", "measured", "between", "beyond what was seen",
        "two pipelines share the load", "one of two is down",
    ],
)  # fmt: skip
def test_what_a_gateway_says_is_possible(
    status: dict[str, Any], concurrency: int, want: float
) -> None:
    assert bench.possible(status, concurrency) == pytest.approx(want)


def test_the_share_of_what_is_possible_is_about_decoding() -> None:
    sample = Sample((0.1, 0.12, 0.14), 8, 3)
    level = bench.summarize(bench.Load(4, 4, 8, 3), [sample] * 4, wall_s=9.0)
    assert level.decode_tokens_per_s == pytest.approx(200.0)
    told_level = replace(level, possible_tokens_per_s=250.0)
    assert bench.row(level)[-1] == "-"
    assert bench.row(told_level)[-1] == "250 tok/s (80%)"
