"""Shared by the command line's tests: real processes, watched without sleeping."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

TWINS = Path(__file__).parent / "twins"
ENDS_S = 30.0
"""Nothing ends so late, however busy the machine is, unless it waits for something that goes on for
minutes: a child that does not listen, a request to be finished."""


class Started:
    """A process whose lines can be waited for."""

    def __init__(self, argv: list[str], env: dict[str, str] | None = None, cwd: Path | None = None):
        self.process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
        self.seen: list[str] = []
        self._untaken: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, wanted: Callable[[str], bool] | str, timeout_s: float = 15.0) -> str:
        """The first line not yet taken that begins with `wanted` (or for which it is true); takes
        it."""
        test = wanted if callable(wanted) else lambda line: line.startswith(wanted)
        deadline = time.monotonic() + timeout_s
        for line in self._untaken:
            if test(line):
                self._untaken.remove(line)
                return line
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise AssertionError(
                    f"no {wanted!r} in {timeout_s} s; seen:\n" + self.text
                ) from None
            if line is None:
                raise AssertionError(f"ended before {wanted!r}; seen:\n" + self.text)
            self.seen.append(line)
            if test(line):
                return line
            self._untaken.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.seen)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signals the process and waits until it has ended; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(ENDS_S)

    def rest(self, timeout_s: float = 10.0) -> str:
        """Waits for the end; everything that was said."""
        self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        while (line := self._lines.get(timeout=timeout_s)) is not None:
            self.seen.append(line)
        return self.text

    def close(self) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def starter() -> Iterator[Callable[..., Started]]:
    """Gives a function that starts processes; ends them all at the end."""
    with contextlib.ExitStack() as stack:

        def begin(
            *argv: str, env: dict[str, str] | None = None, cwd: Path | None = None
        ) -> Started:
            started = Started(list(argv), env, cwd)
            stack.callback(started.close)
            return started

        yield begin


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Starts processes that the test ends, or that are ended after it."""
    with starter() as begin:
        yield begin


@pytest.fixture(scope="module")
def start_for_module() -> Iterator[Callable[..., Started]]:
    """The same for processes that all tests of a module share."""
    with starter() as begin:
        yield begin


@pytest.fixture
def supervise(start: Callable[..., Started], tmp_path: Path) -> Callable[..., Started]:
    """Runs twins/supervise.py over named python snippets; its run directory lies in tmp_path."""

    def begin(*commands: tuple[str, str], ready: bool = True, how: str = "") -> Started:
        argvs = [[name, [sys.executable, "-c", code]] for name, code in commands]
        return start(
            sys.executable,
            str(TWINS / "supervise.py"),
            json.dumps(argvs),
            how or ("ready" if ready else "starting"),
            env={"XDG_RUNTIME_DIR": str(tmp_path)},
        )

    return begin


def gone(pid: int, timeout_s: float = 5.0) -> bool:
    """True once no such process is left (a zombie that nobody reaps counts as gone)."""
    try:
        process = psutil.Process(pid)
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    return gone
