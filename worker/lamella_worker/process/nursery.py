"""The parent of the stages' processes: it imports torch once, and forks a stage again in no time.

Knows no tensors, sockets or epochs. It must stay fit for forking: one thread, no tensor computed
(an OpenMP region here would hang the child), no CUDA, no ZeroMQ; `check_forkable` asserts it.
Signals are blocked and waited for, so there are no handlers that could run in between; /livez is
answered between two waits. In a container it is process 1, so it collects whoever ends there.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lamella_contract import names
from lamella_contract.config import StageConfig
from lamella_worker.process.live import LiveServer
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.restarts import EXIT_PERMANENT, Restarts

log = logging.getLogger(__name__)

_ENDING = {signal.SIGTERM, signal.SIGINT}
_WATCHED = {signal.SIGCHLD, *_ENDING}
_TICK_S = 0.2
_SHORT_TICK_S = 0.02
"""Between two looks while a client of /livez has connected and not asked yet."""

GRACE_S = 1.5
"""After SIGTERM a child has this long, and its `drain_s`, before it is killed."""

_PR_SET_PDEATHSIG = 1

StageMain = Callable[[StageConfig, Pulse], int]


@dataclass(slots=True)
class Child:
    """One stage's place: its configuration and, while it lives, its process."""

    config: StageConfig
    pulse: Pulse
    restarts: Restarts = field(default_factory=Restarts)
    pid: int = 0
    started_s: float = 0.0
    due_s: float = 0.0  # when to start it (again); only while pid is 0


class Nursery:
    """Keeps one process per stage alive until told to stop."""

    def __init__(self, configs: list[StageConfig], stage_main: StageMain) -> None:
        """Binds /livez where the first configuration says so; InvalidConfig if it cannot."""
        pod = os.environ.get(names.ENV_POD_UID, "")
        self._children = [Child(config, Pulse(pod)) for config in configs]
        self._stage_main = stage_main
        address = configs[0].live_address
        self._live = LiveServer(address) if address else None

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT (0), or until a stage says that trying is useless (78)."""
        check_forkable()
        gc.collect()
        gc.freeze()  # the children share these pages only as long as no collection touches them
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        status = 0
        try:
            while True:
                self._start_due()
                if self._wait(_WATCHED, _TICK_S) in _ENDING:
                    return status
                if self._reap():
                    status = EXIT_PERMANENT
                    return status
                self._kill_wedged()
        finally:
            self._end_all()

    def _wait(self, signals: set[signal.Signals], timeout_s: float) -> int:
        """The next of `signals`, 0 after the timeout or before it; answers /livez."""
        if self._live is not None:
            self._live.serve()
            if self._live.waiting:
                timeout_s = min(timeout_s, _SHORT_TICK_S)
        arrived = signal.sigtimedwait(signals, timeout_s)
        return 0 if arrived is None else arrived.si_signo

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.pid == 0 and now >= child.due_s:
                self._fork(child)

    def _fork(self, child: Child) -> None:
        child.pulse.born(child.restarts.total)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os._exit(self._in_child(child, parent))
        child.pid, child.started_s = pid, time.monotonic()
        log.info("stage started", extra={"stage": child.config.stage, "child": pid})

    def _in_child(self, child: Child, parent: int) -> int:
        die_with_parent(parent)
        if self._live is not None:
            self._live.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        try:
            return self._stage_main(child.config, child.pulse)
        except SystemExit as ended:
            return int(ended.code or 0)
        except BaseException:  # the process's edge: whatever it was is logged, then it ends
            log.exception("stage crashed", extra={"stage": child.config.stage})
            return 1

    def _reap(self) -> bool:
        """Collect ended children; True when one of them ended for good."""
        for child, code in self._ended():
            now = time.monotonic()
            delay_s = child.restarts.delay_s(code, now - child.started_s)
            extra = {"stage": child.config.stage, "code": code, "delay_s": delay_s}
            if delay_s is None:
                log.error("stage ended for good", extra=extra)
                return True
            log.warning("stage ended and is started again", extra=extra)
            child.due_s = now + delay_s
        return False

    def _ended(self) -> Iterator[tuple[Child, int]]:
        """Every child that has ended, with its exit code; strangers are collected in passing."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    child.pid = 0
                    yield child, os.waitstatus_to_exitcode(wait_status)

    def _kill_wedged(self) -> None:
        for child in self._children:
            if child.pid and child.pulse.is_dead(child.config.replace_after_s):
                extra = {"stage": child.config.stage, "child": child.pid}
                log.error("stage shows no sign of life and is killed", extra=extra)
                os.kill(child.pid, signal.SIGKILL)
                child.pulse.reset()  # it is being collected: do not kill it twice

    def _end_all(self) -> None:
        """Ask all to end, wait as long as they may take, kill who is left. Asked again, hurry."""
        self._tell_all(signal.SIGTERM)
        drain_s = max(child.config.drain_s for child in self._children)
        deadline = time.monotonic() + GRACE_S + drain_s
        while self._any_alive() and (left_s := deadline - time.monotonic()) > 0:
            if self._wait(_WATCHED, min(left_s, _TICK_S)) in _ENDING and drain_s:
                self._tell_all(signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + GRACE_S)
            self._kill_wedged()
        self._tell_all(signal.SIGKILL)
        for child in self._children:
            if child.pid:
                os.waitpid(child.pid, 0)
        if self._live is not None:
            self._live.close()

    def _any_alive(self) -> bool:
        for _ in self._ended():
            continue
        return any(child.pid for child in self._children)

    def _tell_all(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; exit at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


def check_forkable() -> None:
    """Assert that this process has one thread: a fork copies only the thread that calls it."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads before the fork; OPENBLAS_NUM_THREADS=1 is needed"
