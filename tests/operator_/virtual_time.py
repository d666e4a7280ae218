"""An event loop whose time is a number: when nobody can go on, it jumps to the next timer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Hours pass in no time. Nothing that waits for a socket may run in it."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 1000.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            due = [one.when() for one in self._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
            if due:
                self._now_s = max(self._now_s, min(due))
        super()._run_once()  # type: ignore[misc]


def play(story: Coroutine[Any, Any, T]) -> T:
    """Run ``story`` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)
