"""A few bytes that a stage's process and the parent that forked it share: signs of life.

Knows no sockets. The child writes, the parent reads, and a child that is stopped or wedged is
found without its help. Times are `time.monotonic_ns()`, which all processes of a host share.
"""

from __future__ import annotations

import mmap
import struct
import time
import uuid

_FIELDS = struct.Struct("<qq")
_BEAT, _BUSY = 0, 8

BUSY_FACTOR = 6
"""A step may take this many times as long as a heartbeat may be missing."""


class Pulse:
    """Shared by fork: create it before, use it on both sides after.

    `process` names the child, ``<pod>.<random>``; `restarts` is how many have ended before it. The
    child has them as they were when it was forked. `pod` "" is this run of the parent.
    """

    def __init__(self, pod: str = "") -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._pod = pod.replace(".", "-") or uuid.uuid4().hex
        self.restarts = 0
        self.born(0)

    def born(self, restarts: int) -> None:
        """Parent, before a fork: the new child has a name of its own and a fresh sign of life."""
        self.restarts = restarts
        self.process = f"{self._pod}.{uuid.uuid4().hex[:16]}"
        self.reset()

    def reset(self) -> None:
        """Parent: as if the child had given a sign of life now."""
        self._memory[: _FIELDS.size] = _FIELDS.pack(time.monotonic_ns(), 0)

    def beat(self) -> None:
        """Child's control thread: still scheduled."""
        self._write(_BEAT, time.monotonic_ns())

    def busy(self) -> None:
        """Child's compute thread: a step begins."""
        self._write(_BUSY, time.monotonic_ns())

    def idle(self) -> None:
        """Child's compute thread: the step is done."""
        self._write(_BUSY, 0)

    def is_dead(self, patience_s: float) -> bool:
        """Parent: no heartbeat for `patience_s`, or one step for BUSY_FACTOR times as long.

        They are judged apart because a first step on a slow machine may be long and healthy.
        """
        beat, busy_since = _FIELDS.unpack_from(self._memory)
        now = time.monotonic_ns()
        if now - beat > patience_s * 1e9:
            return True
        return bool(busy_since) and now - busy_since > BUSY_FACTOR * patience_s * 1e9

    def _write(self, at: int, value: int) -> None:
        struct.pack_into("<q", self._memory, at, value)
