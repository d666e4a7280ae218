"""What a loss costs: `python -m benchmarks.recovery`. Real processes, faults at random moments.

    python -m benchmarks.recovery [--faults 210] [--model m384] [--dtype float32] [--seed 1]
    python -m benchmarks.recovery --fast-return    # a stage of 1 GB ends: how soon it is back
    python -m benchmarks.recovery --overhead       # what it costs while nothing is broken
    python -m benchmarks.recovery --soak MINUTES

`lamella serve` with 16 streams at once, half of them greedy and half drawn with a seed. Every
answer is compared with the one that the same request got when nothing was broken. One server takes
`--per-server` faults, since a process that ends again and again is started later and later. Ends
with status 1 when a token was lost or doubled, a request failed, a healthy stage was restarted, or
not all faults came to be within `--minutes`. Results so far lie in `--out` after each server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from benchmarks import recovery_fast, recovery_report, recovery_soak
from benchmarks.processes import random_model
from benchmarks.recovery_faults import KINDS, Fault, order_of, strike
from benchmarks.recovery_load import Answer, Card, Load, make_deck
from benchmarks.recovery_overhead import Overhead, measure, overhead
from benchmarks.recovery_server import Server, Stuck, serving

VOCABULARY = {"tiny": 512, "m384": 8000}
VOCABULARY_OF_OTHERS = 32_000
PAUSE_S = (0.3, 2.0)
"""Between a recovery and the next fault: a random moment of steady work."""

MOST_STUCK = 5
LAST_RESORT_S = 90
"""After the last fault may have begun; what is stuck then is left as it is."""


@dataclass(slots=True)
class Run:
    """Everything that one run has seen."""

    deck: list[Card]
    wanted: dict[int, Answer] = field(default_factory=dict)  # undisturbed, by card
    unsteady: int = 0  # undisturbed answers that differ between two passes
    faults: list[Fault] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    overhead: Overhead | None = None
    over_s: float = float("inf")  # when the run's time is over, monotonic
    pieces_s: list[float] = field(default_factory=list)  # of the last server, for the plot
    struck: list[Fault] = field(default_factory=list)  # of the last server

    def is_over(self) -> bool:
        """Whether no fault is begun any more."""
        return time.monotonic() > self.over_s

    def judge(self, answer: Answer) -> None:
        """Count an answer at the fault that came last before its end."""
        self.answers.append(answer)
        fault = next((f for f in reversed(self.faults) if f.at_s <= answer.ended_s), None)
        if fault is None:
            fault = Fault("none", 0.0)
            self.faults.insert(0, fault)
        wanted = self.wanted[answer.card]
        if answer.error and answer.cut and fault.kind == "gateway killed":
            fault.cut += answer.began_s < fault.at_s  # later ones found no gateway there yet
        elif answer.error:
            fault.failures.append(f"card {answer.card}: {answer.error}")
        else:
            fault.differing += answer.text != wanted.text
            fault.lost += max(0, wanted.tokens - answer.tokens)
            fault.doubled += max(0, answer.tokens - wanted.tokens)

    def undisturbed(self, server: Server, streams: int) -> None:
        """Two passes over the deck: the right answers, and whether they are always the same."""
        for first in (True, False):
            answers: list[Answer] = []
            load = Load(server.port, self.deck, streams=streams, on_answer=answers.append, rounds=1)
            load.start()
            load.join()
            bad = [answer.error for answer in answers if answer.error]
            if bad:
                raise SystemExit(f"requests fail before anything is broken: {bad[0]}")
            if first:
                self.wanted = {answer.card: answer for answer in answers}
            else:
                self.unsteady = sum(self.wanted[a.card].text != a.text for a in answers)


def inject(run: Run, server: Server, kinds: Iterator[str], count: int, options: Any) -> None:
    """`count` faults on one server under load, fewer when the time is over.

    Stuck when something does not go on: the fault that came last has it among its failures, and
    answers that were live then are not judged.
    """
    draw = random.Random(f"{options.seed}/{len(run.faults)}")
    ended: list[Answer] = []
    load = Load(server.port, run.deck, streams=options.streams, on_answer=ended.append)
    load.start()
    struck: list[Fault] = []
    try:
        server.wait_until(lambda: len(load.pieces_s) > 100, 60, "no token comes")
        for kind in itertools.islice(kinds, count):
            if run.is_over():
                break
            time.sleep(draw.uniform(*PAUSE_S))
            fault = Fault(kind, 0.0)
            struck.append(fault)
            strike(server, load, fault, draw)
            number = len(run.faults) + len(struck)
            print(f"  {number:>4} {recovery_report.line(fault)}", flush=True)
        time.sleep(1.0)
        load.stop()
        if load.is_alive():
            raise Stuck(f"requests hang: {[a.card for a in load.live.values()]}")
        server.wait_until(server.is_quiet, 10, "requests are left behind")
    except Stuck as reason:
        struck = struck or [Fault("none", time.monotonic())]
        struck[-1].at_s = struck[-1].at_s or time.monotonic()
        struck[-1].failures.append(str(reason))
        raise
    finally:
        load.abandon()
        run.pieces_s, run.struck = load.pieces_s, struck
        run.faults += struck
        for answer in sorted(ended, key=lambda answer: answer.ended_s):
            run.judge(answer)


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, help="210; for --fast-return 6")
    parser.add_argument("--per-server", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=32.0, help="begin no fault after these")
    parser.add_argument("--kinds", help="only these, comma between; else all", default="")
    parser.add_argument("--model", help="a size of benchmarks/models.py; m384, --overhead m768")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--pin", action="store_true", help="pin each stage to a core of its own")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=160, help="longest answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed load, and flat memory")
    parser.add_argument("--fast-return", action="store_true", help="slices of 1 GB, their parts")
    parser.add_argument("--overhead", action="store_true", help="what it costs when all is well")
    parser.add_argument(
        "--out", type=Path, default=Path("build/recovery"), help="folder of results"
    )
    parser.add_argument("--publish", action="store_true", help="write docs/recovery.* anew")
    options = parser.parse_args(words)
    options.model = options.model or ("m768" if options.overhead else "m384")
    options.faults = options.faults or (6 if options.fast_return else 210)
    return options


def results(run: Run, options: argparse.Namespace) -> str:
    """Write what there is so far: a long run may be cut short. Returns the table."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    document = [recovery_report.as_json(fault) for fault in run.faults]
    text = recovery_report.table(run, options)
    (folder / "faults.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    if len(run.pieces_s) > 1:
        recovery_report.plot(run.pieces_s, run.struck, folder / "recovery.png")
    return text


def all_faults(run: Run, model: Path, options: argparse.Namespace) -> None:
    """Servers one after the other, until all faults were injected or the time is over.

    A server on which something is stuck is given up; the next one goes on.
    """
    wanted = [kind for kind in options.kinds.split(",") if kind] or list(KINDS)
    kinds = order_of(wanted, options.faults, random.Random(options.seed))
    stuck = 0
    while (left := options.faults - recovery_report.injected(run)) > 0 and not run.is_over():
        count = min(left, options.per_server)
        print(f"a server of {options.stages} stages, {count} faults", flush=True)
        try:
            with serving(
                model, stages=options.stages, dtype=options.dtype, pin=options.pin
            ) as server:
                if not run.wanted:
                    with measure(server) as run.overhead:
                        run.undisturbed(server, options.streams)
                inject(run, server, kinds, count, options)
        except (Stuck, psutil.Error, OSError) as reason:
            print(f"  STUCK {reason}", flush=True)
            stuck += 1
            if stuck > MOST_STUCK or not run.wanted:
                break
        results(run, options)


def time_is_over(number: int, frame: FrameType | None) -> None:
    """The last resort: out of whatever waits."""
    raise Stuck("the run's time is over")


def main() -> int:
    """The table; the exit status."""
    options = options_of()
    if options.fast_return:
        return recovery_fast.fast_return(options)
    vocabulary = VOCABULARY.get(options.model, VOCABULARY_OF_OTHERS)
    deck = make_deck(vocabulary, cards=24, seed=options.seed, longest=options.tokens)
    if options.overhead:
        return overhead(options, deck)
    run = Run(deck)
    with random_model(options.model, options.folder) as model:
        if options.soak:
            return recovery_soak.soak(run, model, options)
        run.over_s = time.monotonic() + 60.0 * options.minutes
        signal.signal(signal.SIGALRM, time_is_over)
        signal.alarm(int(60.0 * options.minutes) + LAST_RESORT_S)
        all_faults(run, model, options)
        signal.alarm(0)
    print("\n" + results(run, options))
    if options.publish:
        recovery_report.publish(options.out, Path("docs"))
    short = recovery_report.injected(run) < options.faults
    if short:
        print(f"CUT SHORT: {recovery_report.injected(run)} of {options.faults} faults")
    return recovery_report.verdict(run) or int(short)


if __name__ == "__main__":
    sys.exit(main())
