"""One way to write a log line for every process: the message, then `key=value` pairs, or JSON.

Knows no process. Modules log with `logging.getLogger(__name__)` and put facts into `extra=`; only
an entry point calls `configure`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

from lamella_contract import names

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(role: str) -> None:
    """Send this process's logs to stderr, as ``LAMELLA_LOG_FORMAT`` and ``_LEVEL`` say."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = os.environ.get(names.ENV_LOG_FORMAT, "text") == "json"
    handler.setFormatter(JsonFormatter(role) if as_json else TextFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = os.environ.get(names.ENV_LOG_LEVEL, "INFO").upper()
    root.setLevel(level if level in logging.getLevelNamesMapping() else logging.INFO)


def facts(record: logging.LogRecord) -> dict[str, object]:
    """What the caller passed in ``extra=``."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class TextFormatter(logging.Formatter):
    """``12:30:01.250 WARNING stage-1 lamella_worker.stage: a frame was dropped epoch=3``."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname} {self._role} {record.name}:"
        pairs = [f"{key}={value}" for key, value in facts(record).items()]
        text = " ".join([head, record.getMessage(), *pairs])
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (seconds), level, role, logger, message, then the facts."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
