"""Looks a name up on a thread of its own, for a look-up may take as long as it likes.

Knows names and addresses, no sockets: ZeroMQ would look a name up inside its one I/O thread, stall
every link of the process meanwhile, and take only the first address.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import socket
import threading
from collections.abc import Callable

from lamella_contract.errors import InvalidConfig
from lamella_worker.process.telemetry import Counters

log = logging.getLogger(__name__)

Resolve = Callable[[str], list[str]]
"""All addresses of a name, literals, best first; OSError when there is no answer."""


MOST_ADDRESSES = 16
"""Of one name: more are not dialled."""


def system_resolve(host: str) -> list[str]:
    """By the system: /etc/hosts, then DNS with the search domains of /etc/resolv.conf."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return [address for address in addresses if "%" not in address]  # of this link only


def split_endpoint(endpoint: str) -> tuple[str, int, bool]:
    """Host, port, and whether the host is an address already, of ``tcp://host:port``."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise InvalidConfig(f"control_address: got {endpoint!r}, want tcp://host:port")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host, int(port), False
    return host, int(port), True


def endpoint_of(address: str, port: int) -> str:
    """``tcp://10.0.0.7:5701``, ``tcp://[fd00::7]:5701``."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


class Resolver:
    """One name, asked for when told to; the thread starts with the first question."""

    def __init__(self, host: str, port: int, resolve: Resolve, counters: Counters) -> None:
        self._host = host
        self._port = port
        self._resolve = resolve
        self._counters = counters
        self._questions: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._busy = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is to be expected."""
        return self._busy

    def ask(self) -> None:
        """Look the name up, unless that is being done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)
            self._thread.start()
        if not self._busy:
            self._busy = True
            self._questions.put(True)

    def answer(self) -> list[str]:
        """Endpoints, once for each look-up that brought some; else empty."""
        try:
            found = self._answers.get_nowait()
        except queue.Empty:
            return []
        self._busy = False
        return found

    def close(self) -> None:
        """End the thread when its look-up is over; it is not waited for."""
        self._questions.put(False)

    def _run(self) -> None:
        told = ""
        while self._questions.get():
            try:
                found = [
                    endpoint_of(a, self._port) for a in self._resolve(self._host)[:MOST_ADDRESSES]
                ]
                told = ""
            except (OSError, UnicodeError) as error:  # UnicodeError: what is no name at all
                self._counters.resolver_failures += 1
                if told != str(error):
                    told = str(error)
                    extra = {"host": self._host, "error": told}
                    log.warning("stage 0's name could not be looked up", extra=extra)
                found = []
            self._answers.put(found)


MakeResolver = Callable[[str, int, Resolve, Counters], Resolver]
"""`Resolver`, or a test's that has no thread."""
