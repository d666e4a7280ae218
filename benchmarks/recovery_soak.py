"""A soak: mixed load, a fault each 5 to 20 seconds, and everything flat at the end.

Knows how memory and descriptors of each process go on. A process that was replaced is compared with
the one before it at the same age, one that lived on with itself.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from benchmarks import recovery_report
from benchmarks.recovery_faults import KINDS, Fault, strike
from benchmarks.recovery_load import Answer, Load
from benchmarks.recovery_server import Server, Stuck, serving

SAMPLE_S = 2.0
FAULT_EVERY_S = (5.0, 20.0)
WARM_S = 20.0
"""A process grows while it does everything for the first time; then it must not."""

GROWTH_BYTES = 24e6
GROWTH_RATIO = 0.1
"""A process may be larger at the end than when it was warm by the larger of the two, at most: the
allocator of the C library gives memory back late."""

GROWTH_FDS = 8


@dataclass(slots=True)
class Series:
    """One process over time: (age in seconds, resident bytes, open descriptors)."""

    name: str
    pid: int
    began_s: float
    points: list[tuple[float, int, int]] = field(default_factory=list)

    def sample(self, now_s: float) -> None:
        with contextlib.suppress(psutil.Error):
            seen = psutil.Process(self.pid)
            point = (now_s - self.began_s, _own_bytes(seen), seen.num_fds())
            self.points.append(point)

    def growth(self) -> tuple[float, float, float] | None:
        """(warm bytes, last bytes, descriptors more): medians of the first and last third of what
        came after the warming; None for a short life."""
        warm = [p for p in self.points if p[0] > WARM_S]
        if len(warm) < 9:
            return None
        third = len(warm) // 3
        first, last = warm[:third], warm[-third:]
        return (
            statistics.median(p[1] for p in first),
            statistics.median(p[1] for p in last),
            statistics.median(p[2] for p in last) - statistics.median(p[2] for p in first),
        )


def _own_bytes(process: psutil.Process) -> int:
    """Resident and not a mapped file: weights are shared with the page cache."""
    info = process.memory_info()
    return int(info.rss - info.shared)


class Watcher(threading.Thread):
    """Samples every process of a server until `stop`."""

    def __init__(self, server: Server) -> None:
        super().__init__(name="watcher", daemon=True)
        self._server = server
        self._over = threading.Event()
        self.series: list[Series] = []

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            with contextlib.suppress(Stuck, psutil.Error):
                self._look()

    def _look(self) -> None:
        now_s = time.monotonic()
        for name, pid in self._server.everyone().items():
            if not pid:
                continue
            known = next((s for s in self.series if (s.name, s.pid) == (name, pid)), None)
            if known is None:
                known = Series(name, pid, now_s)
                self.series.append(known)
            known.sample(now_s)

    def stop(self) -> None:
        self._over.set()
        self.join()


def judge(series: list[Series]) -> tuple[list[str], list[str]]:
    """(lines to print, violations)."""
    lines, bad = [], []
    for one in series:
        if (growth := one.growth()) is None:
            continue
        first, last, fds = growth
        grown = last - first
        flat = grown <= max(GROWTH_BYTES, GROWTH_RATIO * first) and fds <= GROWTH_FDS
        text = (
            f"{one.name:<10} pid {one.pid:<8} {one.points[-1][0]:>6.0f} s  {first / 1e6:>7.1f} -> "
            f"{last / 1e6:>7.1f} MB  descriptors {fds:+.0f}  {'flat' if flat else 'GROWS'}"
        )
        lines.append(text)
        if not flat:
            bad.append(text)
    names = dict.fromkeys(one.name for one in series)
    for name in names:
        lives = [one for one in series if one.name == name and len(one.points) >= 2]
        if len(lives) < 2:
            continue
        most = [max(point[2] for point in one.points) for one in lives]
        text = f"{name:<10} {len(lives)} processes, descriptors at most {most[0]} -> {most[-1]}"
        lines.append(text)
        if most[-1] > most[0] + GROWTH_FDS:
            bad.append(text)
    return lines, bad


def soak(run: Any, model: Path, options: argparse.Namespace) -> int:
    """The exit status: 0 when all is exact, freed and flat."""
    draw = random.Random(options.seed)
    ended: list[Answer] = []
    faults: list[Fault] = []
    with serving(model, stages=options.stages, dtype=options.dtype, pin=options.pin) as server:
        run.undisturbed(server, options.streams)
        watcher = Watcher(server)
        watcher.start()
        load = Load(server.port, run.deck, streams=options.streams, on_answer=ended.append)
        load.start()
        left: list[str] = []
        try:
            _break_until(time.monotonic() + 60 * options.soak, server, load, draw, faults)
            load.stop()
            left = leftovers(server)
        except (Stuck, psutil.Error) as reason:
            left.append(str(reason))
        load.abandon()
        watcher.stop()
        run.faults = faults
        for answer in sorted(ended, key=lambda answer: answer.ended_s):
            run.judge(answer)
    print("\n" + recovery_report.table(run, options))
    lines, bad = judge(watcher.series)
    bad += left
    print("\n".join(lines), *(f"VIOLATED {text}" for text in bad), sep="\n")
    return int(bool(bad) or bool(recovery_report.verdict(run)))


def _break_until(
    over_s: float, server: Server, load: Load, draw: random.Random, faults: list[Fault]
) -> None:
    """A fault now and then, each added to `faults`; Stuck when something does not go on."""
    while (left_s := over_s - time.monotonic()) > 0:
        time.sleep(min(left_s, draw.uniform(*FAULT_EVERY_S)))
        if time.monotonic() < over_s:
            faults.append(Fault(draw.choice(list(KINDS)), 0.0))
            strike(server, load, faults[-1], draw)
            print(f"  {len(faults):>4} {recovery_report.line(faults[-1])}", flush=True)


def leftovers(server: Server) -> list[str]:
    """What is still held although nobody asks for anything."""
    server.wait_until(server.is_quiet, 10, "requests are left behind")

    def free() -> bool:
        scheduler = (server.stage(0) or {}).get("scheduler", {})
        return bool(scheduler) and scheduler["kv_tokens_free"] == scheduler["kv_tokens"]

    found = []
    if not _comes(free):
        found.append(f"KV is held by nobody: {(server.stage(0) or {}).get('scheduler')}")
    if not _comes(lambda: (server.gateway() or {}).get("live_requests") == 0):
        found.append("the gateway holds requests of nobody")
    return found


def _comes(condition: Callable[[], bool], patience_s: float = 5.0) -> bool:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True
