"""A twin of libzmq: sockets, connections, and a network that delays, cuts and forgets.

What it keeps of the original is what a protocol can rely on and what it cannot. A connection is
TCP: in order, nothing twice, held back while the way is cut, gone when an end dies. A PUSH or
DEALER with IMMEDIATE queues nothing for a peer that is not there; a ROUTER drops what nobody takes
and gives an identity to whoever came last. What is on its way when a link is torn may arrive or
not, also after what a newer connection brings. `tricks` on a pipe do what TCP would not.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import zmq

from .kernel import Kernel, Process

Parts = list[bytes]

HANDSHAKE_S = 0.002
RETRY_S = (0.1, 0.2, 0.4, 0.8, 1.0)
UNACKNOWLEDGED_S = 10.0  # of sockets that ask for it
DEFAULT_HIGH_WATER = 1000
NOTHING = zmq.Again()
"""Made once, which costs more than all else of a receive; raised without the traceback of before,
which would grow for ever."""
REMEMBERED = 300  # frames of each listener that may come again
HELD_BACK_S = 0.05  # what a trick holds back for the next frame goes after so long anyway


class Net:
    """All hosts, who listens where, and which ways are cut."""

    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.kernel = kernel
        self.listeners: dict[str, Listener] = {}
        self.cuts: dict[tuple[str, str], int] = {}
        self.silent: set[str] = set()  # hosts without power: they do not even close connections
        self.connections: dict[int, Connection] = {}
        self.random = random.Random(seed)
        self.slow_s: dict[tuple[str, str], float] = {}
        self._ids = 0
        self.most_queued = 0

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def is_cut(self, source: str, target: str) -> bool:
        return bool(self.cuts) and self.cuts.get((source, target), 0) > 0

    def cut(self, source: str, target: str) -> None:
        """One direction."""
        self.cuts[source, target] = self.cuts.get((source, target), 0) + 1

    def heal(self, source: str, target: str) -> None:
        left = self.cuts.get((source, target), 0) - 1
        self.cuts[source, target] = max(0, left)
        self.flow()

    def flow(self) -> None:
        """Ways may be open again: what waited goes on."""
        for connection in list(self.connections.values()):
            connection.down.pump()
            connection.up.pump()

    def latency_s(self, pipe: Pipe) -> float:
        pipe.sent += 1
        mixed = (pipe.id * 2_654_435_761 + pipe.sent * 40_503) & 0xFFFF
        return 0.00005 + mixed * 5e-9 + self.slow_s.get((pipe.source.host, pipe.target.host), 0.0)

    def died(self, process: Process, *, silently: bool) -> None:
        """A process is gone: so are its sockets. `silently`: nobody is told (no power)."""
        for address, listener in list(self.listeners.items()):
            if listener.process is process:
                del self.listeners[address]
        for connection in list(self.connections.values()):
            if process in (connection.dialler.process, connection.listener.process):
                if silently:
                    connection.half_dead = True
                else:
                    connection.break_off()


@dataclass(eq=False)
class Pipe:
    """One direction of a connection."""

    net: Net
    id: int
    source: Process
    target: Process
    limit: int
    arrive: Callable[[Parts], None]
    connection: Connection | None = None
    sent: int = 0
    queue: deque[tuple[float, Parts]] = field(default_factory=deque)
    tricks: deque[str] = field(default_factory=deque)
    held_back: Parts | None = None
    last_s: float = 0.0
    over: bool = False

    def put(self, parts: Parts) -> None:
        """Send, unless a trick is played on this frame."""
        trick = self.tricks.popleft() if self.tricks else ""
        if trick == "drop":
            return
        if trick == "garble":
            parts = [parts[0][: len(parts[0]) // 2], *parts[1:]]
        if trick == "swap" and self.held_back is None:
            self.held_back = parts
            self.net.kernel.after(HELD_BACK_S, self._let_go)
            return
        self._enqueue(parts)
        if trick == "double":
            self._enqueue(parts)
        if self.held_back is not None:
            self._let_go()

    def _let_go(self) -> None:
        held, self.held_back = self.held_back, None
        if held is not None and not self.over:
            self._enqueue(held)

    def _enqueue(self, parts: Parts) -> None:
        kernel = self.net.kernel
        self.last_s = max(self.last_s, kernel.now_s + self.net.latency_s(self))
        self.queue.append((self.last_s, parts))
        self.net.most_queued = max(self.net.most_queued, len(self.queue))
        kernel.at(self.last_s, self.pump)
        connection = self.connection
        if connection is not None and connection.impatient and self.blocked:
            kernel.after(UNACKNOWLEDGED_S, partial(self._give_up, self.last_s))

    def _give_up(self, since_s: float) -> None:
        if not self.over and self.queue and self.queue[0][0] <= since_s and self.blocked:
            assert self.connection is not None
            self.connection.break_off()

    @property
    def pending(self) -> int:
        """Frames that count against the high-water marks."""
        assert self.connection is not None
        return len(self.queue) + len(self.connection.listener.inbox)

    @property
    def blocked(self) -> bool:
        net = self.net
        half_dead = self.connection is not None and self.connection.half_dead
        return (
            half_dead
            or self.target.stopped
            or net.is_cut(self.source.host, self.target.host)
            or not self.target.alive
        )

    def pump(self) -> None:
        """Deliver what has arrived."""
        if not self.queue or self.blocked:
            return
        now_s = self.net.kernel.now_s
        while self.queue and self.queue[0][0] <= now_s:
            self.arrive(self.queue.popleft()[1])

    def end(self, *, whole: bool = False) -> None:
        """The connection is torn: of what is on its way some arrives, in order, the rest never."""
        self.over = True
        arrives = len(self.queue)
        if not whole and arrives:
            arrives = self.net.random.randint(0, arrives)
        rest, self.queue = list(self.queue)[:arrives], deque()
        for when_s, parts in rest:
            if not self.blocked:
                self.net.kernel.at(when_s, partial(self._late, parts))

    def _late(self, parts: Parts) -> None:
        if self.target.alive and not self.target.stopped:
            self.arrive(parts)


class Connection:
    """Between a socket that dialled and one that listens."""

    def __init__(self, net: Net, dialler: Dialler, listener: Listener) -> None:
        self.net = net
        self.id = net.next_id()
        self.dialler = dialler
        self.listener = listener
        self.identity = dialler.identity or b"\0" + self.id.to_bytes(4, "big")
        self.half_dead = False
        self.impatient = dialler.impatient
        self.is_open = True
        most = dialler.high_water + listener.high_water
        self.up = Pipe(
            net,
            net.next_id(),
            dialler.process,
            listener.process,
            most,
            lambda parts: listener.arrive(self, parts),
            self,
        )
        self.down = Pipe(
            net, net.next_id(), listener.process, dialler.process, most, dialler.arrive, self
        )
        net.connections[self.id] = self

    def break_off(self, *, whole: bool = False) -> None:
        """Both ends learn that it is gone; `whole`: what the dialler has sent gets there first."""
        if not self.is_open:
            return
        self.is_open = False
        del self.net.connections[self.id]
        self.up.end(whole=whole)
        self.down.end()
        self.listener.left(self)
        self.dialler.lost(self)


class Frame:
    """A received frame, as pyzmq gives one without a copy."""

    def __init__(self, buffer: bytes, role: str) -> None:
        self.buffer = memoryview(buffer)
        self.role = role


class Socket:
    """What all sockets have: an inbox, and somebody to wake."""

    def __init__(self, net: Net, process: Process) -> None:
        self.net = net
        self.process = process
        self.closed = False
        self.on_readable: Callable[[], None] = lambda: None
        self.inbox: deque[list[Any]] = deque()
        self.most_read = 0
        self._rest: list[Any] = []
        self._sending: Parts = []
        self.last_endpoint = b""

    def _came(self, message: list[Any]) -> None:
        if not self.closed:
            self.inbox.append(message)
            self.most_read = max(self.most_read, len(self.inbox))
            self.on_readable()

    # -- as pyzmq names them -------------------------------------------------------------------

    @property
    def rcvmore(self) -> bool:
        return bool(self._rest)

    def recv(self, flags: int = 0, copy: bool = True) -> Any:
        if not self._rest:
            if not self.inbox:
                raise NOTHING.with_traceback(None)
            self._rest = self.inbox.popleft()
        part = self._rest.pop(0)
        return part

    def send(self, data: Any, flags: int = 0) -> None:
        if not self._sending and not self._takes():
            raise NOTHING.with_traceback(None)
        self._sending.append(bytes(data))
        if not flags & zmq.SNDMORE:
            parts, self._sending = self._sending, []
            self.process.do(partial(self._put, parts))

    def _takes(self) -> bool:
        raise NotImplementedError

    def _put(self, parts: Parts) -> None:
        raise NotImplementedError

    def close(self, linger: int = 0) -> None:
        self.closed = True

    def getsockopt(self, option: int) -> int:
        if option == zmq.FD:
            return id(self)
        assert option == zmq.EVENTS
        return zmq.POLLIN if self.inbox else 0


class Pair(Socket):
    """One end of an in-process pipe."""

    other: Pair

    def _takes(self) -> bool:
        return len(self.other.inbox) < DEFAULT_HIGH_WATER

    def _put(self, parts: Parts) -> None:
        self.other._came(list(parts))


class Listener(Socket):
    """PULL or ROUTER, bound."""

    def __init__(
        self, net: Net, process: Process, address: str, *, roles: tuple[str, ...], role: str
    ) -> None:
        super().__init__(net, process)
        self.address = address
        self.role = role
        self.roles = roles
        self.high_water = DEFAULT_HIGH_WATER
        self.last_endpoint = address.encode()
        assert address not in net.listeners, f"{address} is taken"
        net.listeners[address] = self

    def close(self, linger: int = 0) -> None:
        super().close(linger)
        self.net.listeners.pop(self.address, None)
        for connection in list(self.net.connections.values()):
            if connection.listener is self:
                connection.break_off()

    def entered(self, connection: Connection) -> None:
        """A peer has connected."""

    def left(self, connection: Connection) -> None:
        """A peer's connection is gone."""

    def arrive(self, connection: Connection, parts: Parts) -> None:
        raise NotImplementedError


class Pull(Listener):
    """Frames of whoever pushes."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.heard: deque[Parts] = deque(maxlen=REMEMBERED)

    def arrive(self, connection: Connection, parts: Parts) -> None:
        self.heard.append(parts)
        self._came(list(parts))

    def again(self, parts: Parts) -> None:
        """A frame of before comes once more, whatever has become of its link."""
        self._came(list(parts))

    def _takes(self) -> bool:
        return False


class Router(Listener):
    """Frames with their sender's identity; the newest connection has it."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.peers: dict[bytes, Connection] = {}

    def entered(self, connection: Connection) -> None:
        old = self.peers.get(connection.identity)
        self.peers[connection.identity] = connection
        if old is not None and old.is_open:
            old.identity = b"\0" + old.id.to_bytes(4, "big")
            old.break_off()

    def left(self, connection: Connection) -> None:
        if self.peers.get(connection.identity) is connection:
            del self.peers[connection.identity]

    def arrive(self, connection: Connection, parts: Parts) -> None:
        self._came([connection.identity, Frame(parts[0], connection.dialler.role)])

    def send_multipart(self, parts: list[bytes], flags: int = 0) -> None:
        identity, *rest = parts
        self.process.do(partial(self._put_to, identity, rest))

    def _put_to(self, identity: bytes, parts: Parts) -> None:
        connection = self.peers.get(identity)
        if connection is not None and len(connection.down.queue) < connection.down.limit:
            connection.down.put(parts)


class Dialler(Socket):
    """PUSH or DEALER, connected to one address; it dials again and again."""

    def __init__(
        self,
        net: Net,
        process: Process,
        *,
        identity: bytes = b"",
        role: str,
        wanted_role: str,
        impatient: bool = False,
    ) -> None:
        super().__init__(net, process)
        self.identity = identity
        self.role = role
        self.wanted_role = wanted_role
        self.impatient = impatient
        self.high_water = DEFAULT_HIGH_WATER
        self.connection: Connection | None = None
        self.address = ""
        self.on_event: Callable[[int], None] = lambda event: None
        self._tries = 0

    def connect(self, address: str) -> None:
        self.address = address
        self.process.do(lambda: self.net.kernel.after(HANDSHAKE_S, self._try))

    def _try(self) -> None:
        if self.closed or not self.process.alive or self.connection is not None:
            return
        if self.process.stopped:
            self.process.carry_out(self._try)
        elif self.can_connect():
            self._tries = 0
            self._connected()
        else:
            wait_s = RETRY_S[min(self._tries, len(RETRY_S) - 1)]
            self._tries += 1
            self.net.kernel.after(wait_s, self._try)

    def can_connect(self) -> bool:
        net, listener = self.net, self.net.listeners.get(self.address)
        if listener is None or listener.process.stopped:
            return False
        here, there = self.process.host, listener.process.host
        return (
            not net.is_cut(here, there)
            and not net.is_cut(there, here)
            and listener.role == self.wanted_role
            and self.role in listener.roles
        )

    def _connected(self) -> None:
        listener = self.net.listeners[self.address]
        self.connection = Connection(self.net, self, listener)
        listener.entered(self.connection)
        self.on_event(zmq.EVENT_HANDSHAKE_SUCCEEDED)

    def lost(self, connection: Connection) -> None:
        """The connection is gone: dial anew."""
        if self.connection is connection:
            self.connection = None
            if self.process.alive and not self.closed:
                self.process.carry_out(lambda: self.on_event(zmq.EVENT_DISCONNECTED))
                self.net.kernel.after(RETRY_S[0], self._try)

    def arrive(self, parts: Parts) -> None:
        self._came(list(parts))

    def poll(self, timeout_ms: int, flags: int = zmq.POLLIN) -> int:
        """Wait until it is connected. What would change meanwhile is not foreseen."""
        assert flags == zmq.POLLOUT
        thread = self.net.kernel.running
        assert thread is not None
        if self.connection is None and self.can_connect():
            thread.spend(HANDSHAKE_S)
            self._connected()
        if self.connection is None:
            thread.spend(timeout_ms / 1000)
        return zmq.POLLOUT if self.connection is not None else 0

    def _takes(self) -> bool:
        connection = self.connection
        if connection is None:
            return False
        if connection.half_dead and self.address in self.net.listeners:
            connection.break_off()  # another process has the address: it knows no such connection
            return False
        return connection.up.pending < connection.up.limit

    def _put(self, parts: Parts) -> None:
        if self.connection is not None:
            self.connection.up.put(parts)

    def close(self, linger: int = 0) -> None:
        super().close(linger)
        if self.connection is not None:
            self.process.do(partial(self.connection.break_off, whole=linger > 0))
