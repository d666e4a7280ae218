"""How far a model's bytes have come: done, total, speed, time left.

Knows no source and no file. Whoever reads slices says what it expects, whoever moves bytes says
what came; /status and progress bars take snapshots from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """One moment of a load. Bytes and bytes per second; ``eta_s`` None while nothing moves.

    ``fetched_bytes`` of ``bytes_done`` came over the network; the rest lay on this machine.
    ``retries`` counts transfers that were cut or stalled and taken up again.
    """

    bytes_done: int
    bytes_total: int
    bytes_per_s: float
    eta_s: float | None
    fetched_bytes: int = 0
    retries: int = 0


class Progress:
    """Counts bytes from many threads.

    ``on_change`` is called with a snapshot at most every ``interval_s`` and once when all that was
    expected has come, from the thread that moved the bytes and with no lock held. Speed is the mean
    over the last ``window_s`` seconds, so that a stall shows as a falling speed at once.
    """

    def __init__(
        self,
        on_change: Callable[[ProgressSnapshot], None] | None = None,
        *,
        interval_s: float = 0.25,
        window_s: float = 10.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._on_change = on_change
        self._interval_s = interval_s
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._done = self._total = self._planned = self._fetched = self._retries = 0
        # (time, bytes done by then), oldest first; thinned so that a window holds few of them.
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._told_s = float("-inf")

    def plan(self, bytes_total: int) -> None:
        """``bytes_total`` bytes will be read in several goes; the `expect` of each draws on them.

        So a load that reads layer by layer knows its end from the start.
        """
        with self._lock:
            self._restart_clock()
            self._planned += bytes_total
            self._total += bytes_total

    def expect(self, bytes_total: int) -> None:
        """``bytes_total`` more bytes are going to be read now."""
        with self._lock:
            self._restart_clock()
            drawn = min(bytes_total, self._planned)
            self._planned -= drawn
            self._total += bytes_total - drawn

    def advance(self, bytes_done: int, *, fetched: bool = False) -> None:
        """``bytes_done`` more of the expected bytes are in memory."""
        with self._lock:
            now_s = self._clock()
            self._done += bytes_done
            self._mark(now_s)
            if fetched:
                self._fetched += bytes_done
            finished = self._total > 0 and self._done >= self._total
            due = now_s - self._told_s >= self._interval_s or finished
            if self._on_change is None or not due:
                return
            self._told_s = now_s
            snapshot = self._snapshot(now_s)
        self._on_change(snapshot)

    def retried(self) -> None:
        """A transfer broke and is taken up again."""
        with self._lock:
            self._retries += 1

    def snapshot(self) -> ProgressSnapshot:
        """The present state; any thread."""
        with self._lock:
            return self._snapshot(self._clock())

    def _restart_clock(self) -> None:
        """Time before the first byte was asked for is no part of the speed."""
        if self._done == 0:
            self._marks = deque([(self._clock(), 0)])

    def _mark(self, now_s: float) -> None:
        marks = self._marks
        if len(marks) > 1 and now_s - marks[-2][0] < self._window_s / 50:
            marks[-1] = (now_s, self._done)
        else:
            marks.append((now_s, self._done))
        while len(marks) > 2 and marks[1][0] <= now_s - self._window_s:
            marks.popleft()

    def _snapshot(self, now_s: float) -> ProgressSnapshot:
        # The newest mark that is at least a window old; before that, the start.
        since_s, done_then = self._marks[0]
        for mark_s, done in self._marks:
            if mark_s > now_s - self._window_s:
                break
            since_s, done_then = mark_s, done
        elapsed_s = now_s - since_s
        speed = (self._done - done_then) / elapsed_s if elapsed_s > 0 else 0.0
        left = max(0, self._total - self._done)
        eta_s = 0.0 if left == 0 else (left / speed if speed > 0 else None)
        return ProgressSnapshot(
            self._done,
            max(self._total, self._done),  # headers may be read before anything was expected
            speed,
            eta_s,
            self._fetched,
            self._retries,
        )
