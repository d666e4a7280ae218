"""How a compute thread waits for its sockets: asleep, and awake just before the next frame is due.

Knows no frames. Waking a sleeping core costs 0.1 ms and more, at every hop of every token. A stage
that has a core to itself therefore learns how long its neighbours usually take, sleeps for most of
that (so that the core is free for gateway and sockets), and then asks again and again, giving way
to anyone who wants the core (`sched_yield`). What is late makes it sleep like any other.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from lamella_worker.shared_ring import SharedRing

REMEMBERED = 8
"""Waits that the shortest is taken of: the next frame is hardly ever earlier."""

SLEEP_SHARE = 0.75
"""Of the expected wait, this much is slept: a sleeper may be late by as much as a timer is."""

OVERTIME_S = 0.02
"""This long after the expected time the stage still asks, then it sleeps."""

ROUNDS_PER_REHEARSAL = 16
"""Between two rehearsals the sockets are asked this many times, about a hundred microseconds."""


class Waiter:
    """Waits for any of `sockets`. `awake` only for a stage that is pinned to a core of its own.

    `ring` is looked into as well, whatever is readable, and its bell ends a sleep; `rehearse` is
    called now and then while it is awake.
    """

    def __init__(
        self,
        sockets: Sequence[zmq.Socket[bytes]],
        *,
        awake: bool,
        ring: SharedRing | None = None,
        rehearse: Callable[[], None] = lambda: None,
    ) -> None:
        self._poller = zmq.Poller()
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)
        if ring is not None:
            self._poller.register(ring.bell, zmq.POLLIN)
        self._awake = awake
        self._ring = ring
        self._rehearse = rehearse
        self._waits_s: deque[float] = deque(maxlen=REMEMBERED)
        self._worked_s = 0.0  # monotonic; 0: no frame is expected

    def worked(self) -> None:
        """A step was computed: its neighbour's answer is to be expected."""
        if self._awake:
            self._worked_s = time.monotonic()

    def arrived(self) -> None:
        """The neighbour's answer is there (a socket may also be readable for less)."""
        if self._worked_s:
            self._waits_s.append(time.monotonic() - self._worked_s)
            self._worked_s = 0.0

    def wait(self, timeout_s: float) -> list[zmq.Socket[bytes]]:
        """The sockets that can be read; none after `timeout_s` or when the ring has a frame."""
        if self._worked_s and timeout_s:
            ready = self._wait_awake()
            if ready or self._worked_s:
                return ready
        return self._sleep(int(timeout_s * 1000))

    def _wait_awake(self) -> list[zmq.Socket[bytes]]:
        """Sleep for most of the expected wait, then ask; `_worked_s` is 0 if nothing came."""
        began_s, ring = self._worked_s, self._ring
        expected_s = min(self._waits_s, default=0.0)
        slept_s = SLEEP_SHARE * expected_s - (time.monotonic() - began_s)
        ready = self._sleep(max(0, int(1000 * slept_s)))
        rounds = 0
        while not ready and not (ring is not None and ring.pending):
            if time.monotonic() - began_s > expected_s + OVERTIME_S:
                self._worked_s = 0.0
                break
            rounds += 1
            if rounds % ROUNDS_PER_REHEARSAL == 1:
                self._rehearse()
                ready = self._ask(0)
            elif ring is None:
                ready = self._ask(0)
            os.sched_yield()
        return ready

    def _sleep(self, milliseconds: int) -> list[zmq.Socket[bytes]]:
        ring = self._ring
        if ring is None:
            return self._ask(milliseconds)
        ring.sleeps(True)
        # What came before its sender could see that we sleep must not wait for us to wake.
        ready = self._ask(0 if ring.pending else milliseconds)
        ring.sleeps(False)
        return ready

    def _ask(self, milliseconds: int) -> list[zmq.Socket[bytes]]:
        readable = [what for what, _ in self._poller.poll(milliseconds)]
        if self._ring is not None and self._ring.bell in readable:
            self._ring.silence()
            readable.remove(self._ring.bell)
        return readable
