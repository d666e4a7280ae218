"""How a compute thread waits for its sockets: asleep, or awake for a moment after work.

Knows no frames. Waking a sleeping core costs 0.1 ms and more, at every hop of every token. A stage
that has a core to itself therefore goes on asking for a short while after its last step, giving the
core to anyone who wants it (`sched_yield`) between two questions; then it sleeps like any other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import zmq

ACTIVE_S = 0.05
"""How long after a step an awake stage goes on asking: longer than a neighbour's decode step."""

ROUNDS_PER_REHEARSAL = 64
"""Between two rehearsals the sockets are asked this many times, a few hundred microseconds."""


class Waiter:
    """Waits for any of `sockets`. `awake` only for a stage that is pinned to a core of its own."""

    def __init__(
        self,
        sockets: Sequence[zmq.Socket[bytes]],
        *,
        awake: bool,
        rehearse: Callable[[], None] = lambda: None,
    ) -> None:
        self._rehearse = rehearse
        self._poller = zmq.Poller()
        for socket in sockets:
            self._poller.register(socket, zmq.POLLIN)
        self._active_s = ACTIVE_S if awake else 0.0
        self._active_until_s = 0.0

    def worked(self) -> None:
        """A step was computed: its neighbour's answer is near."""
        if self._active_s:
            self._active_until_s = time.monotonic() + self._active_s

    def wait(self, timeout_s: float) -> list[zmq.Socket[bytes]]:
        """The sockets that can be read, none after `timeout_s`."""
        poll = self._poller.poll
        rounds = 0
        while time.monotonic() < self._active_until_s:
            ready = poll(0)
            if ready:
                return [socket for socket, _ in ready]
            rounds += 1
            if rounds % ROUNDS_PER_REHEARSAL == 0:
                self._rehearse()
            os.sched_yield()
        return [socket for socket, _ in poll(int(timeout_s * 1000))]
