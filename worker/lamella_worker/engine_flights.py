"""One flight at a time: callers who want the same thing share one task, others wait their turn.

It knows nothing of what is loaded. All callers of a flight get its result or its error; a caller
that is cancelled leaves, the flight goes on for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable


class SingleFlight:
    """Use it from one event loop at a time."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, asyncio.Task[None]] = {}
        self._last: asyncio.Task[None] | None = None

    async def fly(self, key: Hashable, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` after every earlier flight, or join the one that is under way for `key`."""
        task = self._flying.get(key)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(_after(self._last, work))
            self._flying[key] = self._last = task
            task.add_done_callback(lambda done: self._landed(key, done))
        await asyncio.shield(task)

    def _landed(self, key: Hashable, task: asyncio.Task[None]) -> None:
        if self._flying.get(key) is task:
            del self._flying[key]
        if self._last is task:
            self._last = None
        if not task.cancelled():
            task.exception()  # looked at here, in case that every caller has left


async def _after(earlier: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]) -> None:
    if earlier is not None and not earlier.done():
        await asyncio.wait([earlier])
    await work()
