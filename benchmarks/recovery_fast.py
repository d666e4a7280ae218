"""How soon a stage is back whose process died, when its slice weighs 1 GB and its files are warm.

    python -m benchmarks.recovery --fast-return [--faults 6] [--folder FOLDER]

Each server loses each of its two stages once, so that no wait of a process that ends often is in
it. There is one stream: little is computed again, and what is left is the time to detect, to fork,
to read and lay out the slice, and to connect the ring.
"""

from __future__ import annotations

import argparse
import random
import re
import time

from benchmarks import recovery_report
from benchmarks.processes import random_model
from benchmarks.recovery_faults import Fault, strike
from benchmarks.recovery_load import Answer, Load, make_deck
from benchmarks.recovery_server import Server, Stuck, serving

MODEL, DTYPE, STAGES, VOCABULARY = "m2048", "bfloat16", 2, 32_000
WANTED_S = 3.0
VICTIMS = ("stage k killed", "stage 0 killed")
LOADED = re.compile(r"slice loaded.*?seconds=([0-9.]+)")


def fast_return(options: argparse.Namespace) -> int:
    """Prints each return in its parts; 1 when one took longer than WANTED_S or an answer failed."""
    draw = random.Random(options.seed)
    faults: list[Fault] = []
    with random_model(MODEL, options.folder) as model:
        (model / "model.safetensors").read_bytes()  # warm
        while len(faults) < options.faults:
            with serving(model, stages=STAGES, dtype=DTYPE, pin=options.pin) as server:
                faults += _lose_each(server, draw)
    for kind in VICTIMS:
        of_kind = [fault for fault in faults if fault.kind == kind]
        parts = [
            f"{name} {recovery_report.median(of(fault) for fault in of_kind)}"
            for name, of in recovery_report.PARTS
        ]
        print(f"{kind}, n {len(of_kind)}: {', '.join(parts)}")
    slow = [fault for fault in faults if fault.first_s > WANTED_S]
    failures = [text for fault in faults for text in fault.failures]
    print(f"{len(slow)} of {len(faults)} took longer than {WANTED_S:g} s", *failures, sep="\n")
    return int(bool(slow or failures))


def _lose_each(server: Server, draw: random.Random) -> list[Fault]:
    """Both stages of a server die once under one stream."""
    ended: list[Answer] = []
    deck = make_deck(VOCABULARY, cards=8, seed=1, longest=160)
    load = Load(server.port, deck, streams=1, on_answer=ended.append)
    load.start()
    faults = []
    try:
        for kind in VICTIMS:
            pieces = len(load.pieces_s)
            server.wait_until(lambda n=pieces: len(load.pieces_s) > n + 20, 60, "no token comes")
            time.sleep(draw.uniform(0.0, 0.5))
            faults.append(Fault(kind, 0.0))
            strike(server, load, faults[-1], draw)
            print(f"  {recovery_report.line(faults[-1])}{_loading(server, faults[-1])}", flush=True)
    except Stuck as reason:
        faults[-1].failures.append(str(reason))
    finally:
        load.abandon()
    faults[-1].failures += [answer.error for answer in ended if answer.error]
    return faults


def _loading(server: Server, fault: Fault) -> str:
    """What the new process says of its slice."""
    for line in server.since(fault.at_s, "slice loaded"):
        if found := LOADED.search(line.text):
            megabytes = (server.stage(min(fault.hit)) or {}).get("bytes_total", 0) / 1e6
            return f" slice of {megabytes:.0f} MB read and laid out in {found[1]} s"
    return ""
