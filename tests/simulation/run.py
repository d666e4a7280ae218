"""Many random schedules on all cores: ``python -m tests.simulation.run --schedules 10000``.

Prints a table; every failure with its seed and a shortened schedule that ``--replay FILE`` runs
again, with ``--trace`` line by line. Exit status 1 when there was one.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

from .checks import Outcome, run
from .schedule import KINDS, Schedule, random_schedule
from .trace import traced

CHUNK = 20


def say(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


Failure = tuple[int, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first; each one after has the next"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", type=Path, help="run this one, from a JSON file")
    parser.add_argument("--trace", action="store_true", help="say what happens, of one schedule")
    parser.add_argument("--no-shortening", action="store_true")
    options = parser.parse_args()
    if options.replay is not None or options.trace:
        text = options.replay.read_text() if options.replay is not None else ""
        return _one(Schedule.from_json(text) if text else random_schedule(options.seed), options)
    began_s = time.monotonic()
    total, failures = many(options.seed, options.schedules, options.jobs)
    say(table(total, options.schedules, time.monotonic() - began_s))
    for seed, why in failures:
        schedule = random_schedule(seed)
        if not options.no_shortening:
            schedule = shorten(schedule, why)
        say(f"\nFAILED seed {seed}: {why}\n{schedule.to_json()}")
    return 1 if failures else 0


def _one(schedule: Schedule, options: argparse.Namespace) -> int:
    logging.disable(logging.NOTSET if options.trace else logging.CRITICAL)
    say(schedule.to_json())
    if options.trace:
        with traced(say):
            say(run(schedule))
    else:
        say(run(schedule))
    return 0


def many(first: int, count: int, jobs: int) -> tuple[Outcome, list[Failure]]:
    """Runs them; what they were like together, and what failed."""
    chunks = [range(s, min(s + CHUNK, first + count)) for s in range(first, first + count, CHUNK)]
    total, failures = Outcome(), []
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for outcome, failed in pool.imap_unordered(_chunk, chunks):
            total.counts += outcome.counts
            total.simulated_s += outcome.simulated_s
            total.events += outcome.events
            total.longest_silence_s = max(total.longest_silence_s, outcome.longest_silence_s)
            failures += failed
    return total, sorted(failures)


def _chunk(seeds: range) -> tuple[Outcome, list[Failure]]:
    logging.disable(logging.CRITICAL)
    gc.freeze()  # torch's and the code's own objects are never garbage: not to be gone through
    gc.set_threshold(20_000, 20, 20)  # most that a world makes lives as long as it does
    total, failures = Outcome(), []
    for seed in seeds:
        try:
            outcome = run(random_schedule(seed))
        except Exception as error:  # whatever it is, it is this schedule's finding
            failures.append((seed, f"{type(error).__name__}: {error}"))
            continue
        total.counts += outcome.counts
        total.simulated_s += outcome.simulated_s
        total.events += outcome.events
        total.longest_silence_s = max(total.longest_silence_s, outcome.longest_silence_s)
    return total, failures


def shorten(schedule: Schedule, why: str) -> Schedule:
    """Leave out steps for as long as it still fails in the same way."""
    wanted = _likeness(why)
    logging.disable(logging.CRITICAL)
    index = len(schedule.steps) - 1
    while index >= 0:
        shorter = schedule.without(index)
        try:
            run(shorter)
        except Exception as error:
            if _likeness(f"{type(error).__name__}: {error}") == wanted:
                schedule = shorter
        index -= 1
    return schedule


def _likeness(why: str) -> str:
    return "".join(c for c in why if not c.isdigit())[:40]


def table(total: Outcome, schedules: int, seconds: float) -> str:
    """Everything that happened, as lines of a Markdown table."""
    counts: Counter[str] = total.counts
    rows: list[tuple[str, str]] = [
        ("schedules", f"{schedules}"),
        ("seconds", f"{seconds:.0f} ({schedules / max(seconds, 1e-9):.0f} schedules/s)"),
        ("simulated hours", f"{total.simulated_s / 3600:.1f}"),
        ("events", f"{total.events}"),
        (
            "longest wait for a token of a request that was answered",
            f"{total.longest_silence_s:.1f} s",
        ),
    ]
    rows += [(f"step: {kind}", str(counts[kind])) for kind in KINDS]
    rows += [(name, str(counts[name])) for name in sorted(counts) if name not in KINDS]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"| {name:{width}} | {value} |" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
