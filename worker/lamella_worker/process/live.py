"""/livez of the parent: says that it runs, from the parent's own loop and single thread.

Knows no stages. The loop calls `serve` a few times a second; nothing in here waits, so a client
that is slow, silent or one of many cannot hold the parent up.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time

from lamella_contract import listening, names
from lamella_contract.errors import InvalidConfig

log = logging.getLogger(__name__)

MOST_CLIENTS = 32
"""Connections kept at once; one more, and the oldest is hung up on."""

CLIENT_S = 1.0
"""Seconds that a client has for its request."""

_MOST_BYTES = 4096
_END = b"\r\n\r\n"


class LiveServer:
    """A listening socket and the few clients whose request is not here yet."""

    def __init__(self, address: str) -> None:
        """Binds ``host:port``; InvalidConfig names an address that cannot be had."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        host = listening.host_of(host)
        try:
            if not 0 <= int(port) <= 65535:
                raise ValueError(f"no port has the number {port}")
            self._listener = socket.create_server(
                (host, int(port)),
                family=listening.family_of(host),
                backlog=64,
                dualstack_ipv6=host == listening.EVERY,
            )
        except (OSError, ValueError) as error:
            raise InvalidConfig(f"live_address={address!r}: {error}") from error
        self._listener.setblocking(False)
        self._clients: list[tuple[socket.socket, bytearray, float]] = []

    @property
    def port(self) -> int:
        """The bound TCP port."""
        return int(self._listener.getsockname()[1])

    @property
    def waiting(self) -> bool:
        """Whether a client is connected that has not asked yet."""
        return bool(self._clients)

    def serve(self) -> None:
        """Take in whoever has come and answer whoever has asked; returns at once."""
        now_s = time.monotonic()
        for _ in range(MOST_CLIENTS):
            try:
                client, _ = self._listener.accept()
            except OSError:  # nobody more, or one that went away again
                break
            client.setblocking(False)
            self._clients.append((client, bytearray(), now_s))
        waiting = []
        for client, request, since_s in self._clients:
            if _is_done(client, request) or now_s - since_s > CLIENT_S:
                client.close()
            else:
                waiting.append((client, request, since_s))
        for client, _, _ in waiting[:-MOST_CLIENTS]:
            client.close()
        self._clients = waiting[-MOST_CLIENTS:]

    def close(self) -> None:
        """Free the port; in a forked child this closes the child's copies alone."""
        self._listener.close()
        for client, _, _ in self._clients:
            client.close()
        self._clients = []


def _is_done(client: socket.socket, request: bytearray) -> bool:
    """Read what there is; True when the client was answered or is gone."""
    try:
        received = client.recv(_MOST_BYTES)
    except BlockingIOError:
        return False
    except OSError:
        return True
    request += received
    if received and _END not in request and len(request) < _MOST_BYTES:
        return False
    if _END in request:
        with contextlib.suppress(OSError):  # it went away: nobody is there to be told
            client.send(_answer(bytes(request)))
    return True


def _answer(request: bytes) -> bytes:
    """The whole response to a request; a fresh socket's buffer always takes it at once."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    path = words[1].partition(b"?")[0].decode("latin-1") if len(words) > 1 else ""
    known = words[0] in (b"GET", b"HEAD") and path == names.PATH_LIVE
    status, body = ("200 OK", b"ok\n") if known else ("404 Not Found", b"try GET /livez\n")
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if words[0] == b"HEAD" else body)
