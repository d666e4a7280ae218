"""The table and the plot of a run. Knows what was measured; measures nothing."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.recovery_faults import KINDS, Fault

PARTS: tuple[tuple[str, Callable[[Fault], float | None]], ...] = (
    ("detect", lambda fault: fault.detect_s),
    ("back-off", lambda fault: fault.wait_s),
    ("restart", lambda fault: fault.restart_s),
    ("load", lambda fault: fault.load_s),
    ("replay", lambda fault: fault.replay_s),
    ("first token", lambda fault: fault.first_s),
    ("all streams", lambda fault: fault.all_s),
)
BIN_S = 0.1


def line(fault: Fault) -> str:
    """One fault, as it is told while the run goes on."""
    parts = " ".join(f"{name} {seconds(of(fault))}" for name, of in PARTS)
    stages = ",".join(map(str, sorted(fault.hit))) or "-"
    freed = "" if fault.freed_s is None else f" freed {fault.freed_s:.2f}"
    return f"{fault.kind:<24} stages {stages:<6} {parts}{freed} live {fault.live_tokens}"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def median(values: Iterable[float | None]) -> str:
    """Median and worst, of those that are there."""
    there = [value for value in values if value is not None]
    return f"{statistics.median(there):.2f} ({max(there):.2f})" if there else "-"


def rows(faults: list[Fault]) -> list[list[str]]:
    """One row per kind: n, the parts as median (worst), and what must be 0."""
    made = []
    for kind in KINDS:
        of_kind = [fault for fault in faults if fault.kind == kind]
        if not of_kind:
            continue
        made.append(
            [
                kind,
                str(len(of_kind)),
                *(median(of(fault) for fault in of_kind) for _, of in PARTS),
                str(sum(f.lost for f in of_kind)),
                str(sum(f.doubled for f in of_kind)),
                str(sum(f.differing for f in of_kind)),
                str(sum(len(f.failures) for f in of_kind)),
                str(sum(f.healthy_restarted for f in of_kind)),
            ]
        )
    return made


COLUMNS = [
    "fault",
    "n",
    *(name for name, _ in PARTS),
    "lost",
    "doubled",
    "differ",
    "failed",
    "healthy restarted",
]


def injected(run: Any) -> int:
    """How many faults there were."""
    return sum(fault.kind in KINDS for fault in run.faults)


def table(run: Any, options: argparse.Namespace) -> str:
    """Markdown, with what it takes to measure it again."""
    faults = [fault for fault in run.faults if fault.kind in KINDS]
    body = [COLUMNS, ["---"] * len(COLUMNS), *rows(faults)]
    cut = sum(fault.cut for fault in faults)
    freed = [fault.freed_s for fault in faults if fault.freed_s is not None]
    live = [fault.live_tokens for fault in faults]
    failures = [text for fault in run.faults for text in fault.failures]
    return "\n".join(
        [
            *("| " + " | ".join(row) + " |" for row in body),
            "",
            f"{len(faults)} faults, {len(run.answers)} answers, seconds as median (worst). "
            f"{options.model}, {options.dtype}, {options.stages} stages, {options.streams} streams,"
            f" {min(live, default=0)} to {max(live, default=0)} live tokens; {os.cpu_count()} "
            f"cores, load {os.getloadavg()[0]:.1f}, seed {options.seed}.",
            f"undisturbed answers that differ between two passes: {run.unsteady}",
            *([f"gateway killed: {cut} connections lost, requests freed after "
               f"{median(freed)} s"] if freed else []),
            *([run.overhead.text()] if run.overhead else []),
            *(f"FAILED {text.splitlines()[0]}" for text in failures[:20]),
        ]
    )  # fmt: skip


def verdict(run: Any) -> int:
    """0 when nothing was lost, doubled, changed, refused or restarted for nothing."""
    bad = any(
        f.lost or f.doubled or f.failures or f.healthy_restarted
        or (f.differing and not run.unsteady)
        or (f.freed_s is not None and f.freed_s > 5.0 + 1.0)
        for f in run.faults
    )  # fmt: skip
    return int(bad)


TABLE = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def publish(results: Path, docs: Path) -> None:
    """Put the table and the plot where the page about recovery shows them."""
    page = docs / "recovery.md"
    table = (results / "table.md").read_text(encoding="utf-8")
    text = TABLE.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", page.read_text("utf-8"))
    page.write_text(text, encoding="utf-8")
    if (results / "recovery.png").exists():
        shutil.copyfile(results / "recovery.png", docs / "recovery.png")


def as_json(fault: Fault) -> dict[str, Any]:
    return {**dataclasses.asdict(fault), "hit": sorted(fault.hit)}


def plot(pieces_s: list[float], faults: list[Fault], path: Path) -> None:
    """Tokens per 100 ms over time, a mark at each fault."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    start_s = pieces_s[0]
    bins = [0] * (int((pieces_s[-1] - start_s) / BIN_S) + 1)
    for at_s in pieces_s:
        bins[int((at_s - start_s) / BIN_S)] += 1
    figure, axes = pyplot.subplots(figsize=(11, 3.6), layout="constrained")
    axes.step([n * BIN_S for n in range(len(bins))], bins, where="post", linewidth=0.7)
    top = max(bins)
    for fault in faults:
        at_s = fault.at_s - start_s
        axes.axvline(at_s, color="tab:red", linewidth=0.8)
        axes.axvspan(at_s, at_s + fault.first_s, color="tab:red", alpha=0.08)
        axes.text(at_s, top * 1.03, fault.kind, rotation=20, fontsize=7, va="bottom")
    axes.set(xlabel="seconds", ylabel="tokens per 100 ms", xlim=(0, len(bins) * BIN_S))
    axes.set_ylim(0, top * 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    pyplot.rcParams["svg.fonttype"] = "none"
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
