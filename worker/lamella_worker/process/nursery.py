"""The parent of the stages' processes: it imports torch once, and forks a stage again in no time.

Knows no tensors, sockets or epochs. It must stay fit for forking: one thread, no tensor computed
(an OpenMP region here would hang the child), no CUDA, no ZeroMQ; `check_forkable` asserts it.
Signals are blocked and waited for, so there are no handlers that could run in between.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lamella_contract.config import StageConfig
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.restarts import EXIT_PERMANENT, Restarts

log = logging.getLogger(__name__)

_WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
_TICK_S = 0.2
GRACE_S = 1.5
"""After SIGTERM a child has this long before it is killed."""

_PR_SET_PDEATHSIG = 1

StageMain = Callable[[StageConfig, Pulse], int]


@dataclass(slots=True)
class Child:
    """One stage's place: its configuration and, while it lives, its process."""

    config: StageConfig
    pulse: Pulse = field(default_factory=Pulse)
    restarts: Restarts = field(default_factory=Restarts)
    pid: int = 0
    started_s: float = 0.0
    due_s: float = 0.0  # when to start it (again); only while pid is 0


class Nursery:
    """Keeps one process per stage alive until told to stop."""

    def __init__(self, configs: list[StageConfig], stage_main: StageMain) -> None:
        self._children = [Child(config) for config in configs]
        self._stage_main = stage_main

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
                arrived = signal.sigtimedwait(_WATCHED, _TICK_S)
                if arrived is not None and arrived.si_signo in (signal.SIGTERM, signal.SIGINT):
                    return status
                if self._reap():
                    status = EXIT_PERMANENT
                    return status
                self._kill_wedged()
        finally:
            self._end_all()

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.pid == 0 and now >= child.due_s:
                self._fork(child)

    def _fork(self, child: Child) -> None:
        child.pulse.reset()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os._exit(self._in_child(child, parent))
        child.pid, child.started_s = pid, time.monotonic()
        log.info("stage started", extra={"stage": child.config.stage, "child": pid})

    def _in_child(self, child: Child, parent: int) -> int:
        die_with_parent(parent)
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
        for child in self._children:
            if child.pid == 0:
                continue
            pid, wait_status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            code = os.waitstatus_to_exitcode(wait_status)
            now = time.monotonic()
            delay_s = child.restarts.delay_s(code, now - child.started_s)
            child.pid = 0
            extra = {"stage": child.config.stage, "code": code, "delay_s": delay_s}
            if delay_s is None:
                log.error("stage ended for good", extra=extra)
                return True
            log.warning("stage ended and is started again", extra=extra)
            child.due_s = now + delay_s
        return False

    def _kill_wedged(self) -> None:
        for child in self._children:
            if child.pid and child.pulse.is_dead(child.config.replace_after_s):
                extra = {"stage": child.config.stage, "child": child.pid}
                log.error("stage shows no sign of life and is killed", extra=extra)
                os.kill(child.pid, signal.SIGKILL)
                child.pulse.reset()  # it is being collected: do not kill it twice

    def _end_all(self) -> None:
        alive = [child for child in self._children if child.pid]
        for child in alive:
            os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while alive and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, max(0.0, deadline - time.monotonic()))
            alive = [child for child in alive if os.waitpid(child.pid, os.WNOHANG)[0] == 0]
        for child in alive:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; exit at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


def check_forkable() -> None:
    """Assert that this process has one thread: a fork copies only the thread that calls it."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads before the fork; OPENBLAS_NUM_THREADS=1 is needed"
