"""Programs that a test starts: on free loopback ports, and gone when the tests are gone.

Knows no Kubernetes.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from certificates import self_signed
from cryptography import x509

T = TypeVar("T")

LOOPBACK = "127.0.0.1"

# PR_SET_PDEATHSIG (1): the kernel kills the program when the process that started it is gone. Set
# between fork and exec by a program of its own, for `preexec_fn` is unsafe beside threads.
_LAUNCHER = """
import ctypes, os, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None:
    prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the tests ended before this program began")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """One program with its log; started and stopped as often as a test likes."""

    def __init__(self, log: Path, *command: str) -> None:
        self.name = Path(command[0]).name
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def start(self) -> None:
        """Does nothing while it runs."""
        if self.pid is not None:
            return
        launcher = (sys.executable, "-SE", "-c", _LAUNCHER, str(os.getpid()))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal if it runs; SIGSTOP makes a program that hangs."""
        if self._process is not None and self.pid is not None:
            self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send ``number`` and wait until it is gone. SIGKILL by default: none keeps anything."""
        if self._process is None:
            return
        self.send(number)
        self.send(signal.SIGCONT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait for ``condition`` while the program runs; its log's end is in the failure."""
        end = time.monotonic() + timeout_s
        while not condition():
            if self.pid is None or time.monotonic() > end:
                what = "ended" if self.pid is None else f"was not ready in {timeout_s:.0f} s"
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} {what}; the end of {self.log}:\n{tail}")
            time.sleep(0.05)


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = 30) -> T:
    """Wait until ``condition`` says something true, and return that."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.05)
    return found


def write_certificate(certificate: Path, key: Path) -> None:
    """A certificate for 127.0.0.1 that is its own authority, and its key; both PEM."""
    address = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
    pem, secret = self_signed("tests", [address])
    certificate.write_bytes(pem)
    key.write_bytes(secret)
