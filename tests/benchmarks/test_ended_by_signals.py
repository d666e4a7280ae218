"""A benchmark that is ended by a signal ends its server, and leaves no process and no file.

pytest -m serve tests/benchmarks/test_ended_by_signals.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parents[2]
START_S = 90.0
PEERS = ("--model", "tiny", "--into", "INTO")


def stages_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Everything that it has started, as soon as a stage of a server is among it."""
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        found = psutil.Process(process.pid).children(recursive=True)
        for child in found:
            try:
                if child.cmdline()[:1] and child.cmdline()[0].startswith("lamella: stage"):
                    return found
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no stage was started; the benchmark ended with {process.poll()}")


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def signals_as_usual() -> Iterator[None]:
    """What is ignored here is ignored by whoever is started, too: under nohup SIGHUP would be."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("-m", "benchmarks.recovery", "--model", "tiny"), signal.SIGTERM),
        (("benchmarks/serve_bench.py", "--model", "tiny"), signal.SIGHUP),
        (("benchmarks/throughput.py", "--model", "tiny"), signal.SIGINT),
        (("-m", "benchmarks.peers", "--only", "lamella-2", *PEERS), signal.SIGTERM),
    ],
    ids=["recovery", "serve_bench", "throughput", "peers"],
)
def test_nothing_is_left(tmp_path: Path, words: tuple[str, ...], number: signal.Signals) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *(str(tmp_path / "out") if it == "INTO" else it for it in words)],
            cwd=ROOT,
            env={
                **os.environ,
                "TMPDIR": str(scratch),
                "LAMELLA_BENCH_HOME": str(tmp_path / "home"),
                "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),  # torch's own, and it stays
            },
            stdout=log,
            stderr=log,
        )
    began = [psutil.Process(process.pid)]
    try:
        began += stages_of(process)
        process.send_signal(number)
        process.wait(60)
        assert process.returncode == 128 + number, (tmp_path / "log").read_text()[-2000:]
        assert not [each for each in began if lives(each)]
        assert list(scratch.iterdir()) == []
    finally:
        for each in filter(lives, began):
            each.kill()
        process.wait()
