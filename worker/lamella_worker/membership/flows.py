"""Finds a frame that was lost with none behind it: no gap in the numbers gives it away.

Pure: it knows no socket, thread or clock (time is an argument). Stages tell in their heartbeats
how many frames they took and sent in this epoch. One that stands idle, beat after beat, although
the stage before it has sent more than it took, waits for a frame that will not come. A stage that
computes has not sent yet, and one that is busy may find its frame afterwards: neither is blamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lamella_contract.wire import Flow

MISSED_AFTER_S = 1.0
"""A frame is missed when its stage was idle for so long after it had been sent, ..."""

MISSED_AFTER_BEATS = 4
"""... told in more heartbeats than so many, ..."""

SLOWEST_BYTES_PER_S = 1e6
"""... and for as long again as the sender's largest frame takes over so slow a link."""


@dataclass(slots=True)
class Wait:
    """A stage stands idle with a frame owed to it."""

    since_s: float
    patience_s: float = MISSED_AFTER_S
    beats: int = 0


@dataclass(slots=True)
class Flows:
    """What each stage said last, in one epoch."""

    _last: dict[int, Flow] = field(default_factory=dict)
    _waits: dict[int, Wait] = field(default_factory=dict)

    def clear(self) -> None:
        """Another epoch: frames are counted from 0."""
        self._last.clear()
        self._waits.clear()

    def heard(self, stage: int, sender: int, flow: Flow, now_s: float) -> None:
        """A heartbeat of `stage`, which takes the frames of stage `sender`."""
        last, self._last[stage] = self._last.get(stage, flow), flow
        sent = self._last.get(sender, Flow())
        if flow.busy or sent.sent <= flow.taken or flow.taken != last.taken:
            self._waits.pop(stage, None)
            return
        wait = self._waits.setdefault(stage, Wait(now_s))
        wait.beats += 1
        wait.patience_s = MISSED_AFTER_S + sent.largest / SLOWEST_BYTES_PER_S

    def lost(self, now_s: float) -> int | None:
        """The first stage that waits in vain; None when there is none."""
        for stage, wait in sorted(self._waits.items()):
            if wait.beats > MISSED_AFTER_BEATS and now_s - wait.since_s > wait.patience_s:
                return stage
        return None
