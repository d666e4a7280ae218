"""Where a stage's threads compute, as the kernel says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

PINS = """
import json, os, threading
from lamella_worker.process import cores
import torch
probe = threading.Event()
free = threading.Thread(target=probe.wait, daemon=True)
free.start()
cores.pin({cpu}, {threads})
names = os.listdir("/proc/self/task")
tasks = {{int(name): sorted(os.sched_getaffinity(int(name))) for name in names}}
torch.ones(1 << 22).sum()
print(json.dumps({{
    "own": tasks[os.getpid()],
    "earlier": tasks[free.native_id],
    "others": [tasks[n] for n in tasks if n not in (os.getpid(), free.native_id)],
    "more": len(os.listdir("/proc/self/task")) - len(names),
}}))
"""
CORES = sorted(os.sched_getaffinity(0))


def pinned(cpu: int | None, threads: int) -> Any:
    code = PINS.format(cpu=cpu, threads=threads)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_the_first_thread_has_the_core_and_torchs_others_have_the_rest() -> None:
    found = pinned(CORES[0], 2)
    assert found["own"] == [CORES[0]]
    assert [CORES[1]] in found["others"]
    assert found["more"] == 0  # they were there: later work starts no thread on the first core


def test_threads_from_before_stay_free() -> None:
    assert pinned(CORES[0], 1)["earlier"] == CORES


def test_without_a_core_the_kernel_decides() -> None:
    assert pinned(None, 1)["own"] == CORES
