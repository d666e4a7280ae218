"""What a benchmark that kills processes may send signals to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from benchmarks.recovery_server import Server, Stuck


@dataclass(slots=True)
class Answering(Server):
    """A server whose stage 1 answers with one of these pids after another, 0 for no answer."""

    says: Iterator[int] = field(default_factory=lambda: iter(()))

    def stage(self, number: int) -> dict[str, Any] | None:
        pid = next(self.says, 0) if number == 1 else 11
        return {"pid": pid} if pid else None


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    waits = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, text=True) as running:
        yield running


def test_a_stage_that_does_not_answer_yet_is_waited_for(process: subprocess.Popen[str]) -> None:
    server = Answering(process, 0, Path(), 2, says=iter([0, 0, 12]))
    assert server.living_pids() == [11, 12]


def test_a_stage_that_never_answers_is_told_and_no_pid_0_is(process: subprocess.Popen[str]) -> None:
    server = Answering(process, 0, Path(), 2)
    process.communicate("\n")
    with pytest.raises(Stuck):
        server.living_pids()
