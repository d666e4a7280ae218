"""The fault driver itself, as `make bench-recovery` runs it, on a tiny model and with few faults.

pytest -m serve tests/worker/pipeline/test_recovery_benchmark.py      (minutes)
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parents[3]
FAULTS = 7
MUST_BE_NOTHING = ("failures", "differing", "lost", "doubled", "healthy_restarted")


def benchmark(*words: str) -> str:
    """What it prints; it must find nothing wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.recovery", "--model", "tiny", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.timeout(900)
def test_faults_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    benchmark("--faults", str(FAULTS), "--out", str(tmp_path))
    faults = [
        fault
        for fault in json.loads((tmp_path / "faults.json").read_text())
        if fault["kind"] != "none"
    ]
    assert len(faults) == FAULTS
    assert [[fault[name] for name in MUST_BE_NOTHING] for fault in faults] == [
        [[], 0, 0, 0, 0]
    ] * FAULTS


@pytest.mark.timeout(900)
def test_after_a_short_soak_every_process_is_as_it_was(tmp_path: Path) -> None:
    assert " flat" in benchmark("--soak", "1.5", "--out", str(tmp_path))
