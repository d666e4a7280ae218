"""Loading as the user sees it: one bar per stage on a terminal, one line per change anywhere else.

Knows `Snapshot`s and a console; decides nothing. `serve` calls `show` with each new snapshot.
"""

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lamella import show
from lamella.watch import Snapshot, StageStatus

LINE_INTERVAL_S = 2.0
_DONE_STATES = frozenset({"joining", "ready", "serving"})


class Display(Protocol):
    """What shows a loading pipeline."""

    def show(self, snapshot: Snapshot) -> None:
        """Shows the state as it is now."""

    def close(self) -> None:
        """Leaves the terminal as it should stay."""


def describe(stage: StageStatus) -> str:
    """The words behind a bar: state, bytes, speed and time to go, as far as they are known."""
    if stage.error:
        return f"failed: {stage.error}"
    if stage.state == "starting":
        return "importing torch"
    if stage.state in _DONE_STATES or not stage.bytes_total:
        return stage.state
    parts = [f"{show.size(stage.bytes_done)} of {show.size(stage.bytes_total)}"]
    if stage.bytes_per_s > 0:
        parts.append(f"{show.size(stage.bytes_per_s)}/s")
    if stage.eta_s is not None and stage.bytes_done < stage.bytes_total:
        parts.append(f"{show.duration(stage.eta_s)} left")
    return ", ".join(parts)


def fraction(stage: StageStatus) -> float:
    """How much of the slice is loaded, 0 to 1."""
    if stage.state in _DONE_STATES:
        return 1.0
    return min(stage.bytes_done / stage.bytes_total, 1.0) if stage.bytes_total else 0.0


class Bars:
    """A live bar per stage."""

    def __init__(self, console: Console, stages: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[words]}"),
            console=console,
            transient=True,
        )
        self._tasks = [
            self._progress.add_task(f"stage {stage}", total=1.0, words="importing torch")
            for stage in range(stages)
        ]
        self._progress.start()

    def show(self, snapshot: Snapshot) -> None:
        for task, stage in zip(self._tasks, snapshot.stages, strict=True):
            self._progress.update(task, completed=fraction(stage), words=describe(stage))

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """A line when a stage's state changes, and every two seconds while it loads: for logs and
    pipes."""

    def __init__(self, console: Console, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now_s = now_s
        self._states: dict[int, str] = {}
        self._said_s: dict[int, float] = {}

    def show(self, snapshot: Snapshot) -> None:
        for stage in snapshot.stages:
            changed = self._states.get(stage.stage) != stage.state
            waited_s = self._now_s() - self._said_s.get(stage.stage, 0.0)
            moving = stage.state == "loading" and waited_s >= LINE_INTERVAL_S
            if changed or moving:
                self._states[stage.stage] = stage.state
                self._said_s[stage.stage] = self._now_s()
                percent = f"{100 * fraction(stage):.0f} %"
                self._console.print(f"stage {stage.stage}: {percent}, {describe(stage)}")

    def close(self) -> None:
        """Nothing to tidy: lines stay."""


def display_for(console: Console, stages: int) -> Display:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, stages) if console.is_terminal else Lines(console)
