"""The worker's sockets: who may dial whom, and how a frame with tensors crosses.

Knows no layers, steps or epochs: a frame is a header and buffers. PULL binds and PUSH connects to
exactly one endpoint (a PUSH with two peers deals frames out between them). Every listening socket
is a CURVE server *with* an allow-list asked through ZAP: CURVE alone lets in any client that knows
the server's public key. Flow: `stage` and `head` own data sockets, `control` owns the rest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import zmq
from zmq.auth.thread import ThreadAuthenticator

from lamella_contract.errors import InvalidConfig
from lamella_worker.shared_ring import ByRing, SharedRing, digest

log = logging.getLogger(__name__)

MAX_PART_BYTES = 256 * 1024
"""Encryption is per frame and not overlapped with sending, so tensors travel in parts."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""No part of any message is larger: adoptions carry at most a context's ids."""

CREDIT_SLACK = 4
"""The high-water mark sits above the scheduler's credit, so it is never reached: PUSH would block
or drop there, and a full receiver stops answering."""

RING_MARK = "#ring="
"""Between a data address's endpoint and the place of its ring."""

Buffer = bytes | memoryview


class FrameSender(Protocol):
    """One direction of a data link, the sending end."""

    def send(self, header: bytes, tensors: Sequence[memoryview] = ()) -> bool:
        """Queue one frame without blocking; False if no peer takes it (the frame is lost)."""
        ...


class FrameReceiver(Protocol):
    """One direction of a data link, the receiving end."""

    def receive(self) -> list[memoryview] | None:
        """The next frame's parts, header first, or None when there is none now."""
        ...


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair in z85 (40 characters each)."""

    public: bytes
    secret: bytes

    @classmethod
    def load(cls, path: str) -> KeyPair:
        """Read `{"public": ..., "secret": ...}`; InvalidConfig says what is wrong with the file."""
        try:
            document = json.loads(Path(path).read_text())
            return cls(document["public"].encode("ascii"), document["secret"].encode("ascii"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = 'a readable JSON file with "public" and "secret"'
            raise InvalidConfig(f"key_file={path!r}: wanted {wanted} ({error})") from error


class AllowList:
    """ZAP's question for one listening socket: is this client's public key one of these?"""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = frozenset(keys)
        self.refused = 0

    def callback(self, domain: str, key: bytes) -> bool:
        allowed = key in self._keys
        if not allowed:
            self.refused += 1
            log.warning("a peer without an allowed key was refused", extra={"domain": domain})
        return allowed


class Network:
    """One ZeroMQ context, this process's keys, and the roles' public keys."""

    def __init__(self, keys: KeyPair, peer_keys: Mapping[str, str], *, credit: int) -> None:
        self._keys = keys
        self._peer_keys = {role: key.encode("ascii") for role, key in peer_keys.items()}
        self._roles = {key: role for role, key in self._peer_keys.items()}
        self._high_water = credit + CREDIT_SLACK
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = ThreadAuthenticator(self.context)
        self._zap.start()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._allowed: dict[str, AllowList] = {}
        self.linger_ms = 0

    def listen(
        self, kind: int, address: str, *, domain: str, roles: Iterable[str]
    ) -> zmq.Socket[bytes]:
        """A bound CURVE server socket that only holders of `roles`' keys can reach."""
        allowed = AllowList(self._key_of(role) for role in roles)
        self._allowed[domain] = allowed
        self._zap.configure_curve_callback(domain=domain, credentials_provider=allowed)
        socket = self._socket(kind)
        socket.curve_server = True
        socket.curve_publickey = self._keys.public
        socket.curve_secretkey = self._keys.secret
        socket.zap_domain = domain.encode("ascii")
        if kind == zmq.ROUTER:
            socket.router_handover = 1  # a restarted peer takes its identity over at once
        socket.ipv6 = is_ipv6(address)
        socket.bind(address)
        return socket

    def dial(self, kind: int, address: str, *, role: str, identity: str = "") -> zmq.Socket[bytes]:
        """A CURVE client socket connected to exactly the one peer that holds `role`'s key."""
        socket = self._socket(kind)
        socket.curve_serverkey = self._key_of(role)
        socket.curve_publickey = self._keys.public
        socket.curve_secretkey = self._keys.secret
        socket.immediate = 1  # queue only to a peer whose handshake is done, never to a guess
        socket.ipv6 = is_ipv6(address)
        socket.connect_timeout = 500
        socket.reconnect_ivl = 100
        socket.reconnect_ivl_max = 1000
        if identity:
            socket.identity = identity.encode("ascii")
        socket.connect(address)
        return socket

    def pair(self, name: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Two ends of an in-process pipe that wakes a poller of another thread."""
        left, right = self.context.socket(zmq.PAIR), self.context.socket(zmq.PAIR)
        left.linger = right.linger = 0
        left.bind(f"inproc://{name}")
        right.connect(f"inproc://{name}")
        self._sockets += [left, right]
        return left, right

    def role_of(self, frame: zmq.Frame) -> str:
        """The role whose key sent this frame, as the handshake proved it; "" if unknown."""
        try:
            user: Any = frame.get("User-Id")
        except zmq.ZMQError:
            return ""
        return self._roles.get(user.encode("ascii"), "")

    @property
    def refused(self) -> int:
        """Handshakes refused since the start, over all sockets."""
        return sum(allowed.refused for allowed in self._allowed.values())

    def close(self) -> None:
        """Close every socket without waiting for unsent frames, then the context.

        `linger_ms` is the time that what was sent last has to leave.
        """
        for socket in self._sockets:
            socket.close(linger=self.linger_ms)
        self._zap.stop()
        self.context.term()

    def forget(self, socket: zmq.Socket[bytes], linger_ms: int = 0) -> None:
        """Close one socket early: its link is dialled anew, or has said its last word."""
        self._sockets.remove(socket)
        socket.close(linger=linger_ms)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        if kind in (zmq.PUSH, zmq.PULL):
            socket.sndhwm = socket.rcvhwm = self._high_water
        self._sockets.append(socket)
        return socket

    def _key_of(self, role: str) -> bytes:
        try:
            return self._peer_keys[role]
        except KeyError:
            raise InvalidConfig(
                f"peer_keys: got keys of {sorted(self._peer_keys)}, want one of {role}"
            ) from None


class PushLink:
    """The sending end of a data link: ZeroMQ PUSH, and a ring beside it where both share a host."""

    def __init__(self, socket: zmq.Socket[bytes], ring: SharedRing | None = None) -> None:
        self._socket = socket
        self._ring = ring
        if ring is not None:
            ring.begin()

    @property
    def socket(self) -> zmq.Socket[bytes]:
        return self._socket

    def wait_connected(self, timeout_s: float) -> bool:
        """True once the peer's handshake is done: an IMMEDIATE socket is writable only then."""
        return bool(self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT))

    def send(self, header: bytes, tensors: Sequence[memoryview] = ()) -> bool:
        parts: list[Buffer] = [header]
        for tensor in tensors:
            parts += split_parts(tensor)
        ring = self._ring
        if ring is None:
            return self._send(parts)
        if not ring.fits(parts):
            return ring.announce(header) and self._send(parts)
        if not ring.publish(parts):
            return False
        # A reader that falls asleep at this very moment is late by its longest wait, and nothing is
        # lost.
        ring.wake()
        return True

    def _send(self, parts: list[Buffer]) -> bool:
        send, last = self._socket.send, parts.pop()
        try:
            # Copied into libzmq: CURVE copies anyway, and a reused buffer can then not be torn.
            # Only the first part can be refused: libzmq takes a message whole or not at all.
            for part in parts:
                send(part, zmq.NOBLOCK | zmq.SNDMORE)
            send(last, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close_ring(self) -> None:
        """The link ends; its socket is closed by `Network.forget`."""
        if self._ring is not None:
            self._ring.close()


class PullLink:
    """The receiving end of a data link: ZeroMQ PULL, and this process's ring if it has one."""

    def __init__(self, socket: zmq.Socket[bytes], ring: SharedRing | None = None) -> None:
        self._socket = socket
        self.ring = ring

    @property
    def socket(self) -> zmq.Socket[bytes]:
        return self._socket

    @property
    def address(self) -> str:
        """Where others dial this end: the port that the system chose, then the ring if any."""
        endpoint = self._socket.last_endpoint
        assert isinstance(endpoint, bytes)
        ring = f"{RING_MARK}{self.ring.address}" if self.ring is not None else ""
        return endpoint.decode("ascii") + ring

    def receive(self) -> list[memoryview] | None:
        ring = self.ring
        if ring is None:
            return self._receive()
        frame = ring.peek()
        if isinstance(frame, ByRing):
            ring.take()
            return frame.parts
        while (parts := self._receive()) is not None:
            if frame is None:
                return parts  # from a sender that does not reach the ring
            if digest(parts[0]) == frame.digest:  # else a stale one that lay before ours
                ring.take()
                return parts
        return None

    def _receive(self) -> list[memoryview] | None:
        try:
            parts = [self._socket.recv(flags=zmq.NOBLOCK)]
        except zmq.Again:
            return None
        # A message is atomic, so its other parts are there; asking for them without waiting can
        # still be refused for an instant, and the first part would be lost.
        while self._socket.rcvmore:
            parts.append(self._socket.recv())
        return [memoryview(part) for part in parts]


def split_address(address: str) -> tuple[str, SharedRing | None]:
    """A data address as its endpoint and its ring, if that can be reached from here."""
    endpoint, _, ring = address.partition(RING_MARK)
    return endpoint, SharedRing.open(ring) if ring else None


def is_ipv6(address: str) -> bool:
    """Whether an endpoint's host is an IPv6 literal: ZeroMQ must be told before it binds or
    dials."""
    return address.count(":") > 2


def split_parts(tensor: memoryview) -> list[memoryview]:
    """Cut a flat byte view into parts of at most MAX_PART_BYTES; an empty tensor is one part."""
    size = max(tensor.nbytes, 1)
    return [tensor[at : at + MAX_PART_BYTES] for at in range(0, size, MAX_PART_BYTES)]


def send_to(router: zmq.Socket[bytes], identity: bytes, frame: bytes) -> None:
    """Send one frame through a ROUTER; nothing is waited for."""
    try:
        router.send_multipart([identity, frame], flags=zmq.NOBLOCK)
    except zmq.Again:
        return  # the peer reads nothing: it will notice the gap, or is noticed as silent


def receive_from(router: zmq.Socket[bytes]) -> tuple[bytes, zmq.Frame] | None:
    """The next (identity, frame) of a ROUTER, or None when there is none now."""
    try:
        identity = router.recv(flags=zmq.NOBLOCK)
    except zmq.Again:
        return None
    frame = router.recv(copy=False)
    while router.rcvmore:  # none of our frames has more parts: a peer's mistake, refused later
        frame = router.recv(copy=False)
    return identity, frame
