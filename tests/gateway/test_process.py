"""The gateway as its own process: port, signals, configuration, what it imports and leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from gateway_lab import Lab
from gateway_twin import Twin

from lamella.machine import free_ports
from lamella_contract import names
from lamella_contract.wire import Cancel, Submit

GO_ON = {"model": "toy", "prompt": "the fox", "max_tokens": 400}


@dataclass
class Process:
    popen: subprocess.Popen[str]
    url: str

    def ends(self, limit_s: float) -> int:
        return self.popen.wait(limit_s)

    def said(self) -> str:
        assert self.popen.stderr is not None
        return self.popen.stderr.read()


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[..., Process]]:
    started: list[subprocess.Popen[str]] = []

    def run(
        twin: Twin, *arguments: str, port: int = 0, by_file: bool = True, **changes: Any
    ) -> Process:
        port = port or free_ports(1)[0]
        document = lab.config(twin, http_port=port, **changes).to_json()
        command = [sys.executable, "-m", "lamella_gateway", *arguments]
        environment = dict(os.environ)
        if by_file:
            config = lab.tmp / f"gateway-{port}.json"
            config.write_text(document)
            command += ["--config", str(config)]
        else:
            environment[names.ENV_GATEWAY_CONFIG] = document
        popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        started.append(popen)
        return Process(popen, f"http://127.0.0.1:{port}")

    yield run
    for popen in started:
        if popen.poll() is None:
            popen.kill()
        popen.wait()
        assert popen.stderr is not None
        popen.stderr.close()


def healthy(process: Process) -> bool:
    assert process.popen.poll() is None, process.said()
    try:
        return httpx.get(f"{process.url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_sigterm_ends_streams_with_an_error_and_cancels(
    lab: Lab, start: Callable[..., Process], eventually: Callable[..., None]
) -> None:
    twin = lab.twin()
    twin.set(answer=lambda submit: ((40,) * 400, "length"))
    process = start(twin)
    eventually(lambda: healthy(process), 60.0)
    with httpx.stream(
        "POST", f"{process.url}/v1/completions", json=GO_ON | {"stream": True}, timeout=20
    ) as response:
        lines = response.iter_lines()
        next(lines)
        twin.set(paused=True)
        began_s = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"].endswith("shutting down")
    assert process.ends(5) == 0
    assert time.monotonic() - began_s < 2.0
    twin.wait(lambda: twin.of(Cancel))
    assert twin.of(Cancel)[0].request_id == twin.of(Submit)[0].request_id


def test_it_serves_is_small_and_ends_at_once_when_idle(
    lab: Lab, start: Callable[..., Process], eventually: Callable[..., None]
) -> None:
    process = start(lab.twin())
    eventually(lambda: healthy(process), 60.0)
    seen = psutil.Process(process.popen.pid)
    assert "lamella: gateway toy" in " ".join(seen.cmdline())
    assert not any("torch" in mapped.path for mapped in seen.memory_maps())
    assert seen.memory_info().rss < 250e6
    assert not seen.children()
    with httpx.Client(base_url=process.url) as http:  # an open connection must not hold it
        assert http.post("/v1/completions", json=GO_ON).status_code == 200
        began_s = time.monotonic()
        process.popen.send_signal(signal.SIGINT)
        assert process.ends(5) == 0
        assert time.monotonic() - began_s < 1.0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{process.url}/health")


def test_it_ends_while_it_loads(
    lab: Lab, start: Callable[..., Process], eventually: Callable[..., None]
) -> None:
    process = start(lab.twin())

    def loads() -> bool:
        try:
            return "tokenizer" in httpx.get(f"{process.url}/health", timeout=5).text
        except httpx.TransportError:
            return False

    eventually(loads, 30.0)
    began_s = time.monotonic()
    process.popen.send_signal(signal.SIGTERM)
    assert process.ends(5) == 0
    assert time.monotonic() - began_s < 2.0


def test_it_leaves_a_pod_without_failing_anybody(
    lab: Lab, start: Callable[..., Process], eventually: Callable[..., None]
) -> None:
    """Told by its environment and given time to drain, as in a pod."""
    twin = lab.twin()
    twin.set(answer=lambda submit: ((40,) * 400, "length"))
    process = start(twin, by_file=False, drain_s=30.0)
    eventually(lambda: healthy(process), 60.0)
    body = GO_ON | {"stream": True}
    with (
        httpx.Client(base_url=process.url, timeout=20) as kept,
        httpx.stream("POST", f"{process.url}/v1/completions", json=body, timeout=40) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        twin.set(paused=True)
        assert kept.get("/readyz").status_code == 200
        process.popen.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        eventually(lambda: kept.get("/readyz").status_code == 503)
        assert "shutting down" in kept.get("/readyz").json()["reason"]
        # those who have not heard of it yet are served, and sent elsewhere for the next one
        twin.set(answer=lambda submit: ((41,) * 2, "length"), paused=False)
        late = httpx.post(f"{process.url}/v1/completions", json=GO_ON, timeout=20)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert kept.get("/readyz").headers["connection"] == "close"
        twin.set(paused=True)
        eventually(lambda: not healthy_at_all(process), 12.0)
        assert 4.5 < time.monotonic() - began_s < 10.0
        assert process.popen.poll() is None
        twin.set(paused=False)
        last = [line for line in lines if line][-1]
    assert last == "data: [DONE]"
    ended_s = time.monotonic()
    assert process.ends(5) == 0
    assert time.monotonic() - ended_s < 3.0


def healthy_at_all(process: Process) -> bool:
    try:
        httpx.get(f"{process.url}/healthz", timeout=5)
    except httpx.TransportError:
        return False
    return True


def test_half_a_request_does_not_hold_it(
    lab: Lab, start: Callable[..., Process], eventually: Callable[..., None]
) -> None:
    process = start(lab.twin(), drain_s=9.0)
    eventually(lambda: healthy(process), 60.0)
    host, port = process.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        eventually(lambda: healthy(process))
        process.popen.send_signal(signal.SIGTERM)
        assert process.ends(7) == 0


def test_asked_to_end_before_it_can_serve(lab: Lab, start: Callable[..., Process]) -> None:
    process = start(lab.twin())
    process.popen.send_signal(signal.SIGTERM)
    assert process.ends(10) in (0, -signal.SIGTERM)  # the latter before Python's first line


def test_no_configuration_at_all() -> None:
    environment = {k: v for k, v in os.environ.items() if k != names.ENV_GATEWAY_CONFIG}
    command = [sys.executable, "-m", "lamella_gateway"]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith("lamella gateway: LAMELLA_GATEWAY_CONFIG: got nothing")


def test_a_model_that_is_not_there_is_one_line(lab: Lab, start: Callable[..., Process]) -> None:
    process = start(lab.twin(), tokenizer_path="", model_uri="file:/nowhere/model")
    assert process.ends(60) == 2
    assert process.said().splitlines()[-1] == "lamella gateway: /nowhere/model does not exist"


def test_a_port_in_use_is_one_line(lab: Lab, start: Callable[..., Process]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(lab.twin(), port=port)
        assert process.ends(20) == 3
    expected = f"port in use: another process listens on 127.0.0.1:{port}"
    assert process.said() == f"lamella gateway: {expected}\n"


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        pytest.param({"key_file": "/nowhere/key"}, 2, "key_file: got '/nowhere/key'", id="keys"),
        pytest.param({"api_keys_file": "/nowhere/k"}, 2, "api_keys_file: cannot", id="api-keys"),
        pytest.param({"tokenizer_path": "/nowhere/t"}, 2, "tokenizer_path: got", id="no-folder"),
        pytest.param({"http_host": "203.0.113.7"}, 2, "cannot listen on", id="address"),
    ],
)
def test_what_it_cannot_work_with(
    lab: Lab, start: Callable[..., Process], changes: dict[str, Any], code: int, said: str
) -> None:
    process = start(lab.twin(), **changes)
    assert process.ends(30) == code
    last = process.said().splitlines()[-1]
    assert last.startswith(f"lamella gateway: {said}")


def test_a_broken_tokenizer_is_one_line(
    lab: Lab, start: Callable[..., Process], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{")
    process = start(lab.twin(), tokenizer_path=str(folder))
    assert process.ends(60) == 2
    assert process.said().splitlines()[-1].startswith("lamella gateway: tokenizer_path: no token")


def test_an_unknown_key_in_the_configuration(lab: Lab) -> None:
    config = lab.tmp / "gateway.json"
    config.write_text('{"nmae": "gateway-0"}')
    command = [sys.executable, "-m", "lamella_gateway", "--config", str(config)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "unknown field; did you mean 'name'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_does_not_outlive_its_parent(lab: Lab, start: Callable[..., Process]) -> None:
    # the parent it is told of is not its parent, as if that had died and it was adopted
    process = start(lab.twin(), "--parent-pid", str(os.getppid()))
    assert process.ends(30) == 0
