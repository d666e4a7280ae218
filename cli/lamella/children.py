"""One supervised child process: start it, read what it says, end it and all that it forked.

Knows nothing of models, ports or back-off. `local.Supervisor` owns several of these.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lamella import janitor

_KEPT_LINES = 40


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run under which name; `argv` is complete, `env` is added to this process's own."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A running process that leads a process group of its own.

    The group is what makes the end certain: whatever the child forked goes with it, and a
    terminal's Ctrl-C reaches only the supervisor, which then ends the children in its own order.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.started_s = time.monotonic()
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.silent = False
        """True once nobody holds the other end of `output`: there is nothing more to wait for."""
        self._partial = b""
        self._process = subprocess.Popen(
            spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **spec.env},
            process_group=0,
        )
        assert self._process.stdout is not None
        self.output: IO[bytes] = self._process.stdout
        os.set_blocking(self.output.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_lines(self) -> list[str]:
        """Complete lines that the child (or what it forked) wrote since the last call; never
        blocks."""
        found: list[str] = []
        while (chunk := _read_some(self.output.fileno())) is not None:
            if not chunk:
                self.silent = True
                break
            *complete, self._partial = (self._partial + chunk).split(b"\n")
            found.extend(line.decode("utf-8", "replace").rstrip("\r") for line in complete)
        self.lines.extend(found)
        return found

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal. Looks without reaping: its group keeps its
        number."""
        if self._process.returncode is not None:
            return self._process.returncode
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    def signal(self, number: int) -> None:
        """Signals the child and everything in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def reap(self) -> None:
        """Kills what is left of the group and collects it. Call once the child has ended, or to end
        it now."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        # Orphans of the group come to this process (subreaper); wait, so that none is left when we
        # return.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, 0)
        self.read_lines()
        if self._partial:
            self.lines.append(self._partial.decode("utf-8", "replace"))
            self._partial = b""
        self.output.close()


class Janitor:
    """The process that cleans up when this one is killed outright (see janitor.py)."""

    def __init__(self, run_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(janitor.__file__)), str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def adopt(self, group: int) -> None:
        """From now on the group is killed if this process vanishes."""
        self._tell(f"+{group}\n")

    def release(self, group: int) -> None:
        """The group is gone; its number may be used again by others."""
        self._tell(f"-{group}\n")

    def dismiss(self) -> None:
        """A clean end: nothing is left to clean."""
        self._tell("done\n")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        # A dead janitor is no reason to stop serving: it is the second line of defence.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(order.encode("ascii"))
            self._process.stdin.flush()


def become_subreaper() -> None:
    """Makes orphans of the children come to this process, so that their end can be waited for
    (Linux)."""
    import ctypes  # 10 ms, and only a supervisor needs it

    pr_set_child_subreaper = 36
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _read_some(descriptor: int) -> bytes | None:
    """b"" at the end of the stream, None when there is nothing for now."""
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return None
