"""What tests break: containers, processes, nodes and parts of the control plane.

What needs a hand on the machines goes through the command in LAMELLA_E2E_NODES, which knows the
verbs `sh NODE WORDS...`, `node-off NODE`, `node-on NODE`, `stop COMPONENT`, `up`; a test that needs
a verb skips where there is no such command.
"""

from __future__ import annotations

import contextlib
import shlex
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2e_kube import Kube, environment, wait_for

KILL, STOP, CONTINUE = 9, 19, 18
GPU = "nvidia.com/gpu"


class Machines:
    """The nodes' power switches and the control plane's parts."""

    def __init__(self) -> None:
        self._command = shlex.split(environment("LAMELLA_E2E_NODES"))
        self.pki = environment("LAMELLA_E2E_PKI")  # folder with apiserver.crt and apiserver.key

    def need(self, *, pki: bool = False) -> None:
        """Skips the test where machines cannot be touched."""
        if not self._command:
            pytest.skip("needs LAMELLA_E2E_NODES: a command that switches nodes off")
        if pki and not self.pki:
            pytest.skip("needs LAMELLA_E2E_PKI: the API server's certificate and key")

    def do(self, *words: str, timeout_s: float = 150) -> str:
        self.need()
        done = subprocess.run(
            [*self._command, *words], capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{words}: {done.stderr.strip()[-500:]}"
        return done.stdout

    def signal_container(self, pod: dict[str, Any], number: int) -> None:
        """Signals a container's process 1, which it could not do to itself."""
        (status,) = pod["status"]["containerStatuses"]
        task = status["containerID"].partition("://")[2]
        node = pod["spec"]["nodeName"]
        self.do("sh", node, "ctr", "-n", "k8s.io", "task", "kill", "-s", str(number), task)

    @contextlib.contextmanager
    def without(self, component: str, kube: Kube) -> Iterator[None]:
        """A part of the control plane is away, and comes back."""
        self.do("stop", component)
        try:
            yield
        finally:
            self.do("up")
            wait_for("the API server answers", lambda: kube.list("namespaces"), 60)

    @contextlib.contextmanager
    def api_server_says(self, status: int, kube: Kube) -> Iterator[list[str]]:
        """In the API server's place something answers ``status`` to everything; yields the asked
        paths."""
        self.need(pki=True)
        with self.without("kube-apiserver", kube):
            server = _refuser(status, Path(self.pki))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server.asked  # type: ignore[attr-defined]
            finally:
                server.shutdown()
                thread.join()
                server.server_close()


def _refuser(status: int, pki: Path) -> ThreadingHTTPServer:
    class Refuse(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.asked.append(self.path)  # type: ignore[attr-defined]
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")  # or clients keep asking here afterwards
            self.end_headers()

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients hang up; that is no news."""

    server = Server(("0.0.0.0", 6443), Refuse)
    server.asked = []  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def signal_child(kube: Kube, pod: dict[str, Any], number: int) -> None:
    """Signals the stage's own process, which the pod's process 1 has forked."""
    script = (
        "import os; "
        "pids = [int(p) for p in os.listdir('/proc') if p.isdigit()];"
        "pids = [p for p in pids if p not in (1, os.getpid())];"
        "stages = [p for p in pids if b'stage' in open(f'/proc/{p}/cmdline', 'rb').read()];"
        f"[os.kill(p, {number}) for p in stages]; print(*stages)"
    )
    meta = pod["metadata"]
    told = kube.run(
        "-n", meta["namespace"], "exec", meta["name"], "--", "python", "-c", script
    )  # fmt: skip
    assert told.strip(), "no stage's process was found in the pod"


@contextlib.contextmanager
def cordoned(kube: Kube, node: str) -> Iterator[None]:
    """No new pod goes to the node."""
    kube.run("cordon", node)
    try:
        yield
    finally:
        kube.run("uncordon", node)


@contextlib.contextmanager
def gpus(kube: Kube, count: int, node: str) -> Iterator[None]:
    """The node offers so many GPUs, which do not exist."""

    def offer(number: int) -> None:
        amount = {GPU: str(number)}
        kube.patch(
            "nodes", node, "", {"status": {"capacity": amount, "allocatable": amount}}, "status"
        )

    offer(count)
    try:
        yield
    finally:
        offer(0)


@contextlib.contextmanager
def finalizer(kube: Kube, pod: dict[str, Any]) -> Iterator[None]:
    """The pod stays Terminating once it is deleted, until this ends."""
    meta = pod["metadata"]
    where = ("pods", meta["name"], meta["namespace"])
    kube.patch(*where, {"metadata": {"finalizers": ["e2e.lamella.dev/stuck"]}})
    try:
        yield
    finally:
        if kube.get(*where) is not None:
            kube.patch(*where, {"metadata": {"finalizers": None}})
