"""The forking parent, as a real process with real children: crashes, hangs, signals, its death."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lamella.machine import free_ports
from lamella_contract.config import StageConfig

# The child writes a line when it starts, then does what its behaviour says. Waiting is reading
# from a pipe that never speaks, so nothing sleeps.
SCRIPT = """
import ctypes, os, signal, subprocess, sys
from lamella_contract.config import StageConfig
from lamella_worker.process.nursery import Nursery
from pathlib import Path

configs = [StageConfig.from_json(Path(p).read_text()) for p in sys.argv[2:]]
silence, _ = os.pipe()
births = {config.stage: 0 for config in configs}

def stage_main(config, pulse):
    if sys.argv[1] == "orphans":  # a grandchild whose parent ends goes to the stages' parent
        script = "import os; pid = os.fork(); pid and os.write(1, f'orphan {pid} '.encode())"
        subprocess.run([sys.executable, "-S", "-c", script])
    if sys.argv[1] == "drain":
        signal.signal(signal.SIGTERM, lambda *_: os.write(1, f"{config.stage} {0}\\n".encode()))
    os.write(1, f"{config.stage} {os.getpid()}\\n".encode())  # one call: lines do not mix
    if sys.argv[1] == "permanent":
        return 78
    if sys.argv[1] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.argv[1] == "wedged":
        pulse.busy()
    os.read(silence, 1)
    return 0

if sys.argv[1] == "orphans":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: as process 1 of a container
sys.exit(Nursery(configs, stage_main).run())
"""


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, config: Callable[..., StageConfig]) -> Iterator[Start]:
    """Starts the parent with two children that behave as told; ends it after the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(
        behaviour: str, replace_after_s: float = 60.0, **fields: object
    ) -> subprocess.Popen[str]:
        paths = []
        for stage in range(2):
            path = tmp_path / f"stage-{stage}.json"
            path.write_text(config(stage, replace_after_s=replace_after_s, **fields).to_json())
            paths.append(str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, behaviour, *paths],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def births(process: subprocess.Popen[str], count: int) -> dict[int, int]:
    """The next `count` children that announce themselves: stage -> pid."""
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(count)]
    return {int(stage): int(pid) for stage, pid in lines}


def gone(pid: int) -> bool:
    """Wait until the process has ended."""
    try:
        psutil.Process(pid).wait(timeout=5)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_killed_stage_is_forked_again_and_the_other_is_left_alone(start: Start) -> None:
    parent = start("serve")
    first = births(parent, 2)
    os.kill(first[1], signal.SIGKILL)
    again = births(parent, 1)
    assert again[1] != first[1]
    assert psutil.pid_exists(first[0])


@pytest.mark.parametrize("behaviour", ["serve", "stubborn"])
def test_sigterm_ends_every_child_and_the_parent(start: Start, behaviour: str) -> None:
    parent = start(behaviour)
    children = births(parent, 2)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=30) == 0
    assert all(not psutil.pid_exists(pid) for pid in children.values())


def test_children_do_not_outlive_a_killed_parent(start: Start) -> None:
    parent = start("serve")
    children = births(parent, 2)
    parent.kill()
    assert all(gone(pid) for pid in children.values())


def test_a_wedged_stage_is_killed_and_forked_again(start: Start) -> None:
    parent = start("wedged", replace_after_s=0.3)
    first = births(parent, 2)
    again = births(parent, 2)
    assert set(first.values()).isdisjoint(again.values())


def test_a_stage_that_cannot_work_ends_everything_with_78(start: Start) -> None:
    parent = start("permanent")
    assert parent.wait(timeout=5) == 78


def test_strangers_that_end_are_collected_and_disturb_nobody(start: Start) -> None:
    parent = start("orphans")
    assert parent.stdout is not None
    words = " ".join(parent.stdout.readline() for _ in range(2)).split()
    pairs = list(zip(words[::2], words[1::2], strict=True))
    orphans = [int(pid) for word, pid in pairs if word == "orphan"]
    children = {int(stage): int(pid) for stage, pid in pairs if stage != "orphan"}
    assert (len(orphans), len(children)) == (2, 2)
    assert all(gone(pid) for pid in orphans)
    assert all(psutil.pid_exists(pid) for pid in children.values())


def is_live(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("behaviour", ["serve", "wedged"])
def test_livez_says_that_the_parent_runs_whatever_its_children_do(
    start: Start, behaviour: str
) -> None:
    (port,) = free_ports(1)
    parent = start(behaviour, 0.3, live_address=f"127.0.0.1:{port}")
    births(parent, 2)
    clients = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
    assert all(is_live(port) for _ in range(5))
    for client in clients:
        client.close()
    parent.send_signal(signal.SIGTERM)
    parent.wait(timeout=5)
    assert not is_live(port)


def test_a_draining_child_has_its_time_and_livez_goes_on(start: Start) -> None:
    (port,) = free_ports(1)
    parent = start("drain", drain_s=60.0, live_address=f"127.0.0.1:{port}")
    children = births(parent, 2)
    parent.send_signal(signal.SIGTERM)
    assert births(parent, 2) == {0: 0, 1: 0}, "they are asked"
    assert is_live(port)
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)  # they are done
    assert parent.wait(timeout=30) == 0


def test_two_sigterms_leave_a_draining_child_its_grace_and_no_more(start: Start) -> None:
    parent = start("drain", drain_s=60.0)
    children = births(parent, 2)
    for _ in range(2):
        parent.send_signal(signal.SIGTERM)
        assert births(parent, 2) == {0: 0, 1: 0}
    assert parent.wait(timeout=4) == 0
    assert all(not psutil.pid_exists(pid) for pid in children.values())


def test_a_live_address_that_is_taken_ends_the_worker(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        parent = start("serve", live_address=f"127.0.0.1:{taken.getsockname()[1]}")
        assert parent.wait(timeout=20) == 1  # the entry makes 2 of it
