"""One id per reconcile, and the model's name, on every log line that is written during it.

Knows no reconcile: `following` marks a stretch of work, `Traced` adds the marks to records.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

_NONE: Mapping[str, object] = MappingProxyType({})
_marks: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar(
    "marks", default=_NONE
)
_numbers = itertools.count(1)


@contextmanager
def following(**facts: object) -> Iterator[str]:
    """Inside, all log lines carry ``facts`` and an id of their own, which is yielded."""
    number = f"{next(_numbers):x}"
    token = _marks.set({**facts, "reconcile": number})
    try:
        yield number
    finally:
        _marks.reset(token)


class Traced(logging.Filter):
    """Adds the marks to a record; belongs on the handler, so that libraries' lines have them."""

    def filter(self, record: logging.LogRecord) -> bool:
        for key, value in _marks.get().items():
            if not hasattr(record, key):
                setattr(record, key, value)
        return True
