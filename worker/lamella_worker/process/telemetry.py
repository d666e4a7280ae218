"""What one stage says of itself: the numbers behind /status, /metrics and /readyz.

Knows no HTTP and no sockets. Counters are plain attributes, each written by one thread and read by
any (CPython makes such reads and writes whole), so the hot path pays an addition and no lock.
"""

from __future__ import annotations

import resource
from dataclasses import asdict, dataclass, field
from typing import Any

from lamella_contract.wire import StageReport
from lamella_worker.process.ring_times import RingTimes
from lamella_worker.scheduling.limits import SchedulerStats


@dataclass(slots=True)
class LoadProgress:
    """Bytes of this stage's slice: how many are needed, how many have been read."""

    bytes_total: int = 0
    bytes_done: int = 0
    bytes_read: int = 0
    bytes_per_s: float = 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present speed; None while there is no speed."""
        if self.bytes_per_s <= 0:
            return None
        return max(0, self.bytes_total - self.bytes_done) / self.bytes_per_s

    @property
    def read_ratio(self) -> float:
        """Bytes read for each byte needed: 1.0 is exact."""
        return self.bytes_read / self.bytes_total if self.bytes_total else 0.0


@dataclass(slots=True)
class Counters:
    """Totals since this process started."""

    steps: int = 0
    rows: int = 0
    compute_ns: int = 0
    idle_ns: int = 0
    frames_stale: int = 0
    frames_refused: int = 0
    frames_lost: int = 0
    steps_failed: int = 0
    resyncs: int = 0
    tokens: int = 0  # stage 0 only: new tokens handed to gateways
    restarts: int = 0  # processes of this stage that ended before this one
    resolver_failures: int = 0
    retired_refusals: int = 0  # stage 0 only: processes told that they were replaced


@dataclass(slots=True)
class Telemetry:
    """One stage's state. `state` is loading, joining, ready, serving, draining or failed.

    `ready` is what /readyz says: of stage 0 that requests are served, of others that the slice is
    loaded. The fields of stage 0 that tell of the ring are written by its control thread.
    """

    stage: int
    stages: int
    pid: int
    layers: tuple[int, int]
    state: str = "loading"
    ready: bool = False
    reason: str = "the slice is being loaded"
    epoch: int = 0
    load: LoadProgress = field(default_factory=LoadProgress)
    counters: Counters = field(default_factory=Counters)
    memory: dict[str, int] = field(default_factory=dict)
    ring: RingTimes = field(default_factory=RingTimes)  # stage 0 only, from traces
    scheduler: SchedulerStats | None = None  # stage 0 only
    oldest_step_sent_s: float = 0.0  # monotonic; 0 when no step is in flight
    predicted_step_s: float = 0.0
    frames_taken: int = 0  # of this epoch, off and onto the data links
    frames_sent: int = 0
    largest_frame: int = 0  # bytes, of those sent
    computing: bool = False
    trouble: str = ""  # what loading is held up by
    draining: bool = False
    members: tuple[StageReport, ...] = ()  # stage 0 only: every stage, as it is heard
    lost: tuple[int | None, str] = None, ""  # stage 0 only: whose process must be replaced, its pod

    def set_state(self, state: str, *, ready: bool, reason: str = "") -> None:
        """Publish where this stage stands."""
        self.state, self.ready, self.reason = state, ready, reason

    def snapshot(self) -> dict[str, Any]:
        """The document of /status."""
        load, counters = self.load, self.counters
        return {
            "stage": self.stage,
            "stages": self.stages,
            "layers": list(self.layers),
            "pid": self.pid,
            "state": self.state,
            "ready": self.ready,
            "reason": self.reason,
            "error": self.reason if self.state == "failed" else self.trouble,
            "epoch": self.epoch,
            "bytes_total": load.bytes_total,
            "bytes_done": load.bytes_done,
            "bytes_read": load.bytes_read,
            "bytes_per_s": load.bytes_per_s,
            "eta_s": load.eta_s,
            "read_ratio": load.read_ratio,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "memory": self.memory,
            "steps": counters.steps,
            "rows": counters.rows,
            "compute_ns": counters.compute_ns,
            "idle_ns": counters.idle_ns,
            "steps_failed": counters.steps_failed,
            "frames_stale": counters.frames_stale,
            "frames_refused": counters.frames_refused,
            "frames_lost": counters.frames_lost,
            "resyncs": counters.resyncs,
            "tokens": counters.tokens,
            "restarts": counters.restarts,
            "resolver_failures": counters.resolver_failures,
            "ring": self.ring.snapshot(),
            "scheduler": asdict(self.scheduler) if self.scheduler else {},
            **(self._ring_of_stages() if self.stage == 0 else {}),
        }

    def _ring_of_stages(self) -> dict[str, Any]:
        """What only stage 0 knows."""
        stats = self.scheduler
        return {
            "members": [
                {
                    "stage": member.stage,
                    "state": member.state,
                    "bytes_done": member.bytes_done,
                    "bytes_total": member.bytes_total,
                    "bytes_per_s": member.bytes_per_s,
                    "error": member.error,
                }
                for member in self.members
            ],
            "lost": self.lost[0],
            "lost_pod": self.lost[1],
            "draining": self.draining,
            "live_requests": stats.running + stats.waiting if stats else 0,
            "kv_tokens": stats.kv_tokens if stats else 0,
            "retired_refusals": self.counters.retired_refusals,
        }
