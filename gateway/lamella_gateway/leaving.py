"""How a gateway ends when it is asked to: in steps, each as late as the next one allows.

Knows the server, the dispatcher and times; no requests. With ``drain_s`` of more than a few seconds
other processes still send new requests here for a while, for they learn late that this one leaves
(a cluster takes the address out of its tables while the signal is on its way).

1. /readyz says no; every response closes its connection.
2. After the grace nothing new is taken: the port is closed, idle connections too.
3. Ends as soon as nothing is live; after ``drain_s`` what is live ends with an error.
"""

from __future__ import annotations

import asyncio
import logging

import uvicorn

from .service import Gateway

LONG_DRAIN_S = 10.0  # with less there is nobody who learns late, or no time for it
GRACE_S = 5.0
FORCE_AFTER_S = 0.4  # after the last step open connections are dropped
STUCK_S = 5.0  # a connection on which no request is live for so long does not hold the process
LOOK_S = 0.2

_log = logging.getLogger(__name__)


class Leaving:
    """Used on the event loop alone."""

    def __init__(
        self, gateway: Gateway, server: uvicorn.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._gateway = gateway
        self._server = server
        self._loop = loop
        self._idle_s = 0.0

    def begin(self) -> None:
        """Asked to end. A second time: no grace any more."""
        gateway, drain_s = self._gateway, self._gateway.config.drain_s
        if gateway.leaving:
            self._take_no_more()
            return
        gateway.leaving = True
        _log.info("leaving", extra={"live": len(gateway.dispatcher), "drain_s": drain_s})
        if drain_s > LONG_DRAIN_S:
            self._loop.call_later(GRACE_S, self._take_no_more)
        else:
            self._take_no_more()
        self._loop.call_later(drain_s, gateway.dispatcher.end_all)
        self._loop.call_later(drain_s + FORCE_AFTER_S, self._force)

    def at_once(self) -> None:
        """There is nobody to serve for, or nothing to serve with."""
        self._gateway.leaving = True
        self._take_no_more()
        self._gateway.dispatcher.end_all()
        self._loop.call_later(FORCE_AFTER_S, self._force)

    def _take_no_more(self) -> None:
        if not self._gateway.dispatcher.draining:
            self._gateway.dispatcher.draining = True
            self._server.should_exit = True
            self._look()

    def _look(self) -> None:
        """Clients that sent half a request, or do not read an answer, hold nothing."""
        self._idle_s = 0.0 if self._gateway.live() else self._idle_s + LOOK_S
        if self._idle_s >= STUCK_S:
            self._force()
        else:
            self._loop.call_later(LOOK_S, self._look)

    def _force(self) -> None:
        self._server.force_exit = True
