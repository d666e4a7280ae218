"""Where the ring's time goes: per stage computing, idle and bubble seconds, the hops' latency, and
what the stages' own step times would allow.

Plain additions per step, written by stage 0's data thread and read by any. Knows no requests, no
sockets and no clock. In the flow: `head` adds each step that came back; /status and /metrics tell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamella_contract.wire import StageTime

HOP_BUCKETS_NS = tuple(
    round(1e3 * us) for us in (25, 50, 100, 150, 200, 300, 500, 1000, 2000, 5000, 20_000, 100_000)
)


@dataclass(slots=True)
class RingTimes:
    """Totals over finished steps. Lists have one entry per stage, nanoseconds.

    A bubble is idle time while there was work: all idle time but the one before the first step
    after a rest. A hop's latency is what a step took beyond computing, divided by its hops; it is
    taken of steps that were alone in the ring, since others queue. `in_turn`: stages compute one
    after another by agreement, see `StageConfig`.
    """

    in_turn: bool = False
    steps: int = 0
    compute_ns: list[int] = field(default_factory=list)
    idle_ns: list[int] = field(default_factory=list)
    bubble_ns: list[int] = field(default_factory=list)
    hop_counts: list[int] = field(default_factory=lambda: [0] * (len(HOP_BUCKETS_NS) + 1))
    hop_ns: int = 0
    decode: dict[int, list[int]] = field(default_factory=dict)  # rows -> steps, ns of each stage

    def add(self, trace: Sequence[StageTime], *, rows: int, rested: bool, round_ns: int) -> None:
        """One finished step. `rows` of a step that only decodes, else 0; `rested`: nothing was to
        be done before it; `round_ns`: from stage 0's hand to its return, 0 when others were on the
        way too."""
        if len(self.compute_ns) != len(trace):
            self.compute_ns, self.idle_ns, self.bubble_ns = ([0] * len(trace) for _ in range(3))
            self.decode = {}
        self.steps += 1
        for stage, (compute_ns, idle_ns) in enumerate(trace):
            self.compute_ns[stage] += compute_ns
            self.idle_ns[stage] += idle_ns
            if not rested:
                self.bubble_ns[stage] += idle_ns
        if rows:
            kept = self.decode.get(rows)
            if kept is None:
                kept = self.decode[rows] = [0] * (1 + len(trace))
            kept[0] += 1
            for stage, time in enumerate(trace, 1):
                kept[stage] += time.compute_ns
        if round_ns and len(trace) > 1:
            beyond_ns = max(round_ns - sum(time.compute_ns for time in trace[1:]), 0) // len(trace)
            self.hop_counts[bisect_left(HOP_BUCKETS_NS, beyond_ns)] += 1
            self.hop_ns += beyond_ns

    def decode_s(self) -> dict[int, tuple[float, ...]]:
        """Mean seconds of a decode step on each stage, by its rows, ascending."""
        # a copy first: the data thread may add a size meanwhile
        kept = sorted(self.decode.copy().items())
        return {
            rows: tuple(1e-9 * ns / steps for ns in each) for rows, (steps, *each) in kept if steps
        }

    def roofline(self) -> dict[int, float]:
        """Tokens per second that the measured steps allow, by requests that decode at once: powers
        of two, as many as a cohort of the largest measured step per stage would be."""
        times = self.decode_s()
        most = max(times, default=0) * len(self.compute_ns)
        sizes = (1 << n for n in range(most.bit_length()))
        return {requests: allowed(requests, times, in_turn=self.in_turn) for requests in sizes}

    def snapshot(self) -> dict[str, Any]:
        """The document under `ring` in /status."""
        return {
            "steps": self.steps,
            "compute_ns": self.compute_ns,
            "idle_ns": self.idle_ns,
            "bubble_ns": self.bubble_ns,
            "hops": sum(self.hop_counts),
            "hop_ns": self.hop_ns,
            "decode_ms": {
                str(rows): [round(1e3 * s, 4) for s in each]
                for rows, each in self.decode_s().items()
            },
            "roofline": {str(n): round(rate, 2) for n, rate in self.roofline().items()},
        }


def allowed(requests: int, times: Mapping[int, Sequence[float]], *, in_turn: bool = False) -> float:
    """Tokens per second at best, over all numbers of cohorts: n cohorts of ceil(requests / n) rows
    take turns, and one comes back after the sum of the stages' times at the earliest, or when the
    slowest stage has served them all; `in_turn` each waits for all others. Steps larger than any
    measured are not imagined. 0.0 when nothing is known."""
    best = 0.0
    for cohorts in range(1, requests + 1):
        rows = -(-requests // cohorts)
        if rows > max(times, default=0):
            continue
        each = interpolated(rows, times)
        slowest_s = sum(each) if in_turn else max(each, default=0.0)
        period_s = max(sum(each), cohorts * slowest_s)
        if period_s > 0:
            best = max(best, requests / period_s)
        if cohorts > 2 * len(each):  # more than these only wait for one another
            break
    return best


def interpolated(rows: int, times: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
    """Seconds per stage of a step of so many rows: between the nearest sizes that were measured;
    beyond them the nearest one's: smaller steps are not taken for cheaper than any measured."""
    known = sorted(times)
    if not known:
        return ()
    at = bisect_left(known, rows)
    if at == len(known) or known[at] == rows or at == 0:
        return tuple(times[known[min(at, len(known) - 1)]])
    low, high = known[at - 1], known[at]
    share = (rows - low) / (high - low)
    return tuple(a + share * (b - a) for a, b in zip(times[low], times[high], strict=True))
