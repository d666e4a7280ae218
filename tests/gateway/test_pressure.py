"""Clients that do not read, clients that vanish by the thousand, and a network that lies: only they
suffer, and nothing is left behind.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from gateway_lab import Lab, Served

from lamella_contract.wire import Cancel, Submit

HELLO = "hello world, how are you? the quick brown fox jumps over the lazy dog"
GO_ON = {"model": "toy", "prompt": "the fox", "max_tokens": 200}
CLIENTS = 1000
AT_ONCE = 100
LONG = 40_000  # tokens
ONE_CHARACTER = 40  # a token

BUFFERED_BYTES = 8 << 20
"""What a client that does not read may cost at most: its answer so far as ids, and what the socket
and the server hold as text."""


def dial(served: Served, body: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody has read yet."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    text = json.dumps(body)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n"
    client.sendall((head + text).encode())
    return client


def endless(lab: Lab) -> Any:
    twin = lab.twin(HELLO)
    twin.set(answer=lambda submit: ((ONE_CHARACTER,) * LONG, "length"), batch=200)
    return twin


def test_a_client_that_does_not_read_harms_nobody_else(
    lab: Lab, eventually: Callable[..., None]
) -> None:
    slow_twin = endless(lab)
    served = lab.serve(slow_twin)
    before = psutil.Process().memory_info().rss
    with dial(served, GO_ON | {"stream": True}) as slow:
        eventually(lambda: served.call(lambda: served.gateway.dispatcher.generated_tokens) > 5_000)
        slow_twin.set(answer=lab.says(HELLO))
        with httpx.Client(base_url=served.url, timeout=20) as http:
            answer = http.post("/v1/completions", json=GO_ON)
        assert answer.json()["choices"][0]["text"] == HELLO
        eventually(
            lambda: served.call(lambda: served.gateway.dispatcher.generated_tokens) >= LONG, 60.0
        )
        assert psutil.Process().memory_info().rss - before < BUFFERED_BYTES
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        slow.settimeout(20)
        text = b""
        while b"[DONE]" not in text[-200:]:
            piece = slow.recv(1 << 20)
            assert piece, "its own answer is cut"
            text += piece
    eventually(lambda: served.live() == 0)


def test_a_thousand_clients_that_vanish_leave_nothing(
    lab: Lab, eventually: Callable[..., None]
) -> None:
    twin = endless(lab)
    twin.set(paused=True)
    served = lab.serve(twin, max_queued_tokens=100_000)
    seen = psutil.Process()

    def wave() -> None:
        clients = [dial(served, GO_ON | {"stream": bool(n % 2)}) for n in range(AT_ONCE)]
        eventually(lambda: served.live() == AT_ONCE)
        for number, client in enumerate(clients):
            if number % 3 == 0:  # with a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        eventually(lambda: served.live() == 0)

    for _ in range(3):
        wave()
    eventually(lambda: not twin.running)
    gc.collect()
    descriptors, memory = seen.num_fds(), seen.memory_info().rss
    for _ in range(CLIENTS // AT_ONCE):
        wave()
    eventually(lambda: not twin.running)
    twin.wait(lambda: len(twin.of(Cancel)) >= len(twin.of(Submit)))
    gc.collect()
    eventually(lambda: seen.num_fds() <= descriptors + 2)
    assert seen.memory_info().rss - memory < 10e6
    twin.set(paused=False, answer=lab.says(HELLO))
    with httpx.Client(base_url=served.url, timeout=20) as http:
        assert http.post("/v1/completions", json=GO_ON).json()["choices"][0]["text"] == HELLO


def test_clients_that_vanish_before_they_have_asked(
    lab: Lab, eventually: Callable[..., None]
) -> None:
    served = lab.serve(lab.twin(HELLO))
    host, _, port = served.url.removeprefix("http://").partition(":")
    seen = psutil.Process()
    descriptors = seen.num_fds()
    for _ in range(CLIENTS // AT_ONCE):
        clients = [socket.create_connection((host, int(port))) for _ in range(AT_ONCE)]
        for number, client in enumerate(clients):
            client.sendall(
                [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"][number % 3]
            )
            client.close()
    eventually(lambda: seen.num_fds() <= descriptors + 2)
    with httpx.Client(base_url=served.url, timeout=20) as http:
        assert http.post("/v1/completions", json=GO_ON).json()["choices"][0]["text"] == HELLO


@pytest.fixture
def pipeline_proxy() -> Any:
    """The bad network of the stages' tests."""
    path = Path(__file__).parents[1] / "worker" / "pipeline" / "proxy.py"
    spec = importlib.util.spec_from_file_location("gateway_proxy", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    proxy = module.Proxy()
    yield proxy
    proxy.close()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda link: link.reset(), id="reset"),
        pytest.param(lambda link: link.corrupt("back", -1), id="bits-back"),
        pytest.param(lambda link: link.corrupt("back", 1), id="a-length-back"),
        pytest.param(lambda link: link.corrupt("forth", -1), id="bits-forth"),
        pytest.param(lambda link: link.corrupt("forth", 1), id="a-length-forth"),
        pytest.param(lambda link: link.replay(), id="twice"),
        pytest.param(lambda link: link.hold_present(), id="dead-and-silent"),
    ],
)
def test_a_bad_network_to_stage_0(
    lab: Lab, pipeline_proxy: Any, fault: Callable[[Any], None]
) -> None:
    twin = lab.twin(HELLO * 3)
    link = pipeline_proxy.link(lambda: int(twin.address.rpartition(":")[2]))
    served = lab.serve(twin, replicas=(f"tcp://127.0.0.1:{link.port}",))
    twin.set(batch=1)
    with (
        httpx.Client(base_url=served.url, timeout=40) as http,
        http.stream("POST", "/v1/completions", json=GO_ON | {"stream": True}) as response,
    ):
        lines = response.iter_lines()
        first = next(lines)
        fault(link)
        text = ""
        for line in (first, *lines):
            if line.startswith("data: {"):
                document = json.loads(line[6:])
                assert "error" not in document, document
                text += document["choices"][0]["text"]
    assert text == HELLO * 3
