"""The supervisor with real processes: starting again, ending in time, leaving nothing behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella import local
from lamella.local import BackOff, describe_exit
from lamella_worker.process import nursery

SLEEPER = "import os,time; print('up', os.getpid(), flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
FORKING = (
    "import os,time\n"
    "child = os.fork()\n"
    'os.write(1, f\'{"up" if child else "stage"} {os.getpid()}\\n\'.encode())\n'
    "time.sleep(600)"
)

TWINS = Path(__file__).parent / "twins"
Supervise = Callable[..., Any]
Gone = Callable[[int], bool]


def pid_in(line: str) -> int:
    return int(line.split()[-1])


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name
)
@pytest.mark.parametrize(
    "code", [SLEEPER, STUBBORN, FORKING], ids=["obedient", "stubborn", "forking"]
)
def test_a_signal_ends_everything(
    supervise: Supervise, is_gone: Gone, tmp_path: Path, code: str, number: signal.Signals
) -> None:
    run = supervise(("worker", code), ("gateway", SLEEPER))
    pids = [pid_in(run.wait_for("line worker up")), pid_in(run.wait_for("line gateway up"))]
    if code == FORKING:
        pids.append(pid_in(run.wait_for("line worker stage")))

    assert run.end(number) == 0
    assert all(is_gone(pid) for pid in pids)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_is_over_after_two_seconds_and_no_request_is_waited_for() -> None:
    """A worker parent kills its stages before it is killed itself. That a child which does not
    listen is killed at all is shown with real ones above."""
    assert nursery.GRACE_S < local.GRACE_S < 2.0


def test_a_hang_up_may_be_a_word_and_ends_nothing(supervise: Supervise) -> None:
    run = supervise(("worker", SLEEPER), how="reloads")
    run.wait_for("line worker up")
    for _ in range(2):
        run.process.send_signal(signal.SIGHUP)
        run.wait_for("reload")
    assert run.end() == 0


def test_a_terminal_that_is_closed_ends_everything(tmp_path: Path) -> None:
    """The kernel says it with the same signal; only the terminal's absence tells them apart."""
    leader, follower = os.openpty()
    take_terminal = (
        "import fcntl, os, sys, termios; os.setsid()\n"
        "fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.executable, sys.argv[2:])"
    )
    commands = json.dumps([["worker", [sys.executable, "-c", SLEEPER]]])
    supervisor = (sys.executable, str(TWINS / "supervise.py"), commands, "reloads")
    process = subprocess.Popen(
        [sys.executable, "-c", take_terminal, str(follower), *supervisor],
        pass_fds=[follower],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        os.close(follower)
        assert process.stdout.readline().startswith("line worker up")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reload\n"
        os.close(leader)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(5) == 0


def test_a_killed_child_is_started_again(supervise: Supervise) -> None:
    run = supervise(("worker", SLEEPER))
    first = pid_in(run.wait_for("line worker up"))
    os.kill(first, signal.SIGKILL)
    run.wait_for(lambda line: "worker ended with signal SIGKILL; starting again" in line)
    assert pid_in(run.wait_for("line worker up")) != first


def test_what_a_killed_child_forked_goes_with_it(supervise: Supervise, is_gone: Gone) -> None:
    run = supervise(("worker", FORKING))
    first = {line.split()[2]: pid_in(line) for line in (run.wait_for("line"), run.wait_for("line"))}
    os.kill(first["up"], signal.SIGKILL)
    run.wait_for("line worker up")
    assert is_gone(first["stage"])


def test_a_killed_supervisor_leaves_no_process_and_no_directory(
    supervise: Supervise, is_gone: Gone, tmp_path: Path
) -> None:
    run = supervise(("worker", STUBBORN), ("gateway", FORKING))
    lines = [run.wait_for("line") for _ in range(3)]
    assert list(tmp_path.iterdir()) != []
    run.end(signal.SIGKILL)
    assert all(is_gone(pid_in(line)) for line in lines)
    run.rest()  # the pipe closes only when the last process that holds it has ended
    for _ in range(1000):
        if not list(tmp_path.iterdir()):
            return
        os.sched_yield()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("exit_code", "starts"), [(2, 1), (78, 1), (1, 3)], ids=["bad-input", "bad-config", "crash"]
)
def test_a_child_that_cannot_start_ends_the_run(
    supervise: Supervise, tmp_path: Path, exit_code: int, starts: int
) -> None:
    run = supervise(("worker", f"print('why'); raise SystemExit({exit_code})"), ready=False)
    text = run.rest()
    assert text.count("line worker why") == starts
    assert text.endswith(f"failed worker {exit_code}")
    assert list(tmp_path.iterdir()) == []


def test_output_without_a_newline_and_a_closed_pipe_do_no_harm(supervise: Supervise) -> None:
    code = "import os,sys,time; os.write(1, b'half'); os.close(1); os.close(2); time.sleep(600)"
    run = supervise(("worker", code), ("gateway", SLEEPER))
    run.wait_for("line gateway up")
    assert run.end() == 0


@given(st.lists(st.floats(0, 100), max_size=50))
def test_the_back_off_grows_to_its_limit_and_forgives(runs: list[float]) -> None:
    back_off = BackOff(initial_s=0.1, longest_s=10, good_run_s=30)
    before = 0.0
    for ran_s in runs:
        delay = back_off.delay_s(ran_s)
        assert 0.1 <= delay <= 10
        assert delay == (0.1 if ran_s >= 30 else min(10.0, max(before * 2, 0.1)))
        before = delay


@pytest.mark.parametrize(
    ("code", "text"), [(3, "exit code 3"), (-9, "signal SIGKILL"), (-250, "signal 250")]
)
def test_exits_are_described(code: int, text: str) -> None:
    assert describe_exit(code) == text
