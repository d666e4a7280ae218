"""What a benchmark starts ends with it: servers of one model, and the maker of that model.

Knows processes; nothing of what is measured. Scripts of this folder import it from beside them,
`python -m benchmarks.recovery` and `.peers` as a part of `benchmarks`.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

END_S = 30.0


def leave_nothing() -> None:
    """From here on a signal that would end this process at once (^C, SIGTERM, the terminal is gone)
    leaves it as an exception does, so that what was started is ended too. For the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    # Once: a second signal would break off the ending of what was started.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def started(command: Sequence[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Runs a command, `how` as for Popen; asks it to end afterwards, and kills it when it has not
    ended after END_S (`lamella serve` has a janitor that then ends its children)."""
    leave_nothing()
    process = subprocess.Popen(command, **how)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def make_model(size: str, folder: Path) -> Path:
    """The folder of a random model of `models.py`, made unless it is there."""
    # A process of its own: this one must stay small, it shares the cores with what it measures.
    models = str(Path(__file__).parent / "models.py")
    subprocess.run(
        [sys.executable, models, size, str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    return folder


@contextlib.contextmanager
def random_model(size: str, folder: Path | None = None) -> Iterator[Path]:
    """The folder of a random model: `folder`, which stays, or one that goes."""
    leave_nothing()
    with tempfile.TemporaryDirectory() as scratch:
        yield make_model(size, folder or Path(scratch) / "model")
