"""README's first command, as it stands there: `make run`, then the line that it prints to paste."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from lamella.machine import free_ports

pytestmark = pytest.mark.serve

ROOT = Path(__file__).resolve().parents[2]


def test_make_run_serves_the_demo_model_and_ctrl_c_ends_it() -> None:
    (port,) = free_ports(1)
    run = subprocess.Popen(
        ["make", "run", f"PORT={port}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C reaches a whole group, as in a terminal
    )
    assert run.stdout is not None
    try:
        lines = []
        for line in run.stdout:
            lines.append(line)
            if line.startswith("curl "):
                break
        text = "".join(lines)
        assert f"http://127.0.0.1:{port}" in text, text
        assert re.search(r"stage +layers +weights", text), text
        answer = subprocess.run(lines[-1], shell=True, capture_output=True, text=True, check=True)
        assert "Paris" in answer.stdout
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 4
        os.killpg(run.pid, signal.SIGINT)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
    finally:
        run.kill()
        run.wait()
        run.stdout.close()
