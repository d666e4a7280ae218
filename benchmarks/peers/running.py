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
    """A started system. Each of its processes leads a session of its own."""

    def __init__(
        self, system: System, tools: Tools, files: Files, cores: tuple[int, int], logs: Path
    ) -> None:
        self.system = system
        ports = free_ports(system.ports)
        self.port = ports[0]
        self._specs = system.build(tools, files, cores, ports)
        self._log = logs / f"{system.key}.log"
        self._children: list[subprocess.Popen[bytes]] = []
        self.start_s = 0.0
        with self._log.open("wb") as log:
            for spec in self._specs:
                self._children.append(_start(spec, log.fileno(), logs))

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
        return all(child.poll() is None for child in self._children)

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
        """Every process of it that lives."""
        found = []
        for child in self._children:
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(child.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

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
            parent = psutil.Process(child.pid)
            if not spec.kill:
                return parent
            named = [p for p in parent.children(recursive=True) if spec.kill in role(p)]
            return max(named, key=lambda p: " ".join(p.cmdline()), default=None)
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
        """Ends all that it started."""
        self.go_on()
        everyone = self.processes()
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(everyone, END_S)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for child in self._children:
            child.wait(END_S)


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
