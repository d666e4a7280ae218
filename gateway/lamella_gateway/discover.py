"""Looks the pipelines' stage 0s up by name, again and again, and keeps their links in step.

Knows names and addresses; no ZeroMQ and no requests. libzmq would look a name up inside its I/O
thread, where one slow answer stalls every healthy link, and would take only the first address: it
is given addresses alone. Each address is one pipeline. On one machine a file, whose lines are the
addresses, takes the name service's place.

1. An address that is new gets a link at once.
2. An address that answers no longer name loses its link once that is not connected, after a few
   seconds: a name service that is down or forgets must not end what works.
3. Without an answer (the name service is down) nothing is concluded.
4. An address that is no longer named but connected gets nothing new while one that is named is
   ready, and goes on with what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from lamella_contract.errors import InvalidConfig

from .threads import in_daemon_thread

EVERY_S = 1.0
FORGET_S = 5.0  # an address that was not named for so long is gone
LOOKUP_S = 5.0  # an answer that takes longer is none
FILE = "file:"  # how a target begins that is a file's path

_log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[tuple[str, ...]]]


class Roster(Protocol):
    """The links, as discovery needs them."""

    problem: str

    def add(self, address: str) -> None:
        """Make a link to ``address``."""

    def drop(self, address: str) -> None:
        """Close the link to ``address``."""

    def prefer(self, addresses: tuple[str, ...]) -> None:
        """Give what is new to one of ``addresses`` while one of them is ready."""

    def connected(self) -> Mapping[str, bool]:
        """Every address that has a link, and whether it is connected."""


class Discovery:
    """One name, ``host:port`` or ``file:<path>``, and the links made for its addresses."""

    def __init__(self, target: str, roster: Roster, resolve: Resolve) -> None:
        self._where, self._find = _finder(target, resolve)
        self._roster = roster
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
            found = await asyncio.wait_for(self._find(), LOOKUP_S)
        except (OSError, TimeoutError) as reason:
            why = f"{self._where} cannot be looked up ({str(reason) or type(reason).__name__})"
            if why != self._roster.problem:
                _log.warning("no answer from the name service", extra={"why": why})
            self._roster.problem = why
            return
        self._roster.problem = "" if found else f"no pipeline is there: {self._where} names none"
        self._follow(found, clock())

    def _follow(self, found: tuple[str, ...], now_s: float) -> None:
        known = self._roster.connected()
        for address in found:
            self._named_s[address] = now_s
            if address not in known:
                self._roster.add(address)
        self._roster.prefer(found)
        for address, is_connected in known.items():
            if not is_connected and now_s - self._named_s.get(address, now_s) > FORGET_S:
                del self._named_s[address]
                self._roster.drop(address)


def _finder(target: str, resolve: Resolve) -> tuple[str, Callable[[], Awaitable[tuple[str, ...]]]]:
    """What to call the place, and how to ask it."""
    if target.startswith(FILE) and (path := target.removeprefix(FILE)):
        return path, partial(read_addresses, Path(path))
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidConfig(f"discover: got {target!r}, want host:port or file:<path>")
    return host, partial(resolve, host, int(port))


async def read_addresses(path: Path) -> tuple[str, ...]:
    """The lines of a small file; OSError when it cannot be read."""
    return tuple(path.read_text(encoding="ascii", errors="replace").split())


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
