"""What SIGTERM means to a stage: while loading the process ends, while serving its loop does.

Knows the loop by two words of it. Asked once, stage 0 with time to drain goes on with the requests
it has; asked twice, or any other stage, it ends at the next look.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol


class Stoppable(Protocol):
    """A stage's loop."""

    stopping: bool


class StopFlag:
    """SIGTERM and SIGINT of this process, from construction on."""

    def __init__(self) -> None:
        self._end: Callable[[], None] | None = None
        self._drain: Callable[[], None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def then(self, loop: Stoppable, drain: Callable[[], None] | None = None) -> None:
        """From now on a signal stops `loop` instead of leaving at once, the first one by `drain`
        if that is given."""
        self._drain = drain
        self._end = lambda: setattr(loop, "stopping", True)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._end is None:
            raise SystemExit(0)
        drain, self._drain = self._drain, None
        (drain or self._end)()
