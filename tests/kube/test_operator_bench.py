"""The operator's benchmark runs to its end, and finds what must hold at any size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ("--models=3", "--namespaces=2", "--losses=4", "--quiet=3", "--limit=120", "--settled=3")


@pytest.mark.usefixtures("control_plane")  # so that it is skipped where there is none
def test_nothing_is_written_in_a_quiet_time_nor_by_a_restart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.operator_bench", *SMALL, f"--folder={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(re.findall(r"^(\S.*?)  +(\S.*)$", done.stdout, re.MULTILINE))
    assert found["objects changed in 3 quiet seconds"] == "0", done.stdout
    assert found["objects changed by the restart"] == "0", done.stdout
