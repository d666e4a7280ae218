"""Keys of models to look at: each at most once in the queue, and at most once at work.

A key that is added while it is at work comes again when that is done. Failures back off per key,
``add(after_s=...)`` sets an alarm, the earliest alarm wins, and two rounds of one key are at least
`SPACING_S` apart, so that a burst of events is one round. First come, first served. Time is the
event loop's. Knows no model.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SPACING_S = 0.3  # from the end of one round to the start of the next of the same key
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0


class WorkQueue(Generic[K]):
    """See the module; one event loop, no threads."""

    def __init__(self, *, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._ready: deque[K] = deque()
        self._since_s: dict[K, float] = {}  # keys that are ready: since when
        self._alarms: list[tuple[float, int, K]] = []  # a heap; stale entries are skipped
        self._due_s: dict[K, float] = {}  # the alarm that counts
        self._working: dict[K, float] = {}  # since when
        self._again: set[K] = set()  # added while at work
        self._rested_s: dict[K, float] = {}  # end of the last round
        self._failures: dict[K, int] = {}
        self._order = itertools.count()
        self._changed = asyncio.Event()
        self.waited_s = 0.0  # of the key that `get` returned last: how long it was ready

    def add(self, key: K, after_s: float = 0.0) -> None:
        """Look at ``key`` in ``after_s`` seconds, or sooner if that is arranged already."""
        now_s = self._loop.time()
        if after_s <= 0 and key in self._working:
            self._again.add(key)
            return
        due_s = now_s + max(0.0, after_s)
        if after_s <= 0 and key in self._rested_s:
            due_s = max(due_s, self._rested_s[key] + SPACING_S)
        if due_s <= now_s:
            self._make_ready(key, now_s)
        elif key not in self._since_s and due_s < self._due_s.get(key, float("inf")):
            self._due_s[key] = due_s
            heapq.heappush(self._alarms, (due_s, next(self._order), key))
            self._changed.set()

    async def get(self) -> K:
        """The next key, when there is one; it is at work until `done` or `failed`."""
        while True:
            now_s = self._loop.time()
            next_s = self._ring(now_s)
            if self._ready:
                key = self._ready.popleft()
                self.waited_s = now_s - self._since_s.pop(key)
                self._working[key] = now_s
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout_at(next_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, key: K, again_s: float | None = None) -> None:
        """A round went well; look again in ``again_s`` seconds, or only when it is added."""
        self._failures.pop(key, None)
        self._rest(key)
        if again_s is not None:
            self.add(key, max(again_s, SPACING_S))

    def failed(self, key: K) -> float:
        """A round went wrong; it comes again after the returned number of seconds."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        backoff_s: float = min(FIRST_BACKOFF_S * 2.0 ** min(count, 20), LAST_BACKOFF_S)
        backoff_s *= 0.5 + self._jitter()
        self._again.discard(key)  # news do not shorten a back-off: the error may be of their making
        self._rest(key)
        self.add(key, backoff_s)
        return backoff_s

    def forget(self, key: K) -> None:
        """The model is gone: nothing of it is remembered. Called instead of `done`."""
        again = key in self._again
        self._again.discard(key)
        self._working.pop(key, None)
        for memory in (self._failures, self._rested_s, self._due_s):
            memory.pop(key, None)
        if again:
            self.add(key)

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def at_work(self) -> int:
        return len(self._working)

    @property
    def delayed(self) -> int:
        return len(self._due_s)

    def oldest_s(self) -> float:
        """For how long the first key in the queue has waited; 0.0 for an empty queue."""
        return self._loop.time() - self._since_s[self._ready[0]] if self._ready else 0.0

    def is_at_work(self, key: K) -> bool:
        """Whether a round of ``key`` goes on."""
        return key in self._working

    def longest_s(self) -> float:
        """For how long the slowest of the rounds at work has gone on."""
        return self._loop.time() - min(self._working.values()) if self._working else 0.0

    def _rest(self, key: K) -> None:
        self._working.pop(key, None)
        self._rested_s[key] = self._loop.time()
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _make_ready(self, key: K, since_s: float) -> None:
        self._due_s.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._since_s:
            self._since_s[key] = since_s
            self._ready.append(key)
            self._changed.set()

    def _ring(self, now_s: float) -> float | None:
        """Make ready what is due; when the next alarm is, None without one."""
        while self._alarms:
            due_s, _, key = self._alarms[0]
            if self._due_s.get(key) != due_s:
                heapq.heappop(self._alarms)  # overtaken by an earlier one, or forgotten
            elif due_s > now_s:
                return due_s
            else:
                heapq.heappop(self._alarms)
                self._make_ready(key, due_s)
        return None
