"""/livez is answered by the parent's loop, whoever else is connected."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from lamella_contract.errors import InvalidConfig
from lamella_worker.process.live import MOST_CLIENTS, LiveServer


@pytest.fixture
def server() -> Iterator[LiveServer]:
    made = LiveServer("127.0.0.1:0")
    yield made
    made.close()


@pytest.fixture
def dial(server: LiveServer) -> Iterator[object]:
    made: list[socket.socket] = []

    def connect(text: bytes = b"") -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        made[-1].sendall(text)
        return made[-1]

    yield connect
    for client in made:
        client.close()


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        pytest.param(get("/livez"), b"200 OK", b"ok\n", id="alive"),
        pytest.param(get("/livez?verbose"), b"200 OK", b"ok\n", id="with-a-query"),
        pytest.param(get("/livez", "HEAD"), b"200 OK", b"", id="head"),
        pytest.param(get("/readyz"), b"404", b"try GET /livez\n", id="another-path"),
        pytest.param(get("/livez", "POST"), b"404", b"try GET /livez\n", id="another-method"),
        pytest.param(b"\r\n\r\n", b"404", b"try GET /livez\n", id="nonsense"),
    ],
)
def test_one_look_answers_what_has_come(
    server: LiveServer, dial: object, request_: bytes, status: bytes, body: bytes
) -> None:
    client = dial(request_)  # type: ignore[operator]
    server.serve()
    answer = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert rest == body


def test_silent_and_slow_clients_hold_nobody_up(server: LiveServer, dial: object) -> None:
    silent = [dial() for _ in range(MOST_CLIENTS + 8)]  # type: ignore[operator]
    slow = dial(b"GET /liv")  # type: ignore[operator]
    server.serve()
    server.serve()
    assert server.waiting
    client = dial(get("/livez"))  # type: ignore[operator]
    server.serve()
    assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert silent[0].recv(1) == b"", "the oldest were hung up on"
    slow.sendall(b"ez HTTP/1.1\r\n\r\n")
    server.serve()
    assert slow.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_client_that_goes_away_is_forgotten(server: LiveServer, dial: object) -> None:
    client = dial(b"GET")  # type: ignore[operator]
    server.serve()
    client.close()
    server.serve()
    assert not server.waiting


def test_a_request_without_end_is_hung_up_on(server: LiveServer, dial: object) -> None:
    client = dial(b"x" * 8192)  # type: ignore[operator]
    server.serve()
    server.serve()
    assert not server.waiting
    client.settimeout(5)
    try:
        assert client.recv(1) == b""
    except ConnectionResetError:
        return


@pytest.mark.parametrize("address", ["127.0.0.1:x", "127.0.0.1:70000", "203.0.113.1:0", ""])
def test_an_address_that_cannot_be_had_is_named(address: str) -> None:
    with pytest.raises(InvalidConfig, match="live_address"):
        LiveServer(address)
