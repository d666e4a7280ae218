"""Servers of a pod hear IPv4 and IPv6, on real sockets; rings and links speak IPv6 as well."""

from __future__ import annotations

import socket
import threading
import urllib.request
from contextlib import closing

import pytest
import zmq

from lamella_contract import listening
from lamella_gateway.serving import listen
from lamella_worker.process.live import LiveServer
from lamella_worker.transport import is_ipv6


def has_ipv6() -> bool:
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
ADDRESSES = [pytest.param("127.0.0.1", id="IPv4"), pytest.param("::1", id="IPv6", marks=ipv6)]


@pytest.mark.parametrize("dialled", ADDRESSES)
@pytest.mark.parametrize("bound", ["0.0.0.0", "::", ""])
def test_a_gateway_that_listens_everywhere_is_heard_by_both(bound: str, dialled: str) -> None:
    with closing(listen(bound, 0)) as listener:
        listener.setblocking(True)
        port = listener.getsockname()[1]
        with closing(socket.create_connection((dialled, port), timeout=5)):
            accepted, _ = listener.accept()
            accepted.close()


@pytest.mark.parametrize("dialled", ADDRESSES)
@pytest.mark.parametrize("bound", ["0.0.0.0:0", "[::]:0"])
def test_a_stage_is_probed_by_both(bound: str, dialled: str) -> None:
    server = LiveServer(bound)
    where = f"[{dialled}]" if ":" in dialled else dialled
    said: list[int] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://{where}:{server.port}/livez", timeout=5) as answer:
            said.append(answer.status)

    client = threading.Thread(target=ask)
    client.start()
    while client.is_alive():
        server.serve()
        client.join(0.01)
    server.close()
    assert said == [200]


def test_one_address_stays_one_address() -> None:
    assert listening.host_of("127.0.0.1") == "127.0.0.1"
    assert listening.host_of("::1") == "::1"
    with closing(listen("127.0.0.1", 0)) as listener:
        assert listener.family == socket.AF_INET


@ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"], ids=["as a pod's address is filled in", "[]"])
def test_a_ring_binds_and_dials_an_address_of_ipv6(host: str) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.ipv6 = is_ipv6(f"tcp://{host}:5702")
        pull.bind(f"tcp://{host}:*")
        bound = pull.last_endpoint.decode()
        assert bound.startswith("tcp://[::1]:")
        with context.socket(zmq.PUSH) as push:
            push.ipv6 = is_ipv6(bound)
            push.connect(bound)
            push.send(b"x")
            assert pull.poll(5000)
            assert pull.recv() == b"x"
