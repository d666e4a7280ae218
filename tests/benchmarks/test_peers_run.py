"""The comparison itself, of Lamella alone: no peer is installed.

pytest -m serve tests/benchmarks/test_peers_run.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parents[2]


def run(folder: Path, *words: str) -> Any:
    """The JSON that a run leaves behind."""
    base = [sys.executable, "-m", "benchmarks.peers", "--model", "tiny", "--only", "lamella-2"]
    done = subprocess.run(
        [*base, "--into", str(folder / "out"), *words],
        cwd=ROOT,
        env={**os.environ, "LAMELLA_BENCH_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    name = "faults.json" if "--kill" in words else "turns.json"
    return json.loads((folder / "out" / name).read_text(encoding="utf-8"))


def test_every_request_of_every_level_is_answered_in_full(tmp_path: Path) -> None:
    document = run(tmp_path, "--levels", "1,4", "--rounds", "1")
    assert document["missing"] == {}
    levels = [turn["level"] for turn in document["turns"]]
    assert [(it["requests"], it["failures"]) for it in levels] == [(1, 0), (4, 0)]
    assert [it["completion_tokens"] for it in levels] == [128, 512]
    assert [it["prompt_tokens"] for it in levels] == [64, 256]
    assert {"gateway", "supervisor", "stage"} <= set(document["turns"][0]["cpu_us"])
    assert (tmp_path / "out" / "peers.png").stat().st_size > 0


def test_a_killed_stage_costs_clients_no_answer(tmp_path: Path) -> None:
    (seen,) = run(tmp_path, "--kill", "--streams", "4", "--patience", "60")
    assert (seen["whole"], seen["failed"], seen["hanging"]) == (4, 0, 0)
    assert seen["answers_again_s"] is not None
    assert seen["exited"] is False
