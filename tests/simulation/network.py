"""A twin of `lamella_worker.transport.Network`, and of the channel between a stage's threads.

Real links, gates and control code are built on these; they see nothing but sockets of `sockets`.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import zmq

from lamella_worker.membership.channel import ChannelEnd

from .kernel import Process, Thread
from .sockets import Dialler, Frame, Listener, Net, Pair, Pull, Router

Item = TypeVar("Item")
CREDIT_SLACK = 4


class Queue(Generic[Item]):
    """What `queue.SimpleQueue` is between threads; an item is there once its giver is so far."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        self._process.do(partial(self._items.append, item))

    def get_nowait(self) -> Item:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class Network:
    """One process's sockets. ``control`` and ``compute`` are the threads that they wake."""

    def __init__(self, net: Net, process: Process, role: str, *, credit: int) -> None:
        self._net = net
        self._process = process
        self._role = role
        self._high_water = credit + CREDIT_SLACK
        self._ports = 0
        self.sockets: list[Any] = []
        self.control: Thread | None = None
        self.compute: Thread | None = None
        self.refused = 0
        self.linger_ms = 0

    def listen(self, kind: int, address: str, *, domain: str, roles: Iterable[str]) -> Listener:
        if address.endswith(":*"):
            self._ports += 1
            address = address[:-1] + str(20000 + self._net.next_id())
        make = Pull if kind == zmq.PULL else Router
        socket = make(self._net, self._process, address, roles=tuple(roles), role=self._role)
        if kind == zmq.PULL:
            socket.high_water = self._high_water
            socket.on_readable = self._wake_compute
        else:
            socket.on_readable = self._wake_control
        self.sockets.append(socket)
        return socket

    def dial(self, kind: int, address: str, *, role: str, identity: str = "") -> Dialler:
        socket = Dialler(
            self._net,
            self._process,
            identity=identity.encode(),
            role=self._role,
            wanted_role=role,
        )
        if kind == zmq.PUSH:
            socket.high_water = self._high_water
        else:
            socket.on_readable = self._wake_control
        self.sockets.append(socket)
        socket.connect(address)
        return socket

    def role_of(self, frame: Frame) -> str:
        return frame.role

    def forget(self, socket: Any, linger_ms: int = 0) -> None:
        self.sockets.remove(socket)
        socket.close(linger=linger_ms)

    def close(self) -> None:
        for socket in list(self.sockets):
            socket.close(linger=self.linger_ms)

    def channel(self) -> tuple[ChannelEnd[Any, Any], ChannelEnd[Any, Any]]:
        """(the control thread's end, the compute thread's end)."""
        orders: Queue[Any] = Queue(self._process)
        reports: Queue[Any] = Queue(self._process)
        left, right = Pair(self._net, self._process), Pair(self._net, self._process)
        left.other, right.other = right, left
        left.on_readable, right.on_readable = self._wake_control, self._wake_compute
        control: ChannelEnd[Any, Any] = ChannelEnd(orders, reports, left)  # type: ignore[arg-type]
        compute: ChannelEnd[Any, Any] = ChannelEnd(reports, orders, right)  # type: ignore[arg-type]
        return control, compute

    def _wake_control(self) -> None:
        if self.control is not None:
            self.control.wake()

    def _wake_compute(self) -> None:
        if self.compute is not None:
            self.compute.wake()
