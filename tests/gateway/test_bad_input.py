"""Bad input over raw HTTP: each is a clear error in OpenAI's form, and the server keeps serving."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from gateway_lab import Lab, Served
from gateway_twin import Twin

from lamella_contract.wire import Cancel, Submit

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = {"model": "toy", "messages": [{"role": "user", "content": "the fox"}]}
GO_ON = {"model": "toy", "prompt": "the fox"}


def chat(**fields: Any) -> dict[str, Any]:
    return ASK | fields


def says(*content: Any, **fields: Any) -> dict[str, Any]:
    return ASK | {"messages": [{"role": "user", "content": list(content)} | fields]}


BODIES = [
    pytest.param(CHAT, [], None, "must be a JSON object", id="a-list"),
    pytest.param(CHAT, {"model": "toy"}, "messages", "Missing required", id="no-messages"),
    pytest.param(TEXT, {"model": "toy"}, "prompt", "Missing required", id="no-prompt"),
    pytest.param(CHAT, {"messages": ASK["messages"]}, "model", "Missing required", id="no-model"),
    pytest.param(CHAT, chat(messages=[]), "messages", "at least one", id="messages-empty"),
    pytest.param(CHAT, chat(messages=["x"]), "messages[0]", "JSON object", id="message-a-text"),
    pytest.param(
        CHAT,
        chat(messages=[{"role": "tool", "content": "x"}]),
        "messages[0].role",
        "system, user, assistant",
        id="role",
    ),
    pytest.param(
        CHAT,
        says({"type": "image_url", "image_url": {"url": "x"}}),
        "messages[0].content[0].type",
        "text only",
        id="an-image",
    ),
    pytest.param(
        CHAT,
        says({"type": "text", "text": "x"}, cache=1),
        "messages[0].cache",
        "Unknown parameter",
        id="unknown-in-message",
    ),
    pytest.param(CHAT, chat(top_q=1), "top_q", "did you mean 'top_", id="unknown"),
    pytest.param(CHAT, chat(temperature="hot"), "temperature", "want a number", id="a-text"),
    pytest.param(CHAT, chat(temperature=True), "temperature", "want a number", id="a-bool"),
    pytest.param(CHAT, chat(temperature=2.1), "temperature", "from 0 to 2", id="too-hot"),
    pytest.param(CHAT, chat(top_p=0), "top_p", "above 0", id="top-p-zero"),
    pytest.param(CHAT, chat(top_k=-2), "top_k", "whole number", id="top-k"),
    pytest.param(CHAT, chat(max_tokens=0), "max_tokens", "at least 1", id="no-tokens"),
    pytest.param(CHAT, chat(max_tokens=1.5), "max_tokens", "whole number", id="half-a-token"),
    pytest.param(
        CHAT, chat(max_tokens=1, max_completion_tokens=2), "max_tokens", "only one", id="two-limits"
    ),
    pytest.param(CHAT, chat(cache_salt=""), "cache_salt", "characters", id="empty-salt"),
    pytest.param(CHAT, chat(seed=2**64), "seed", "whole number", id="seed-too-big"),
    pytest.param(CHAT, chat(seed=10**400), "seed", "whole number", id="seed-enormous"),
    pytest.param(CHAT, chat(temperature=10**400), "temperature", "from 0 to 2", id="hot-enormous"),
    pytest.param(CHAT, chat(stop=["a"] * 5), "stop", "at most 4", id="five-stops"),
    pytest.param(CHAT, chat(stop=[""]), "stop", "1 to", id="an-empty-stop"),
    pytest.param(CHAT, chat(stop=7), "stop", "a string", id="stop-a-number"),
    pytest.param(CHAT, chat(n=2), "n", "not supported", id="n"),
    pytest.param(CHAT, chat(n=True), "n", "not supported", id="n-true-is-not-one"),
    pytest.param(CHAT, chat(logprobs=True), "logprobs", "not supported", id="logprobs"),
    pytest.param(CHAT, chat(tools=[{"type": "function"}]), "tools", "not supported", id="tools"),
    pytest.param(
        CHAT,
        chat(response_format={"type": "json_object"}),
        "response_format",
        "not supported",
        id="response-format",
    ),
    pytest.param(
        CHAT,
        chat(stream_options={"include_usage": True}),
        "stream_options",
        "only allowed when 'stream'",
        id="stream-options-alone",
    ),
    pytest.param(
        CHAT,
        chat(stream=True, stream_options={"other": 1}),
        "stream_options.other",
        "Unknown parameter",
        id="stream-options-unknown",
    ),
    pytest.param(CHAT, chat(stream="yes"), "stream", "true or false", id="stream-a-text"),
    pytest.param(CHAT, chat(prompt="x"), "prompt", "Unknown parameter", id="prompt-in-a-chat"),
    pytest.param(TEXT, GO_ON | {"prompt": ["a", "b"]}, "prompt", "one string", id="two-prompts"),
    pytest.param(TEXT, GO_ON | {"prompt": []}, "prompt", "token ids", id="prompt-empty-list"),
    pytest.param(TEXT, GO_ON | {"prompt": ""}, "prompt", "empty", id="prompt-empty"),
    pytest.param(TEXT, GO_ON | {"prompt": [1, "a"]}, "prompt", "token ids", id="prompt-mixed"),
    pytest.param(TEXT, GO_ON | {"prompt": [10**6]}, "prompt", "Token id", id="token-too-big"),
    pytest.param(TEXT, GO_ON | {"prompt": [-1]}, "prompt", "Token id", id="token-negative"),
    pytest.param(TEXT, GO_ON | {"echo": True}, "echo", "not supported", id="echo"),
    pytest.param(TEXT, GO_ON | {"logprobs": 0}, "logprobs", "not supported", id="logprobs-zero"),
    pytest.param(TEXT, GO_ON | {"best_of": 2}, "best_of", "not supported", id="best-of"),
]


@pytest.fixture
def twin(lab: Lab) -> Twin:
    return lab.twin()


@pytest.fixture
def served(lab: Lab, twin: Twin) -> Served:
    return lab.serve(twin)


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20) as made:
        yield made


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = document["error"]
    return error


@pytest.fixture(scope="module")
def shared(tmp_path_factory: Any, tokenizer: Any, tokenizer_dir: Any) -> Iterator[httpx.Client]:
    """One gateway for the whole table: no row may disturb the next."""
    lab = Lab(tmp_path_factory.mktemp("shared"), tokenizer, tokenizer_dir)
    with httpx.Client(base_url=lab.serve(lab.twin()).url, timeout=20) as made:
        yield made
    lab.close()


@pytest.mark.parametrize(("path", "body", "param", "said"), BODIES)
def test_a_wrong_body(
    shared: httpx.Client, path: str, body: object, param: str | None, said: str
) -> None:
    # two libraries' ways with numbers differ, so the text is written here
    response = shared.post(path, content=json.dumps(body))
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["param"] == param
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert shared.post(TEXT, json=GO_ON).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hello", id="a-word"),
        pytest.param(b'{"model": "toy", ', id="cut"),
        pytest.param(b"\xff\xfe\x00", id="not-utf-8"),
        pytest.param(b'{"model": "\xff"}', id="not-utf-8-inside"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000, id="deep-objects"),
        pytest.param(b'{"temperature": 1e999}', id="infinite"),
        pytest.param(b'{"temperature": NaN}', id="nan"),
        pytest.param(b'{"prompt": "\\ud800"}', id="half-a-surrogate"),
        pytest.param(b'{"model": "toy"} {}', id="two-documents"),
    ],
)
def test_what_is_not_json(shared: httpx.Client, body: bytes) -> None:
    response = shared.post(CHAT, content=body)
    assert response.status_code == 400
    assert "not valid JSON" in error_of(response)["message"]


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_fifty_megabytes_are_not_read(http: httpx.Client, declared: bool) -> None:
    piece = b" " * 65536
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(800):
            sent += len(piece)
            yield piece

    headers = {"content-length": str(800 * len(piece))} if declared else {}
    try:
        response = http.post(CHAT, content=pieces(), headers=headers)
    except (httpx.WriteError, httpx.ReadError):
        pass  # the server answered and hung up while the client was still writing
    else:
        assert response.status_code == 413
        assert error_of(response)["code"] == "request_too_large"
    assert sent < 50 * 2**20
    assert http.post(TEXT, json=GO_ON).status_code == 200


def test_too_large_by_its_own_word_is_413_at_once(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 52428800\r\n\r\n"
        raw.sendall(head.encode())
        answer = raw.makefile("rb").read()  # to the end: the server hangs up
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/v1/embeddings", 404)],
)
def test_paths_and_methods(shared: httpx.Client, method: str, path: str, status: int) -> None:
    response = shared.request(method, path)
    assert response.status_code == status
    assert path in error_of(response)["message"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_vanishes_is_cancelled(
    served: Served, twin: Twin, stream: bool, eventually: Callable[..., None]
) -> None:
    if stream:
        twin.set(answer=lambda submit: ((40,) * 100_000, "length"))
    else:
        twin.set(paused=True)
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps(ASK | {"stream": stream}).encode()
    raw = socket.create_connection((host, int(port)), timeout=20)
    raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    raw.sendall(body)
    if stream:
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
    twin.wait(lambda: twin.of(Submit))
    raw.close()
    twin.wait(lambda: twin.of(Cancel))
    assert twin.of(Cancel)[0].request_id == twin.of(Submit)[0].request_id
    eventually(lambda: served.live() == 0)
    served.call(served.gateway.dispatcher._journal.check_integrity)


def test_a_client_that_vanishes_in_the_middle_of_its_body(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    with httpx.Client(base_url=served.url, timeout=20) as http:
        assert http.post(TEXT, json=GO_ON).status_code == 200


def test_a_model_without_a_chat_template(lab: Lab, twin: Twin) -> None:
    folder = lab.tmp / "plain"
    folder.mkdir()
    settings = json.loads((lab.tokenizer_dir / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text((lab.tokenizer_dir / "tokenizer.json").read_text())
    with httpx.Client(base_url=lab.serve(twin, tokenizer_path=str(folder)).url) as http:
        response = http.post(CHAT, json=ASK)
        assert response.status_code == 400
        assert "/v1/completions" in error_of(response)["message"]
        assert http.post(TEXT, json=GO_ON).status_code == 200
