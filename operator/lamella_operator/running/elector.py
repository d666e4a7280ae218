"""Who leads, decided from what a Lease says and the local clock. Pure: no I/O, no clock of its own.

Other holders' clocks are never trusted: a Lease is stale when *we* have seen it unchanged for its
duration. Our own lead ends earlier, `RENEW_S` after the last renewal *began*, so that it has ended
before anybody else may take over. Times are seconds of a monotonic clock, which a step of the time
of day does not move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LEASE_S = 15.0  # a Lease unchanged for so long may be taken
RENEW_S = 10.0  # a leader that could not renew for so long gives up
RETRY_S = 2.0  # between two looks at the Lease


@dataclass(frozen=True, slots=True)
class Record:
    """What the Lease says; ``version`` is its resourceVersion, ``holder`` "" is nobody."""

    holder: str
    version: str
    renewed: str = ""
    duration_s: float = LEASE_S
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class Elector:
    """What one contender knows. ``seen_s`` is when ``record`` was first seen as it is now;

    ``led_s`` is when our last successful renewal began, None while we do not lead.
    """

    identity: str
    record: Record | None = None
    seen_s: float = 0.0
    led_s: float | None = None

    def saw(self, record: Record | None, now_s: float) -> Elector:
        """After reading the Lease. Somebody else in it ends our lead."""
        lost = self.led_s is not None and (record is None or record.holder != self.identity)
        changed = record is None or self.record is None or record != self.record
        return replace(
            self,
            record=record,
            seen_s=now_s if changed else self.seen_s,
            led_s=None if lost else self.led_s,
        )

    def wrote(self, record: Record, began_s: float) -> Elector:
        """After writing it with success; ``began_s`` is when that request was sent."""
        return replace(self, record=record, seen_s=began_s, led_s=began_s)

    def may_write(self, now_s: float) -> bool:
        """Whether the Lease as it was seen is ours to renew, free, or stale."""
        if self.record is None or self.record.holder in ("", self.identity):
            return True
        return now_s - self.seen_s > max(self.record.duration_s, LEASE_S)

    def leads(self, now_s: float) -> bool:
        """Whether writing is allowed now; asked before every write."""
        return self.led_s is not None and now_s - self.led_s < RENEW_S

    def lost(self, now_s: float) -> bool:
        """Whether we led once and may not go on."""
        return self.led_s is not None and not self.leads(now_s)

    def next_record(self, stamp: str) -> Record:
        """What to write: us, renewed at ``stamp`` (for people: nobody reckons with it)."""
        old = self.record
        taken = old is None or old.holder != self.identity
        return Record(
            holder=self.identity,
            version=old.version if old is not None else "",
            renewed=stamp,
            transitions=(old.transitions + 1 if taken else old.transitions) if old else 0,
        )
