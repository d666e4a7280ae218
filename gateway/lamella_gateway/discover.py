"""Looks the pipelines' stage 0s up by name, again and again, and keeps their links in step.

Knows names and addresses; no ZeroMQ and no requests. libzmq would look a name up inside its I/O
thread, where one slow answer stalls every healthy link, and would take only the first address: it
is given addresses alone. Each address is one pipeline.

1. An address that is new gets a link at once.
2. An address that answers no longer name loses its link once that is not connected, after a few
   seconds: a name service that is down or forgets must not end what works.
3. Without an answer (the name service is down) nothing is concluded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from lamella_contract.errors import InvalidConfig

from .threads import in_daemon_thread

EVERY_S = 1.0
FORGET_S = 5.0  # an address that was not named for so long is gone
LOOKUP_S = 5.0  # an answer that takes longer is none

_log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[tuple[str, ...]]]


class Roster(Protocol):
    """The links, as discovery needs them."""

    problem: str

    def add(self, address: str) -> None:
        """Make a link to ``address``."""

    def drop(self, address: str) -> None:
        """Close the link to ``address``."""

    def connected(self) -> Mapping[str, bool]:
        """Every address that has a link, and whether it is connected."""


class Discovery:
    """One name, ``host:port``, and the links made for its addresses."""

    def __init__(self, target: str, roster: Roster, resolve: Resolve) -> None:
        self._host, _, port = target.rpartition(":")
        if not self._host or not port.isdecimal():
            raise InvalidConfig(f"discover: got {target!r}, want host:port")
        self._port = int(port)
        self._roster = roster
        self._resolve = resolve
        self._named_s: dict[str, float] = {}  # address -> when an answer last named it

    async def run(self) -> None:
        """Look up for ever; ends only by being cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self.look(clock)
            await asyncio.sleep(EVERY_S)

    async def look(self, clock: Callable[[], float]) -> None:
        """Look up once and follow the answer."""
        try:
            found = await asyncio.wait_for(self._resolve(self._host, self._port), LOOKUP_S)
        except (OSError, TimeoutError) as reason:
            why = f"{self._host} cannot be looked up ({str(reason) or type(reason).__name__})"
            if why != self._roster.problem:
                _log.warning("no answer from the name service", extra={"why": why})
            self._roster.problem = why
            return
        self._roster.problem = "" if found else f"no pipeline is there: {self._host} names none"
        self._follow(found, clock())

    def _follow(self, found: tuple[str, ...], now_s: float) -> None:
        known = self._roster.connected()
        for address in found:
            self._named_s[address] = now_s
            if address not in known:
                self._roster.add(address)
        for address, is_connected in known.items():
            if not is_connected and now_s - self._named_s.get(address, now_s) > FORGET_S:
                del self._named_s[address]
                self._roster.drop(address)


async def look_up(host: str, port: int) -> tuple[str, ...]:
    """ZeroMQ addresses of all that ``host`` names, () when it names nothing.

    Raises OSError when nobody could say.
    """
    try:
        found = await in_daemon_thread(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), "look-up"
        )
    except socket.gaierror as reason:
        if reason.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return ()
        raise
    return tuple(sorted({endpoint(str(entry[4][0]), port) for entry in found}))


def endpoint(address: str, port: int) -> str:
    """``tcp://10.0.0.7:5700``; brackets around IPv6."""
    is_v6 = False
    with contextlib.suppress(ValueError):  # a scoped address is none of `ipaddress`'s
        is_v6 = ipaddress.ip_address(address).version == 6
    return f"tcp://[{address}]:{port}" if is_v6 else f"tcp://{address}:{port}"
