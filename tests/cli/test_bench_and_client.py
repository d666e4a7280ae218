"""The figures of a load, and the client that measures them."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import bench, bench_client, chat, client
from lamella.errors import EndpointError

LOAD = bench.Load(concurrency=2, requests=2, input_tokens=8, output_tokens=3)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "http://127.0.0.1:8000"),
        (":9000", "http://127.0.0.1:9000"),
        ("host:1", "http://host:1"),
        ("http://a/v1/", "http://a"),
        ("https://a/b", "https://a/b"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert client.base_url(given) == url


@pytest.mark.parametrize(
    ("line", "piece"),
    [
        ('data: {"choices":[{"text":"a"}]}', client.Piece("a")),
        ('data: {"choices":[{"delta":{"content":"b"}}]}', client.Piece("b")),
        ('data: {"choices":[{"text":"","finish_reason":"stop"}]}', client.Piece("", "stop")),
        (
            'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}',
            client.Piece("", "", 3, 4),
        ),
        ("data: [DONE]", None),
        (": comment", None),
        ("", None),
    ],
)
def test_stream_lines(line: str, piece: client.Piece | None) -> None:
    assert client.parse_line(line) == piece


@pytest.mark.parametrize("line", ["data: nonsense", 'data: {"error":{"message":"lost a stage"}}'])
def test_errors_in_a_stream(line: str) -> None:
    with pytest.raises(EndpointError):
        client.parse_line(line)


def test_the_figures_of_a_level() -> None:
    samples = [
        bench_client.Sample((0.1, 0.2, 0.3), 8, 3),
        bench_client.Sample((0.3, 0.5, 0.7), 8, 3),
        bench_client.Sample(error="HTTP 429: busy"),
    ]
    level = bench.summarize(LOAD, samples, wall_s=2.0)
    assert (level.requests, level.failures, level.first_error) == (3, 1, "HTTP 429: busy")
    assert level.output_tokens_per_s == 3.0
    assert level.ttft_ms_p50 == pytest.approx(200)
    assert level.tpot_ms_p50 == pytest.approx(150)
    assert level.itl_ms_p50 == pytest.approx(150)
    assert len(bench.row(level)) == len(bench.COLUMNS)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_percentiles_lie_between_the_ends(values: list[float], percent: float) -> None:
    assert min(values) - 1e-6 <= bench.percentile(values, percent) <= max(values) + 1e-6


class Endpoint(BaseHTTPRequestHandler):
    """An OpenAI endpoint that counts to three; a prompt with 'fail' in it is refused."""

    seen: list[dict[str, object]]

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "tiny"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        if "messages" in body and "fail" in body["messages"][-1]["content"]:
            self._send(400, json.dumps({"error": {"message": "no such thing"}}))
            return
        if "messages" in body and "plain" in body["messages"][-1]["content"]:
            error = {"message": "it completes text", "code": "no_chat_template"}
            self._send(400, json.dumps({"error": error}))
            return
        chunks = [{"choices": [{"text": t, "delta": {"content": t}}]} for t in ("one", " two")]
        chunks.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._send(200, "".join(lines) + "data: [DONE]\n\n")

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_load_is_measured(endpoint: str) -> None:
    model, levels = asyncio.run(bench.run(endpoint, "", [LOAD]))
    assert model == "tiny"
    assert (levels[0].requests, levels[0].failures, levels[0].completion_tokens) == (2, 0, 6)
    assert Endpoint.seen[0]["ignore_eos"] is True


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(EndpointError, match="no answer"):
        asyncio.run(bench.run("http://127.0.0.1:9", "", [LOAD]))


def test_a_chat_keeps_its_history_and_survives_errors(endpoint: str) -> None:
    lines = iter(["/system be brief", "hello", "fail", "again", "/new", "alone", "/quit"])
    said: list[str] = []
    conversation = chat.Conversation()
    chat.run(
        endpoint, "", conversation, chat.Taste(0.0, 5), ask=lambda: next(lines), say=said.append
    )
    roles = [[m["role"] for m in body["messages"]] for body in Endpoint.seen]  # type: ignore[attr-defined]
    assert roles == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert "(error: HTTP 400: no such thing)\n" in said
    assert conversation.turns[-1] == {"role": "assistant", "content": "one two"}


def test_a_base_model_is_talked_to_as_questions_and_answers(endpoint: str) -> None:
    lines = iter(["plain?", "more?", "/quit"])
    said: list[str] = []
    conversation = chat.Conversation("Be brief.")
    chat.run(endpoint, "", conversation, chat.Taste(), ask=lambda: next(lines), say=said.append)
    assert Endpoint.seen[1]["prompt"] == "Be brief.\nQ: plain?\nA:"
    assert Endpoint.seen[2]["prompt"] == "Be brief.\nQ: plain?\nA: one two\nQ: more?\nA:"
    assert said.count("(no chat template: going on as questions and answers)\n") == 1
