"""A two-way pipe between the compute thread and the control thread of one stage.

Knows nothing of what it carries. Items are Python objects in a queue; an in-process ZeroMQ pair
wakes the other thread's poller, so each thread waits in one place for sockets and items alike.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Generic, TypeVar

import zmq

from lamella_worker.transport import Network

Out = TypeVar("Out")
In = TypeVar("In")


class ChannelEnd(Generic[Out, In]):
    """One thread's end: it puts `Out` and drains `In`. Each end belongs to one thread."""

    def __init__(
        self,
        outgoing: queue.SimpleQueue[Out],
        incoming: queue.SimpleQueue[In],
        socket: zmq.Socket[bytes],
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self.socket = socket

    def put(self, item: Out) -> None:
        """Hand over one item and wake the other end."""
        self._outgoing.put(item)
        try:
            self.socket.send(b"", flags=zmq.NOBLOCK)
        except zmq.Again:
            return  # the other end has a thousand wake-ups waiting already: it will drain

    def drain(self) -> Iterator[In]:
        """Every item that is there now, oldest first; also clears the wake-ups."""
        try:
            while True:
                self.socket.recv(flags=zmq.NOBLOCK)
        except zmq.Again:
            pass
        try:
            while True:
                yield self._incoming.get_nowait()
        except queue.Empty:
            return


def channel(network: Network, name: str) -> tuple[ChannelEnd[Out, In], ChannelEnd[In, Out]]:
    """Both ends of a new channel called `name` (one name per network)."""
    forth: queue.SimpleQueue[Out] = queue.SimpleQueue()
    back: queue.SimpleQueue[In] = queue.SimpleQueue()
    left, right = network.pair(name)
    return ChannelEnd(forth, back, left), ChannelEnd(back, forth, right)
