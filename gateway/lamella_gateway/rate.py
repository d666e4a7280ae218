"""How fast a counter has grown over the last seconds. Knows nothing of what is counted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

SAMPLE_S = 0.5
WINDOW_S = 5.0


class RateMeter:
    """Looks at a counter twice a second and remembers five seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, read: Callable[[], int]) -> None:
        self._loop = loop
        self._read = read
        self._seen: deque[tuple[float, int]] = deque(maxlen=int(WINDOW_S / SAMPLE_S) + 1)
        self._sample()

    def per_s(self) -> float:
        """Growth per second over the window."""
        begin_s, begin = self._seen[0]
        spent_s = self._loop.time() - begin_s
        return (self._read() - begin) / spent_s if spent_s > 0 else 0.0

    def stop(self) -> None:
        self._timer.cancel()

    def _sample(self) -> None:
        self._seen.append((self._loop.time(), self._read()))
        self._timer = self._loop.call_later(SAMPLE_S, self._sample)
