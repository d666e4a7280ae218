"""Keeps one watch per namespace alive: each ends and begins again on its own.

A namespace whose role was revoked, or a stream that broke, ends its own watch only; it is started
again after a pause with jitter, for ever. Knows no kopf: a watch is a coroutine function.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 30.0
WELL_S = 60.0  # a watch that lived for so long starts with the first pause again

Watch = Callable[[str], Awaitable[None]]
"""Watches one scope (a namespace, "" for all) until it fails."""


@dataclass(slots=True)
class Watched:
    """One scope's watch. ``up_s`` is when it was started, None while it waits for its next turn."""

    scope: str
    restarts: int = 0
    problem: str = ""
    up_s: float | None = None
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Supervisor:
    """``began`` is told of each start. Time is the event loop's; ``jitter`` is a parameter."""

    watch: Watch
    began: Callable[[str], None] = lambda scope: None
    jitter: Callable[[], float] = random.random
    watched: dict[str, Watched] = field(default_factory=dict)

    async def keep(self, scope: str) -> None:
        """Watches ``scope`` until cancelled."""
        state = self.watched.setdefault(scope, Watched(scope))
        loop, pause_s = asyncio.get_running_loop(), FIRST_PAUSE_S
        while True:
            state.up_s = loop.time()
            self.began(scope)
            state.problem = await self._once(state)
            lived_s = loop.time() - state.up_s
            state.up_s, state.restarts = None, state.restarts + 1
            pause_s = FIRST_PAUSE_S if lived_s >= WELL_S else pause_s
            wait_s = pause_s * (0.5 + self.jitter())
            pause_s = min(pause_s * 2, LAST_PAUSE_S)
            log.warning(
                "a watch ended and begins again",
                extra={"namespace": scope or "all", "said": state.problem, "pause_s": wait_s},
            )
            await asyncio.sleep(wait_s)

    def renew(self, scope: str) -> None:
        """Begin the watch of ``scope`` anew: it does not deliver what it should."""
        if scope in self.watched:
            self.watched[scope].wanted.set()

    def is_up(self, scope: str) -> bool:
        return scope in self.watched and self.watched[scope].up_s is not None

    async def _once(self, state: Watched) -> str:
        """One life of a watch; why it ended."""
        state.wanted.clear()
        life = asyncio.ensure_future(self.watch(state.scope))
        renewal = asyncio.ensure_future(state.wanted.wait())
        try:
            await asyncio.wait({life, renewal}, return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                return "it was renewed: it did not deliver what a LIST showed"
            error = life.exception()
            return f"{type(error).__name__}: {error}" if error is not None else "it ended"
        finally:
            for task in (life, renewal):
                task.cancel()
            await asyncio.gather(life, renewal, return_exceptions=True)
