"""Steady state of two stages on two cores: where the time of a token goes, from outside.

    python benchmarks/throughput.py [--levels 1,4,16,64] [--rounds 1] [--pin] [--json FILE]

A closed loop over HTTP, 64 tokens in, 128 out. For each number of clients: tokens per
second; CPU of gateway and supervisor per streamed token; and which share of the wall the stages'
own computing fills: the slowest stage where they overlap, else the sum of all. That share is the
throughput over what the stages' step times allow, for the number of cohorts chosen; the other
number of cohorts is judged by a line through the step times of all levels.

The stages share both cores and compute in turn; with `--pin` each has a core of its own.

`foreign` is the CPU that nobody here used, in cores: with more than 0.1 the figures are not ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from serve_bench import Server, about, random_model, serving, wait_ready  # beside this
from streams import Answer, Ask, run

PROMPT, TOKENS = 64, 128
STAGES = ("--stages", "2", "--max-sequences", "64", "--max-model-len", "1024")
CPU_TARGET_US, FILLED_TARGET = 60.0, 0.9


def cpu_s(pid: int) -> float:
    """CPU of a process, its threads to the nanosecond."""
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    return total_ns * 1e-9


def machine_s() -> float:
    """CPU of everything on this machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def processes(server: Server) -> dict[str, int]:
    """Process ids of what serves, by what their titles say."""
    found = {"supervisor": server.process.pid}
    for child in psutil.Process(server.process.pid).children(recursive=True):
        words = " ".join(child.cmdline())
        for name in ("gateway", "parent", "stage 0", "stage 1"):
            if name in words:
                found[name] = child.pid
    return found


@dataclass(frozen=True, slots=True)
class Level:
    """One number of clients. Milliseconds are medians; `filled` see above."""

    clients: int
    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    cohorts: int
    rows_per_step: float
    compute_ms: tuple[float, ...]  # per step and stage
    filled: float
    outside_us: float  # gateway and supervisor, CPU per token
    cpu_us: dict[str, float]
    foreign: float


class Watch:
    """What was used between its making and `level`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pids = processes(server)
        self._ring, self._rows = self._read()
        self._machine_s, self._cpu_s = machine_s(), self._cpus()
        self._own_s, self._wall_s = time.process_time(), time.perf_counter()

    def _read(self) -> tuple[dict[str, Any], int]:
        time.sleep(0.2)  # counts are told now and then
        document = self._server.stage(0)
        return document["ring"], int(document["rows"])

    def _cpus(self) -> dict[str, float]:
        return {name: cpu_s(pid) for name, pid in self._pids.items()}

    def level(self, clients: int, answers: list[Answer]) -> Level:
        wall_s, own_s = time.perf_counter() - self._wall_s, time.process_time() - self._own_s
        used = {name: s - self._cpu_s[name] for name, s in self._cpus().items()}
        foreign = (machine_s() - self._machine_s - sum(used.values()) - own_s) / wall_s
        ring, rows = self._read()
        steps = ring["steps"] - self._ring["steps"]
        before = self._ring["compute_ns"] or [0] * len(ring["compute_ns"])
        busy_s = [1e-9 * (b - a) for a, b in zip(before, ring["compute_ns"], strict=True)]
        tokens = sum(answer.tokens for answer in answers)
        cohorts = int(self._server.stage(0)["scheduler"]["cohorts"])
        # more than the wall in sum: they overlapped, whatever the last step was
        busiest_s = max(busy_s) if sum(busy_s) > wall_s else sum(busy_s)
        return Level(
            clients=clients,
            tokens_per_s=tokens / wall_s,
            tpot_ms=1e3 * statistics.median(answer.tpot_s for answer in answers),
            ttft_ms=1e3 * statistics.median(answer.ttft_s for answer in answers),
            cohorts=cohorts,
            rows_per_step=(rows - self._rows) / steps,
            compute_ms=tuple(1e3 * s / steps for s in busy_s),
            filled=busiest_s / wall_s,
            outside_us=1e6 * (used["gateway"] + used["supervisor"]) / tokens,
            cpu_us={name: 1e6 * s / tokens for name, s in (used | {"client": own_s}).items()},
            foreign=foreign,
        )


def measure_level(server: Server, clients: int, seed: int) -> Level:
    """A closed loop of `clients`, at least two answers each."""
    count = {1: 3, 4: 12}.get(clients, 2 * clients)
    asks = [Ask(PROMPT, TOKENS, seed * 1000 + i) for i in range(count)]
    watch = Watch(server)
    return watch.level(clients, run(server.port, asks, clients))


def measure_levels(model: Path, clients: list[int], rounds: int, *, pin: bool) -> list[list[Level]]:
    """All levels, `rounds` times each."""
    with serving(model, *STAGES, *(("--pin",) if pin else ())) as server:
        wait_ready(server)
        for warm in (4, 16):
            run(server.port, [Ask(PROMPT, 32, i) for i in range(2 * warm)], warm)
        return [
            [measure_level(server, count, 100 * turn + count) for count in clients]
            for turn in range(rounds)
        ]


def other_cohorts(levels: list[Level], most: int) -> dict[int, float]:
    """Tokens per second that step times allow with the best of 1 to `most` cohorts, by clients.

    Through the step times of all levels a line is drawn for each stage; prompts' rows count as
    rows, so it is an estimate.
    """
    lines = []
    for stage in range(len(levels[0].compute_ms)):
        rows = [level.rows_per_step for level in levels]
        times = [level.compute_ms[stage] for level in levels]
        lines.append(statistics.linear_regression(rows, times))
    per_token = (PROMPT + TOKENS) / TOKENS
    best = {}
    for level in levels:
        rates = []
        for cohorts in range(1, most + 1):
            size = level.clients / cohorts
            if size < 1:
                continue
            step_ms = [line.intercept + line.slope * size * per_token for line in lines]
            rates.append(1e3 * level.clients / max(sum(step_ms), cohorts * max(step_ms)))
        best[level.clients] = max(rates)
    return best


def table(turns: list[list[Level]], most_cohorts: int) -> list[str]:
    """Medians over the rounds, one row for each number of clients."""
    head = (
        f"{'clients':>8}{'tok/s':>8}{'TPOT ms':>9}{'TTFT ms':>9}{'cohorts':>8}{'filled':>8}"
        f"{'outside us':>12}{'foreign':>9}  compute ms per step, CPU us per token"
    )
    lines = [head]
    levels = [level for turn in turns for level in turn]
    best = other_cohorts(levels, most_cohorts) if len(turns[0]) > 1 else {}
    for of_clients in zip(*turns, strict=True):

        def median(of: Callable[[Level], float], levels: tuple[Level, ...] = of_clients) -> float:
            return statistics.median(map(of, levels))

        last = of_clients[-1]
        lines.append(
            f"{last.clients:>8}{median(lambda x: x.tokens_per_s):>8.1f}"
            f"{median(lambda x: x.tpot_ms):>9.2f}{median(lambda x: x.ttft_ms):>9.1f}"
            f"{last.cohorts:>8}{median(lambda x: x.filled):>8.2f}"
            f"{median(lambda x: x.outside_us):>12.1f}{max(x.foreign for x in of_clients):>9.2f}  "
            + " + ".join(f"{ms:.1f}" for ms in last.compute_ms)
            + "; " + ", ".join(f"{name} {us:.0f}" for name, us in last.cpu_us.items())
        )  # fmt: skip
        if last.clients in best:
            lines[-1] += f"; any cohorts allow {best[last.clients]:.0f} tok/s"
    lines.append(f"wanted: filled >= {FILLED_TARGET}, outside <= {CPU_TARGET_US:g} us")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--levels", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pin", action="store_true", help="a core for each stage")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    print("\n".join(f"{name}: {value}" for name, value in about().items()))
    with random_model(arguments.model, arguments.folder) as folder:
        clients = [int(count) for count in arguments.levels.split(",")]
        turns = measure_levels(folder, clients, arguments.rounds, pin=arguments.pin)
    print("\n".join(table(turns, 2 if arguments.pin else 1)))
    if arguments.json:
        levels = [[vars_of(level) for level in turn] for turn in turns]
        document = {"about": about(), "levels": levels}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def vars_of(level: Level) -> dict[str, Any]:
    return {name: getattr(level, name) for name in Level.__slots__}


if __name__ == "__main__":
    main()
