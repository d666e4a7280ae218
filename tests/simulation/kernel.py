"""Simulated time, processes that can be killed or stopped, and their threads; nothing real.

One heap of events in order of time. A thread is a function that makes one turn of a loop; while it
is in it, its own clock may run ahead of the world's (it computes, or it waits for a connection),
and what it does from there on happens to the others when the world has come so far. So a process
that is killed in the middle of a step has not sent its result.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

Call = Callable[[], object]
NEVER = float("inf")


class Kernel:
    """The clock and what is still to happen."""

    latest: ClassVar[Kernel | None] = None  # for whoever traces

    def __init__(self) -> None:
        Kernel.latest = self
        self.now_s = 0.0
        self.running: Thread | None = None  # whose turn it is
        self.events = 0
        self._heap: list[tuple[float, int, Call]] = []
        self._count = 0

    def at(self, when_s: float, call: Call) -> None:
        """Call it at that time, after what was asked for the same time before."""
        self._count += 1
        heapq.heappush(self._heap, (max(when_s, self.now_s), self._count, call))

    def after(self, delay_s: float, call: Call) -> None:
        self.at(self.now_s + delay_s, call)

    def clock(self) -> float:
        """The time of whoever asks."""
        running = self.running
        return self.now_s if running is None else running.local_s

    def run(self, until_s: float) -> None:
        """Let things happen until that time."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(heap)
            self.events += 1
            call()
        self.now_s = max(self.now_s, until_s)


class Process:
    """One run of a program. Dead: never does anything again. Stopped: later, all of it."""

    def __init__(self, kernel: Kernel, name: str, host: str) -> None:
        self.kernel = kernel
        self.name = name
        self.host = host  # its address
        self.alive = True
        self.stopped = False
        self._delayed: list[Call] = []

    def __repr__(self) -> str:
        return self.name

    def do(self, call: Call) -> None:
        """Have an effect, as soon as the thread that makes its turn is so far."""
        kernel = self.kernel
        when_s = kernel.clock()
        if when_s <= kernel.now_s:
            call()
        else:
            kernel.at(when_s, partial(self.carry_out, call))

    def carry_out(self, call: Call) -> None:
        """Do it now if this process is scheduled."""
        if self.stopped:
            self._delayed.append(call)
        elif self.alive:
            call()

    def stop(self) -> None:
        self.stopped = True

    def go_on(self) -> None:
        self.stopped = False
        delayed, self._delayed = self._delayed, []
        for call in delayed:
            self.carry_out(call)

    def die(self) -> None:
        self.alive = self.stopped = False
        self._delayed.clear()


class Thread:
    """`turn` does one pass of a loop; its answer is the seconds that it would sleep, None for ever.

    A turn that is due while the thread is still busy comes afterwards.
    """

    def __init__(self, process: Process, turn: Callable[[], float | None]) -> None:
        self.process = process
        self.local_s = process.kernel.now_s
        self._turn = turn
        self._due_s = NEVER

    def wake(self, when_s: float = 0.0) -> None:
        """There may be something to do."""
        kernel = self.process.kernel
        due_s = max(when_s, self.local_s, kernel.now_s)
        if due_s < self._due_s:
            self._due_s = due_s
            kernel.at(due_s, partial(self._make, due_s))

    def spend(self, seconds: float) -> None:
        """Inside a turn: computing, or waiting, for so long."""
        self.local_s += seconds

    def _make(self, due_s: float) -> None:
        if due_s == self._due_s:  # else it was woken earlier
            self._due_s = NEVER
            self.process.carry_out(self._go)

    def _go(self) -> None:
        kernel = self.process.kernel
        before, kernel.running = kernel.running, self
        self.local_s = max(self.local_s, kernel.now_s)
        try:  # as `making_turn`, which takes as long as a short turn
            sleep_s = self._turn()
        finally:
            kernel.running = before
        if sleep_s is not None and self.process.alive:
            self.wake(self.local_s + sleep_s)

    @contextmanager
    def making_turn(self) -> Iterator[None]:
        """Whoever runs inside is this thread."""
        kernel = self.process.kernel
        before, kernel.running = kernel.running, self
        self.local_s = max(self.local_s, kernel.now_s)
        try:
            yield
        finally:
            kernel.running = before
