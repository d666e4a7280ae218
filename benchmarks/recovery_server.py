"""A `lamella serve` to be broken: its processes, what each stage says of itself, and its log with
the time at which each line came. Knows no faults and no requests.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from benchmarks.processes import started

from lamella import status, watch
from lamella.machine import free_ports

START_S = 120.0
GOES_ON_S = 120.0
"""Seconds after a fault in which everything must go on."""
TEXT_KEPT = 4000


class Stuck(Exception):
    """Something that must come did not come; with the end of the server's log."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log and when it came, monotonic seconds."""

    at_s: float
    text: str


@dataclass(slots=True)
class Server:
    """A running `lamella serve --verbose`."""

    process: subprocess.Popen[str]
    port: int
    run_base: Path
    stages: int
    lines: list[Line] = field(default_factory=list)
    probes: tuple[int, ...] = ()

    def follow(self) -> None:
        """Keep what the server says, with its time; runs in a thread until the server ends."""
        assert self.process.stderr is not None
        with self.process.stderr as said:
            for text in said:
                self.lines.append(Line(time.monotonic(), text.rstrip()))

    def log(self) -> str:
        return "\n".join(line.text for line in self.lines[-60:])[-TEXT_KEPT:]

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Returns when /health is 200."""
        self.wait_until(self.healthy, timeout_s, "it is not ready")
        if not self.probes:
            (run,) = status.runs(list(self.run_base.glob("lamella-*")))
            self.probes = tuple(run.document["probe_ports"])

    def healthy(self) -> bool:
        answer = watch.get("127.0.0.1", self.port, "/health")
        return answer is not None and answer[0] == 200

    def wait_until(self, condition: Any, timeout_s: float, what: str) -> float:
        """Seconds until the condition holds; Stuck when it never does."""
        began_s = time.monotonic()
        while not condition():
            if self.process.poll() is not None:
                raise Stuck(f"lamella serve ended:\n{self.log()}")
            if time.monotonic() - began_s > timeout_s:
                raise Stuck(f"{what} after {timeout_s:g} s:\n{self.log()}")
            time.sleep(0.01)
        return time.monotonic() - began_s

    def stage(self, number: int) -> dict[str, Any] | None:
        """/status of one stage; None while it does not answer."""
        return watch.get_json("127.0.0.1", self.probes[number], "/status")

    def gateway(self) -> dict[str, Any] | None:
        return watch.get_json("127.0.0.1", self.port, "/status")

    def pids(self) -> list[int]:
        """The process of each stage, 0 for one that does not answer."""
        return [int((self.stage(k) or {}).get("pid", 0)) for k in range(self.stages)]

    def living_pids(self) -> list[int]:
        """The process of each stage, as soon as all of them answer; Stuck when one never does.

        Signals go to these only: one to process 0 would end everything that began this.
        """
        found: list[int] = []

        def all_answer() -> bool:
            found[:] = self.pids()
            return 0 not in found

        self.wait_until(all_answer, GOES_ON_S, "a stage does not answer")
        return found

    def parent_pid(self) -> int:
        """The process that forks the stages."""
        parents = {psutil.Process(pid).ppid() for pid in self.living_pids()}
        if len(parents) != 1:
            raise Stuck(f"the stages' parent cannot be told from {parents}")
        return parents.pop()

    def gateway_pid(self) -> int:
        """The gateway is the child that serves HTTP."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                words = " ".join(child.cmdline())
                if "lamella_gateway" in words or "gateway" in words.split(":")[-1]:
                    return child.pid
        raise Stuck("no gateway runs")

    def everyone(self) -> dict[str, int]:
        """Every process by what it is."""
        found = {"supervisor": self.process.pid, "parent": self.parent_pid()}
        found |= {"gateway": self.gateway_pid()}
        return found | {f"stage {k}": pid for k, pid in enumerate(self.pids())}

    def is_quiet(self) -> bool:
        """Whether stage 0 holds no request."""
        document = self.stage(0)
        return document is not None and document["live_requests"] == 0

    def since(self, at_s: float, *words: str) -> list[Line]:
        """Lines after `at_s` that hold one of the words."""
        lines = list(self.lines)
        return [line for line in lines if line.at_s >= at_s and any(w in line.text for w in words)]


@contextlib.contextmanager
def serving(model: Path, *, stages: int, dtype: str, pin: bool) -> Iterator[Server]:
    """Starts it and waits until it serves; ends it afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        port = free_ports(1)[0]
        command = [sys.executable, "-m", "lamella", "serve", str(model), "--verbose"]
        command += ["--stages", str(stages), "--dtype", dtype, "--port", str(port)]
        command += ["--served-name", "bench", "--device", "cpu", "--max-model-len", "1024"]
        command += ["--threads-per-stage", "1", *(["--pin"] if pin else [])]
        environment = {**os.environ, "XDG_RUNTIME_DIR": scratch, "COLUMNS": "400"}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with started(command, env=environment, **pipes) as process:
            server = Server(process, port, Path(scratch), stages)
            threading.Thread(target=server.follow, daemon=True).start()
            server.wait_ready()
            yield server
