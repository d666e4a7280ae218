"""The atheris fuzzer runs for a bounded number of inputs and finds nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = 20_000
SCRIPT = Path(__file__).with_name("fuzz_wire.py")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"-runs={RUNS}", "-max_total_time=60", "-max_len=512"],
        cwd=tmp_path,  # a crash leaves its input there
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
