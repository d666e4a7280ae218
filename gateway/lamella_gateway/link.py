"""The socket to one replica's stage 0: requests go down, token events and its state come up.

Knows ZeroMQ, the envelope and nothing of HTTP, text or journals: the dispatcher gets messages and
two facts, "something was lost" and "something changed". One DEALER per replica, named by this
gateway's role and instance, dials the ROUTER of stage 0 with CURVE: we know stage 0's public key,
and its allow-list (ZAP) knows ours. A link is known by the address that it dials. The socket is
driven by the event loop's file readers, not by a future per message: a token costs no task here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import zmq
from zmq.utils.monitor import recv_monitor_message

from lamella_contract.errors import WireError
from lamella_contract.wire import (
    NO_INCARNATION,
    Envelope,
    Events,
    GatewayMessage,
    Hello,
    Kind,
    Message,
    PipelineStatus,
    Reject,
    decode,
    encode_gateway,
)

from .link_keys import LinkKeys

DRAINING = "draining"  # how the reason of a pipeline begins that ends what it has and goes
HELLO_EVERY_S = 1.0  # also our heartbeat: stage 0 frees the requests of a gateway that died
HELLO_OTHERS_EVERY_S = 5.0  # to stage 0s of another revision: they answer, and that is all
STATUS_FRESH_S = 1.0  # a status older than this says nothing any more
# ZeroMQ dials again after what it takes for a lost connection, not after bytes that made no sense,
# and a connection may be dead without saying so. One to a stage 0 that is stopped is left longer.
DIAL_AGAIN_S, DIAL_AGAIN_CONNECTED_S = 3.0, 10.0
# Submits wait in the socket for at most as long as TCP is slow; IMMEDIATE keeps them from waiting
# for a peer that is not there.
SEND_HIGH_WATER = 65_536
RECEIVE_HIGH_WATER = 65_536
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
RECONNECT_MS, RECONNECT_MAX_MS = 50, 500
CONNECT_MS = 500
HANDSHAKE_MS = 2_000
UNACKNOWLEDGED_MS = 10_000  # a node that lost its power says nothing, and TCP alone waits minutes
MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkNews:
    """What a link tells the dispatcher; each is called on the event loop."""

    events: Callable[[str, Events], None]
    lost: Callable[[str, str, bool], None]
    """Replica, why, and whether it had said so: what was submitted there is gone."""

    status: Callable[[str], None]  # a status came, or the link came or went
    gone: Callable[[str], None]  # the link was dropped


class Link:
    """One replica's stage 0, as this gateway sees it."""

    def __init__(
        self,
        address: str,
        *,
        identity: str,
        model_hash: bytes,
        keys: LinkKeys,
        news: LinkNews,
        context: zmq.Context[zmq.Socket[bytes]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.address = address
        self.connected = False
        self.status: PipelineStatus | None = None
        self.is_other = False  # stage 0 is there, of another model or another revision of it
        self.is_ending = False  # it said last that it drains: its end is no loss
        self.frames_refused = 0
        self._status_s = float("-inf")
        self._problem = ""
        self._model_hash = model_hash
        self._incarnation = NO_INCARNATION
        self._epoch = 0
        self._sequence = 0
        self._hello = Hello(identity.partition("/")[0], os.getpid())
        self._hello_s = float("-inf")
        self._served_s = loop.time()
        self._news = news
        self._loop = loop
        self._read_soon = False
        self._new_socket = partial(_dealer, context, identity, keys)
        self._dial()

    def ready(self, now_s: float) -> bool:
        """Whether a request submitted now would be served."""
        return (
            self.connected
            and self.status is not None
            and self.status.ready
            and now_s - self._status_s <= STATUS_FRESH_S
        )

    def reason(self, now_s: float) -> str:
        """Why it is not ready; "" when it is."""
        if not self.connected:
            return self._problem or f"no connection to stage 0 at {self.address}"
        if self.is_other:
            return f"stage 0 at {self.address} is of another revision of the model"
        if self.status is None:
            return self._problem or "stage 0 has not said how it is"
        if now_s - self._status_s > STATUS_FRESH_S:
            return f"stage 0 has been silent for {now_s - self._status_s:.1f} s"
        return "" if self.status.ready else (self.status.reason or "the pipeline is not ready")

    def drains(self, now_s: float) -> bool:
        """Whether stage 0 takes nothing new and goes on with what it has."""
        fresh = self.connected and now_s - self._status_s <= STATUS_FRESH_S
        return fresh and self.status is not None and self.status.reason.startswith(DRAINING)

    def useless_s(self, now_s: float) -> float:
        """For how long it has neither been ready nor drained, as of the last beat."""
        return now_s - self._served_s

    def requests(self) -> int:
        """How many requests stage 0 says that it has, of all gateways."""
        return 0 if self.status is None else self.status.running + self.status.waiting

    def idle(self) -> bool:
        """Whether stage 0 says that it has no request at all."""
        return self.status is not None and not self.requests()

    def send(self, message: GatewayMessage) -> bool:
        """False when there is no connection to take it."""
        envelope = Envelope(
            Kind.HELLO, self._model_hash, self._incarnation, self._epoch, self._sequence
        )
        try:
            self._socket.send(encode_gateway(envelope, message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._sequence += 1
        # sending may consume the edge that would have told us of something to read
        self._schedule_read()
        return True

    def beat(self, now_s: float) -> None:
        """Say hello if it is time to."""
        if self.ready(now_s) or self.drains(now_s):
            self._served_s = now_s
        patience_s = DIAL_AGAIN_CONNECTED_S if self.connected else DIAL_AGAIN_S
        if now_s - self._heard_s > patience_s:
            self.close(linger_ms=0)
            self._dial()
            self._unconnected("stage 0 is silent")
        every_s = HELLO_OTHERS_EVERY_S if self.is_other else HELLO_EVERY_S
        if self.connected and now_s - self._hello_s >= every_s:
            self._hello_s = now_s
            self.send(self._hello)

    def close(self, linger_ms: int = 200) -> None:
        """Hang up; what was sent gets ``linger_ms`` to leave."""
        for socket in (self._socket, self._monitor):
            self._loop.remove_reader(_option(socket, zmq.FD))
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)

    def _dial(self) -> None:
        self._heard_s = self._loop.time()  # the last sign of stage 0, or when it was dialled
        self._socket = self._new_socket()
        self._monitor = self._socket.get_monitor_socket(MONITORED)
        for socket, read in ((self._socket, self._readable), (self._monitor, self._monitored)):
            self._loop.add_reader(_option(socket, zmq.FD), read)
        self._socket.setsockopt(zmq.IPV6, int("[" in self.address))
        self._socket.connect(self.address)
        self._loop.call_soon(self._monitored)

    def _unconnected(self, why: str) -> None:
        """What was submitted on a connection that is gone goes out again."""
        if self.connected:
            self.connected = self.is_other = False
            self.status = None
            self._news.lost(self.address, why, self.is_ending)

    def _schedule_read(self) -> None:
        if not self._read_soon:
            self._read_soon = True
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        # The descriptor is edge-triggered: read until there is nothing, or be woken no more.
        self._read_soon = False
        while not self._socket.closed:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if not frame:
                continue  # an envelope's delimiter, should stage 0 send one
            try:
                self._receive(*decode(frame))
            except WireError as reason:
                self.frames_refused += 1
                self._problem = f"stage 0 sent what is no frame of this version: {reason}"
                _log.warning("a frame was refused", extra={"why": str(reason)})

    def _receive(self, envelope: Envelope, message: Message) -> None:
        self._heard_s = self._loop.time()
        if isinstance(message, Reject):
            self._refused(f"stage 0 refuses this gateway: {message.reason}")
            return
        if envelope.config_hash != self._model_hash:
            self._other()
            return
        self.is_other = False
        self._follow(envelope)
        if isinstance(message, Events):
            self._news.events(self.address, message)
        elif isinstance(message, PipelineStatus):
            self._problem = ""
            self.status = message
            self.is_ending = message.reason.startswith(DRAINING)
            self._status_s = self._loop.time()
            self._news.status(self.address)

    def _other(self) -> None:
        """During a roll-out stage 0s of both revisions are there: no failure, and no use."""
        if not self.is_other:
            self.is_other = True
            self.status = None
            _log.info("a pipeline is of another revision", extra={"address": self.address})
            self._news.status(self.address)

    def _follow(self, envelope: Envelope) -> None:
        """A new incarnation of stage 0 has forgotten every request."""
        old = self._incarnation
        if envelope.incarnation != old and envelope.incarnation != NO_INCARNATION:
            self._incarnation = envelope.incarnation
            self._epoch = envelope.epoch
            if old != NO_INCARNATION:
                self.status = None
                self._news.lost(self.address, "stage 0 was started anew", self.is_ending)
        self._epoch = max(self._epoch, envelope.epoch)

    def _refused(self, problem: str) -> None:
        self.frames_refused += 1
        if problem != self._problem:
            _log.error("a replica is of no use", extra={"address": self.address, "why": problem})
        self._problem = problem
        self.status = None
        self._news.status(self.address)

    def _monitored(self) -> None:
        while not self._socket.closed and _option(self._monitor, zmq.EVENTS) & zmq.POLLIN:
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
                self._heard_s = self._loop.time()
                self._problem = ""
                self._hello_s = float("-inf")
                self.beat(self._loop.time())
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._problem = "stage 0 does not accept this gateway's key"
            else:
                self._unconnected("the connection to stage 0 was lost")
            self._news.status(self.address)


def _dealer(
    context: zmq.Context[zmq.Socket[bytes]], identity: str, keys: LinkKeys
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # a request for a peer that is not there is not queued
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_MS)
    return socket


def _option(socket: zmq.Socket[bytes], option: int) -> int:
    value = socket.getsockopt(option)
    assert isinstance(value, int)
    return value
