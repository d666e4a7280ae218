"""The control sockets of one stage towards stage 0: one, or a few while it is looked for.

Knows sockets and names; which of them is stage 0 says `HeadChoice`, what the frames mean knows
`control`. Used by the control thread alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import zmq

from lamella_contract import names
from lamella_contract.config import StageConfig
from lamella_worker.membership.head_choice import HeadChoice
from lamella_worker.membership.resolver import (
    MakeResolver,
    Resolve,
    Resolver,
    endpoint_of,
    split_endpoint,
)
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import Network

LAST_WORD_MS = 200
"""What was sent to stage 0 last has this long to leave."""


class HeadLink:
    """Dials, hangs up, sends and receives as `choice` says."""

    def __init__(
        self,
        config: StageConfig,
        network: Network,
        telemetry: Telemetry,
        poller: zmq.Poller,
        *,
        identity: str,
        resolve: Resolve,
        make_resolver: MakeResolver = Resolver,
    ) -> None:
        host, port, literal = split_endpoint(config.control_address)
        self._network = network
        self._poller = poller
        self._identity = identity
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._speak: tuple[str, ...] = ()
        fixed = (endpoint_of(host, port),) if literal else ()
        self.choice = HeadChoice(config.suspect_after_s, fixed)
        self._resolver = None if literal else make_resolver(host, port, resolve, telemetry.counters)

    @property
    def searching(self) -> bool:
        """Whether an answer of DNS may come at any time: it makes no socket readable."""
        return self._resolver is not None and self._resolver.busy

    def turn(self, now_s: float) -> None:
        """Take answers of DNS in, dial and hang up as they ask for."""
        if self._resolver is not None:
            self.choice.looked_up(self._resolver.answer(), now_s)
        turn = self.choice.turn(now_s)
        for address in turn.drop:
            self._hang_up(address, 0)
        for address in turn.dial:
            socket = self._network.dial(
                zmq.DEALER, address, role=names.stage_role(0), identity=self._identity
            )
            self._poller.register(socket, zmq.POLLIN)
            self._sockets[address] = socket
        self._speak = turn.speak
        if turn.look_up and self._resolver is not None:
            self._resolver.ask()

    def send(self, frame: bytes) -> None:
        """To stage 0, or to all who may be it; what nobody takes is lost."""
        for address in self._speak:
            try:
                self._sockets[address].send(frame, flags=zmq.NOBLOCK)
            except zmq.Again:
                continue  # it is not there now; the next beat says it all again

    def receive(self) -> Iterator[tuple[str, bytes]]:
        """Every frame that is there now, and the address that it came from."""
        for address, socket in list(self._sockets.items()):
            while True:
                try:
                    yield address, socket.recv(flags=zmq.NOBLOCK)
                except zmq.Again:
                    break

    def close(self, *, last_word: bool = False) -> None:
        """Hang up on all; a last word has a moment to leave."""
        for address in list(self._sockets):
            self._hang_up(address, LAST_WORD_MS if last_word else 0)
        if self._resolver is not None:
            self._resolver.close()

    def _hang_up(self, address: str, linger_ms: int) -> None:
        socket = self._sockets.pop(address)
        self._poller.unregister(socket)
        self._network.forget(socket, linger_ms)
