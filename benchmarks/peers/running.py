"""Processes of one system: start, wait until it answers, hold and go on, count CPU time, end.

Knows processes and one URL; nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
from benchmarks.peers.systems import Files, Process, System, Tools

from lamella.machine import free_ports

START_S = 300.0
END_S = 15.0


class NotStarted(Exception):
    """A system did not come up; the text is the end of its log."""


class Running:
    """A system that is started. Each process that is started for it leads a session of its own."""

    def __init__(
        self, system: System, tools: Tools, files: Files, cores: tuple[int, int], logs: Path
    ) -> None:
        self.system = system
        ports = free_ports(system.ports)
        self.port = ports[0]
        self._specs = system.build(tools, files, cores, ports)
        self._log = logs / f"{system.key}.log"
        self._folder = logs
        self._children: list[subprocess.Popen[bytes]] = []
        self.start_s = 0.0

    def start(self) -> None:
        """Begins every process; `end` ends them, also those of a start that failed halfway."""
        with self._log.open("wb") as log:
            for spec in self._specs:
                self._children.append(_start(spec, log.fileno(), self._folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self, timeout_s: float = 2.0) -> bool:
        """Whether its health page says 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", self.system.health)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def alive(self) -> bool:
        """Whether every process that was started runs."""
        return not any(map(_ended, self._children))

    def serves(self) -> bool:
        """Whether the process that clients talk to runs."""
        pairs = zip(self._specs, self._children, strict=True)
        return not any(_ended(child) for spec, child in pairs if spec.serves)

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Raises NotStarted."""
        began_s = time.monotonic()
        while not self.answers():
            self.start_s = time.monotonic() - began_s
            if not self.alive() or self.start_s > timeout_s:
                raise NotStarted(self.log_end())
            time.sleep(0.1)

    def log_end(self) -> str:
        """Its last lines."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-12:])[-1500:]

    def processes(self) -> list[psutil.Process]:
        """Every process of it that lives, also one whose parent has died."""
        return _of({child.pid for child in self._children})

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by what the processes are."""
        names: dict[str, float] = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                name = role(process)
                names[name] = names.get(name, 0.0) + spent_s(process)
        return names

    def victim(self) -> psutil.Process | None:
        """The process that the fault mode kills: a stage that is not the first, where it can be
        told; of several the last by its title."""
        for spec, child in zip(self._specs, self._children, strict=True):
            if spec.kill is None:
                continue
            titles: dict[psutil.Process, str] = {}
            for process in _of({child.pid}):
                with contextlib.suppress(psutil.Error):
                    meant = spec.kill in role(process) if spec.kill else process.pid == child.pid
                    if meant:
                        titles[process] = " ".join(process.cmdline())
            return max(titles, key=lambda process: titles[process], default=None)
        return None

    def hold(self) -> None:
        """Stops all its processes: an idle system must not take time from the one measured."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.suspend()

    def go_on(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.resume()

    def end(self) -> None:
        """Ends all that it started and what that left behind; may be called again."""
        self.go_on()
        for child in self._children:
            os.kill(child.pid, signal.SIGTERM)  # it is not reaped: the number is still its own
        until_s = time.monotonic() + END_S
        while not all(map(_ended, self._children)) and time.monotonic() < until_s:
            time.sleep(0.05)
        while (left := self.processes()) and time.monotonic() < until_s + END_S:
            for process in left:  # what has not ended, and what its parent has left behind
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(END_S)
        self._children.clear()


def _of(sessions: set[int]) -> list[psutil.Process]:
    """What lives in these sessions. A process stays in its session when its parent has died: the
    engine and the workers of a server that has ended are found by nothing else."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(pid) in sessions:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Looks without reaping: until `end` the number of its session goes to nobody else."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return child.returncode is not None or os.waitid(os.P_PID, child.pid, flags) is not None


def spent_s(process: psutil.Process) -> float:
    """CPU seconds of all threads that live. The scheduler's own nanoseconds where it tells them:
    the clock ticks that everybody else reads are 10 ms, as much as a hundred tokens cost."""
    try:
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, ValueError, IndexError):
        times = process.cpu_times()
        return float(times.user + times.system)


def role(process: psutil.Process) -> str:
    """What a process calls itself, without what differs from run to run."""
    words = process.cmdline()
    title = " ".join(words[:3]) if words else process.name()
    for known in ("lamella: gateway", "lamella: stage", "VLLM::Worker", "VLLM::EngineCore"):
        if title.startswith(known):
            return known.split(":", 1)[1].strip(": ") if known.startswith("lamella") else known
    if "-m lamella serve" in " ".join(words):
        return "supervisor"
    if title.startswith("lamella: "):
        return "parent"
    return Path(words[0]).name if words else process.name()


def _start(spec: Process, log: int, folder: Path) -> subprocess.Popen[bytes]:
    # taskset, not an affinity set in the child: threads must never have had another one.
    words = ["taskset", "-c", ",".join(map(str, spec.cores)), *spec.argv]
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=folder,
        env={**os.environ, **spec.env},
        start_new_session=True,
    )
