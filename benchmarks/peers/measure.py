"""Turns: every system at every level, one after the other, round by round; and their medians.

Knows endpoints and figures; nothing of how a system is made.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.running import Running
from benchmarks.peers.systems import System

from lamella import bench
from lamella.bench_client import Address

INPUT_TOKENS, OUTPUT_TOKENS = 64, 128
SETTLE_S = 0.5
WARM_S = 180.0
"""A system that hangs when it is first asked is left out after so long."""
CROWD = 64
"""So many at once take longer than all smaller levels together: measured in every other round, of
slow systems in the first only."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One system at one level, once. `cpu_us`: microseconds per output token by process name;
    `client_cpu_us` is what asking took."""

    system: str
    round: int
    level: bench.Level
    cpu_us: dict[str, float]
    client_cpu_us: float

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": self.level.as_json()}

    @classmethod
    def of_json(cls, document: dict[str, Any]) -> Turn:
        """What `as_json` made."""
        return cls(**{**document, "level": bench.Level(**document["level"])})


@dataclass(frozen=True, slots=True)
class Cell:
    """Medians of a system's turns at one level; `failures` and `requests` are sums."""

    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    itl_p99_ms: float
    cpu_us: float
    server_us: float  # gateway and supervisor of ours; 0 elsewhere
    requests: int
    failures: int
    short: int  # tokens that were asked and did not come
    turns: int
    lowest: float = 0.0
    highest: float = 0.0
    possible: float = 0.0  # tokens per second that our stages' own steps allow
    reached: float = 0.0  # tokens per second of decoding over that
    first_error: str = ""


@dataclass(frozen=True, slots=True)
class Floor:
    """What one core can do at best: bytes that a decode step reads, and how fast it reads."""

    step_bytes: int
    read_bytes_per_s: float

    @property
    def step_ms(self) -> float:
        return 1e3 * self.step_bytes / self.read_bytes_per_s


def floor(folder: Path, core: int) -> Floor:
    """Measured by a process of its own."""
    script = str(Path(__file__).with_name("limits.py"))
    words = [sys.executable, script, str(folder), str(core)]
    return Floor(**json.loads(subprocess.run(words, check=True, capture_output=True).stdout))


@dataclass(slots=True)
class Results:
    """What was measured, and why some systems are not there."""

    turns: list[Turn] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    floors: list[Floor] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "turns": [turn.as_json() for turn in self.turns],
            "missing": self.missing,
            "floors": [asdict(each) for each in self.floors],
        }

    @classmethod
    def of_json(cls, document: dict[str, Any]) -> Results:
        """What `as_json` made. What was missing is tried anew."""
        turns = [Turn.of_json(each) for each in document["turns"]]
        return cls(turns, floors=[Floor(**each) for each in document["floors"]])

    def cell(self, system: str, concurrency: int) -> Cell | None:
        """None where there was no turn."""
        turns = [
            turn
            for turn in self.turns
            if turn.system == system and turn.level.concurrency == concurrency
        ]
        return summarize(turns) if turns else None


SERVERS = ("gateway", "supervisor")


def summarize(turns: list[Turn]) -> Cell:
    """One cell of the table."""
    levels = [turn.level for turn in turns]
    rates = [level.output_tokens_per_s for level in levels]

    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    return Cell(
        tokens_per_s=median(rates),
        tpot_ms=median(level.tpot_ms_p50 for level in levels),
        ttft_ms=median(level.ttft_ms_p50 for level in levels),
        itl_p99_ms=median(level.itl_ms_p99 for level in levels),
        cpu_us=median(sum(turn.cpu_us.values()) for turn in turns),
        server_us=median(sum(turn.cpu_us.get(n, 0.0) for n in SERVERS) for turn in turns),
        requests=sum(level.requests for level in levels),
        failures=sum(level.failures for level in levels),
        short=sum(
            OUTPUT_TOKENS * (level.requests - level.failures) - level.completion_tokens
            for level in levels
        ),
        turns=len(turns),
        lowest=min(rates),
        highest=max(rates),
        possible=(possible := median(level.possible_tokens_per_s for level in levels)),
        reached=median(lv.decode_tokens_per_s for lv in levels) / possible if possible else 0.0,
        first_error=next((level.first_error for level in levels if level.first_error), ""),
    )


def take_turn(running: Running, asking: bench.Asking, concurrency: int, number: int) -> Turn:
    """`concurrency` requests at once, and what they cost."""
    load = bench.Load(concurrency, concurrency, INPUT_TOKENS, OUTPUT_TOKENS)
    seed = 1_000_000 * number + 1000 * concurrency
    before, client_before = running.cpu_s(), time.process_time()
    level = asyncio.run(bench.run_level(asking, load, seed))
    client_us = 1e6 * (time.process_time() - client_before)
    after = running.cpu_s()
    if not running.system.peer:  # its gateway tells what its stages' steps would allow
        ceiling = bench.possible(bench.gateway_status(running.url, ""), concurrency)
        level = replace(level, possible_tokens_per_s=ceiling)
    tokens = max(level.completion_tokens, 1)
    cpu_us = {
        name: round(1e6 * (spent - before.get(name, 0.0)) / tokens, 2)
        for name, spent in after.items()
    }
    return Turn(running.system.key, number, level, cpu_us, client_us / tokens)


def find_out(running: Running, model: str) -> bench.Asking:
    """How this system wants to be asked; its first answers are its warm-up too. TimeoutError: it
    did not say within WARM_S."""
    asking = bench.Asking(Address.of(running.url), model, characters_per_token=1.0)
    load = bench.Load(1, 1, INPUT_TOKENS, OUTPUT_TOKENS)
    return asyncio.run(asyncio.wait_for(bench.find_out(asking, load, 1), WARM_S))


def warm_up(running: Running, asking: bench.Asking, concurrency: int) -> None:
    """One short burst, so that no first batch of a size stands among the figures. TimeoutError: it
    was not answered within WARM_S."""
    load = bench.Load(concurrency, concurrency, INPUT_TOKENS, 8)
    asyncio.run(asyncio.wait_for(bench.run_level(asking, load, 500 + concurrency), WARM_S))


def is_due(system: System, concurrency: int, number: int) -> bool:
    """Whether a system has a turn at a level in this round of a run, counted from 0."""
    often = 2 if system.slow else 1
    if concurrency >= CROWD:
        return number == 0 if system.slow else number % 2 == 0
    return number % often == 0


def take_round(
    askings: list[tuple[Running, bench.Asking]],
    levels: list[int],
    number: int,
    since: int,
    results: Results,
    tell: Callable[[Turn], None],
) -> None:
    """Round `number`, the `since`-th of this run from 0: every system at every level that is due.

    Peers are held but for their turns; ours are not, since a held stage is taken for a dead one.
    """
    for running, asking in askings:
        due = [level for level in levels if is_due(running.system, level, since)]
        if not due:
            continue
        running.go_on()
        time.sleep(SETTLE_S)
        for concurrency in due:
            turn = take_turn(running, asking, concurrency, number)
            results.turns.append(turn)
            tell(turn)
        if running.system.peer:
            running.hold()
