"""What a loss costs: `python -m benchmarks.recovery`. Real processes, faults at random moments.

    python -m benchmarks.recovery [--faults 210] [--model m768] [--dtype float32] [--seed 1]
    python -m benchmarks.recovery --soak MINUTES

`lamella serve` with 16 streams at once, half of them greedy and half drawn with a seed. Every
answer is compared with the one that the same request got when nothing was broken. One server takes
`--per-server` faults, since a process that ends again and again is started later and later. Ends
with status 1 when a token was lost or doubled, a request failed or a healthy stage was restarted.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import recovery_report, recovery_soak
from benchmarks.recovery_faults import Fault, order_of, strike
from benchmarks.recovery_load import Answer, Card, Load, make_deck
from benchmarks.recovery_overhead import Overhead, measure
from benchmarks.recovery_server import Server, serving

VOCABULARY = {"tiny": 512}
VOCABULARY_OF_OTHERS = 32_000
PAUSE_S = (0.3, 2.0)
"""Between a recovery and the next fault: a random moment of steady work."""


@dataclass(slots=True)
class Run:
    """Everything that one run has seen."""

    deck: list[Card]
    wanted: dict[int, Answer] = field(default_factory=dict)  # undisturbed, by card
    unsteady: int = 0  # undisturbed answers that differ between two passes
    faults: list[Fault] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    overhead: Overhead | None = None
    pieces_s: list[float] = field(default_factory=list)  # of the last server, for the plot

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
    """`count` faults on one server under load."""
    draw = random.Random(f"{options.seed}/{len(run.faults)}")
    ended: list[Answer] = []
    load = Load(server.port, run.deck, streams=options.streams, on_answer=ended.append)
    load.start()
    server.wait_until(lambda: len(load.pieces_s) > 100, 60, "no token comes")
    struck: list[Fault] = []
    for kind in (kind for _, kind in zip(range(count), kinds, strict=False)):
        time.sleep(draw.uniform(*PAUSE_S))
        struck.append(strike(server, load, kind, draw))
        print(
            f"  {len(run.faults) + len(struck):>4} {recovery_report.line(struck[-1])}", flush=True
        )
    time.sleep(1.0)
    load.stop()
    run.pieces_s = load.pieces_s
    run.faults += struck
    for answer in sorted(ended, key=lambda answer: answer.ended_s):
        run.judge(answer)
    server.wait_until(server.is_quiet, 10, "requests are left behind")


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=210)
    parser.add_argument("--per-server", type=int, default=7)
    parser.add_argument("--model", default="m768", help="a size of benchmarks/models.py")
    parser.add_argument("--folder", type=Path, help="keep the random model here")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--pin", action="store_true", help="pin each stage to a core of its own")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=160, help="longest answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed load, and flat memory")
    parser.add_argument("--plot", type=Path, help="draw the last server's tokens here")
    parser.add_argument("--json", type=Path, help="write every fault here too")
    return parser.parse_args(words)


def make_model(options: argparse.Namespace, scratch: Path) -> Path:
    folder = options.folder or scratch / "model"
    # A process of its own: this one must stay small, it shares the cores with what it measures.
    models = str(Path(__file__).parent / "models.py")
    subprocess.run(
        [sys.executable, models, options.model, str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Path(folder)


def write_json(run: Run, options: argparse.Namespace) -> None:
    if options.json:
        document = [recovery_report.as_json(fault) for fault in run.faults]
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """The table; the exit status."""
    options = options_of()
    vocabulary = VOCABULARY.get(options.model, VOCABULARY_OF_OTHERS)
    deck = make_deck(vocabulary, cards=24, seed=options.seed, longest=options.tokens)
    run = Run(deck)
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(options, Path(scratch))
        if options.soak:
            return recovery_soak.soak(run, model, options)
        kinds = order_of(options.faults, random.Random(options.seed))
        left = options.faults
        while left > 0:
            count = min(left, options.per_server)
            print(f"a server of {options.stages} stages, {count} faults", flush=True)
            with serving(
                model, stages=options.stages, dtype=options.dtype, pin=options.pin
            ) as server:
                if not run.wanted:
                    with measure(server) as run.overhead:
                        run.undisturbed(server, options.streams)
                inject(run, server, kinds, count, options)
            left -= count
            write_json(run, options)  # a long run may be cut short
    print("\n" + recovery_report.table(run, options))
    if options.plot:
        recovery_report.plot(run.pieces_s, run.faults[-options.per_server :], options.plot)
    return recovery_report.verdict(run)


if __name__ == "__main__":
    sys.exit(main())
