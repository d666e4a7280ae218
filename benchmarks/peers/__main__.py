"""`python -m benchmarks.peers`: installs the peers, asks all turn by turn, writes table and plots.

    python -m benchmarks.peers                      five rounds, everything
    python -m benchmarks.peers --quick              two rounds
    python -m benchmarks.peers --only lamella-1,lamella-2 --quick      no peer is needed
    python -m benchmarks.peers --into FOLDER --add  adds its rounds to those that are there

The client, the servers and all else share the two cores. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path

import psutil
from benchmarks.peers import faults, install, measure, report
from benchmarks.peers.measure import Results, Turn
from benchmarks.peers.running import NotStarted, Running
from benchmarks.peers.systems import SYSTEMS, System
from benchmarks.processes import leave_nothing

from lamella import bench
from lamella.errors import EndpointError

TURNS = "turns.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="m768")
    parser.add_argument("--levels", default="1,4,16,64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--only", default="", help="keys of systems, such as lamella-2,vllm-2")
    parser.add_argument("--cores", default="", help="two core numbers; default: the first two")
    parser.add_argument("--into", type=Path, default=Path("build/peers"))
    parser.add_argument("--add", action="store_true", help="keep the rounds that are there")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--kill", action="store_true", help="kill a stage of each instead")
    parser.add_argument("--streams", type=int, default=16, help="with --kill")
    parser.add_argument("--patience", type=float, default=330.0, help="with --kill, seconds")
    return parser.parse_args()


def chosen(only: str) -> tuple[System, ...]:
    keys = {system.key for system in SYSTEMS}
    wanted = set(filter(None, only.split(","))) or keys
    if unknown := wanted - keys:
        raise SystemExit(f"--only: got {sorted(unknown)}, want some of {sorted(keys)}")
    return tuple(system for system in SYSTEMS if system.key in wanted)


def started(
    system: System, context: tuple[install.Tools, install.Files, tuple[int, int], Path],
    results: Results, stack: contextlib.ExitStack,
) -> tuple[Running, bench.Asking] | None:  # fmt: skip
    """A system that answers, held; None, with the reason kept, for one that does not."""
    tools, files, cores, folder = context
    if system.peer in tools.reasons:
        results.missing[system.key] = tools.reasons[system.peer]
        return None
    running = Running(system, tools, files, cores, folder)
    stack.callback(running.end)
    try:
        running.start()
        running.wait_ready()
        model = str(files.folder) if system.key == "hf-cb" else system.model
        asking = measure.find_out(running, model)
        for level in (4, 16):
            measure.warm_up(running, asking, level)
    except (NotStarted, EndpointError, OSError, psutil.Error) as error:
        reason = str(error) or type(error).__name__
        results.missing[system.key] = f"{reason}; {running.log_end()[-300:]}"
        say(f"{system.title}: {results.missing[system.key]}")
        running.end()
        return None
    say(f"{system.title}: answers after {running.start_s:.0f} s")
    if system.peer:
        running.hold()
    return running, asking


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def tell(turn: Turn) -> None:
    level = turn.level
    say(
        f"round {turn.round} {turn.system:<12} {level.concurrency:>3}: "
        f"{level.output_tokens_per_s:7.1f} tok/s, TPOT {level.tpot_ms_p50:6.2f} ms, "
        f"CPU {sum(turn.cpu_us.values()):.0f} us, failed {level.failures} {level.first_error}"
    )


def main() -> int:
    leave_nothing()
    options = arguments()
    systems = chosen(options.only)
    tools = install.tools({system.peer for system in systems})
    files = install.files(options.model, with_gguf=tools.llama is not None)
    for name, reason in tools.reasons.items():
        say(f"{name} cannot be had: {reason}")
    if options.install_only:
        return 0
    given = [int(core) for core in options.cores.split(",") if core]
    first, second = (given or sorted(os.sched_getaffinity(0)))[:2]
    os.sched_setaffinity(0, {first, second})
    options.into.mkdir(parents=True, exist_ok=True)
    levels = [int(level) for level in options.levels.split(",")]
    results, kept = Results(), options.into / TURNS
    if options.add and kept.is_file():
        results = Results.of_json(json.loads(kept.read_text(encoding="utf-8")))
    context = (tools, files, (first, second), options.into.resolve())
    if options.kill:
        return kill_each(systems, context, options, results)
    with contextlib.ExitStack() as stack:
        there = [started(system, context, results, stack) for system in systems]
        askings = [pair for pair in there if pair]
        count = 2 if options.quick else options.rounds
        results.floors.append(measure.floor(files.folder, first))
        begin = max((turn.round for turn in results.turns), default=0) + 1
        for number in range(begin, begin + count):
            measure.take_round(askings, levels, number, number - begin, results, tell)
            write(results, levels, systems, options.into)  # what is there stays there
        results.floors.append(measure.floor(files.folder, first))
    print(write(results, levels, systems, options.into))
    return 0


def kill_each(
    systems: tuple[System, ...],
    context: tuple[install.Tools, install.Files, tuple[int, int], Path],
    options: argparse.Namespace,
    results: Results,
) -> int:
    """One system after the other, each started anew, and a stage of it killed. What was seen of
    each is written at once."""
    seen: list[tuple[str, faults.Seen]] = []
    for system in systems:
        if system.stages == 1 or system.peer == "transformers":
            continue  # the last has no more than a loop in our own script around it
        with contextlib.ExitStack() as stack:
            pair = started(system, context, results, stack)
            if pair is None:
                continue
            pair[0].go_on()
            try:
                seen.append((system.title, faults.kill(*pair, options.streams, options.patience)))
                say(str(seen[-1][1]))
            except (faults.NotKilled, OSError, psutil.Error) as error:
                results.missing[system.key] = str(error) or type(error).__name__
                say(f"{system.title}: {results.missing[system.key]}")
        write_seen(seen, results, options.into)
    print(write_seen(seen, results, options.into))
    return 0


def write_seen(seen: list[tuple[str, faults.Seen]], results: Results, folder: Path) -> str:
    """Table and figures of the kills; the table."""
    text = faults.table(seen, results.missing)
    (folder / "faults.md").write_text(text + "\n", encoding="utf-8")
    document = [it.as_json() for _, it in seen]
    (folder / "faults.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return text


def write(results: Results, levels: list[int], systems: tuple[System, ...], folder: Path) -> str:
    """Table, figures and plot; the table."""
    text = report.table(results, levels, systems)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    text_json = json.dumps(results.as_json(), indent=1) + "\n"
    (folder / TURNS).write_text(text_json, encoding="utf-8")
    report.plot(results, levels, folder / "peers.png")
    return text


if __name__ == "__main__":
    sys.exit(main())
