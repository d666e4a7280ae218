"""Says line by line what happens in one simulated world: its steps, and the code's own log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .kernel import Kernel

_PLAIN = frozenset(vars(logging.makeLogRecord({})))


class _Handler(logging.Handler):
    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        kernel = Kernel.latest
        if kernel is None:
            return
        who = "" if kernel.running is None else kernel.running.process.name
        more = {k: v for k, v in vars(record).items() if k not in _PLAIN}
        name = record.name.rpartition(".")[2]
        self._say(f"{kernel.now_s:9.3f} {who:12} {name}: {record.getMessage()} {more or ''}")


@contextmanager
def traced(say: Callable[[str], object]) -> Iterator[None]:
    """Inside, everything is said."""
    root, handler = logging.getLogger(), _Handler(say)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
