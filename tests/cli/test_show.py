"""What the user reads: numbers, progress, log lines, tables."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from lamella import progress, show
from lamella.logview import LogView, failure
from lamella.watch import Snapshot, StageStatus

MIB = 1 << 20


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 20, "1 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert show.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (59.4, "59 s"), (61, "1 min 1 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


@pytest.mark.parametrize(
    ("stage", "text", "part"),
    [
        (StageStatus(0), "importing torch", 0.0),
        (StageStatus(0, "loading"), "loading", 0.0),
        (
            StageStatus(0, "loading", 50 * MIB, 100 * MIB, 25 * MIB, 2.0),
            "50 MiB of 100 MiB, 25 MiB/s, 2.0 s left",
            0.5,
        ),
        (StageStatus(0, "serving", 0, 100 * MIB), "serving", 1.0),
        (StageStatus(0, "failed", 1, 2, error="no room"), "failed: no room", 0.5),
    ],
    ids=["starting", "no-bytes", "loading", "serving", "failed"],
)
def test_a_stage_in_words(stage: StageStatus, text: str, part: float) -> None:
    assert progress.describe(stage) == text
    assert progress.fraction(stage) == part


@pytest.mark.parametrize(
    "document",
    [{}, {"state": "loading", "bytes_done": None, "eta_s": None, "new": {}}, {"eta_s": 1}],
    ids=["empty", "nulls", "partial"],
)
def test_any_status_document_is_read(document: dict[str, Any]) -> None:
    assert StageStatus.parse(3, document).stage == 3


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def text_of(written: Console) -> str:
    assert isinstance(written.file, io.StringIO)
    return written.file.getvalue()


def test_off_a_terminal_progress_is_a_line_per_change_and_every_two_seconds() -> None:
    clock, written = [100.0], console()
    lines = progress.Lines(written, now_s=lambda: clock[0])
    states = [("starting", 0), ("loading", 0), ("loading", 1), ("loading", 3), ("serving", 3)]
    for state, later_s in states:
        clock[0] = 100.0 + later_s
        lines.show(Snapshot((StageStatus(0, state, 1 << 20, 4 << 20),)))
    lines.close()
    assert text_of(written).splitlines() == [
        "stage 0: 25 %, importing torch",
        "stage 0: 25 %, 1 MiB of 4 MiB",
        "stage 0: 25 %, 1 MiB of 4 MiB",
        "stage 0: 100 %, serving",
    ]


def test_on_a_terminal_progress_is_bars() -> None:
    written = Console(file=io.StringIO(), width=100, force_terminal=True)
    bars = progress.display_for(written, 2)
    bars.show(Snapshot((StageStatus(0, "loading", 1, 2), StageStatus(1))))
    bars.close()
    assert "50 %" in text_of(written)


def line(level: str, message: str, **facts: object) -> str:
    return json.dumps({"role": "stage-1", "level": level, "message": message, **facts})


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], "worker ended with code 78 and said nothing"),
        (["Traceback", "ModuleNotFoundError: torch"], "worker: ModuleNotFoundError: torch"),
        (
            [line("INFO", "a"), line("ERROR", "w.st is cut", kind="x"), line("ERROR", "for good")],
            "stage-1: w.st is cut",
        ),
        (
            [
                line("ERROR", "stage crashed", exception="Traceback\nValueError: 3"),
                line("INFO", "b"),
            ],
            "stage-1: stage crashed: ValueError: 3",
        ),
    ],
    ids=["silent", "traceback", "ours", "crash"],
)
def test_why_a_child_failed(lines: list[str], text: str) -> None:
    assert failure("worker", 78, lines) == text


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_are_shown_always_the_rest_when_asked(verbose: bool) -> None:
    written = console()
    view = LogView(written, verbose=verbose)
    view.take("worker", line("INFO", "quiet"))
    view.take("worker", line("WARNING", "loud [1/2]", epoch=3))
    view.take("worker", "plain words")
    assert "stage-1 WARNING loud [1/2] epoch=3" in text_of(written)
    assert ("quiet" in text_of(written)) is verbose
    assert ("plain words" in text_of(written)) is verbose
