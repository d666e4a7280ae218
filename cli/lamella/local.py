"""The supervisor of local mode: starts processes, starts them again, ends them all.

Knows processes and signals; knows nothing of models, plans or HTTP (`serve` gives it commands to
run and a `tick` that looks at the pipeline). It plays the part that the kubelet plays in a cluster.

    serve ──> Supervisor ──> worker parent (forks the stages, and forks them again)
                        └──> gateway
                        └──> janitor (acts only when the supervisor is killed outright)
"""

import contextlib
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType

from lamella.children import Child, ChildSpec, Janitor, become_subreaper
from lamella.errors import ChildFailed
from lamella.logview import supervisor_line
from lamella.rundir import RunDirectory

logger = logging.getLogger(__name__)

TICK_S = 0.1
GRACE_S = 1.7
"""How long children may take to end by themselves (a worker parent gives its stages 1.5 s); what is
left is killed, within the 2 s of a stop."""
HOPELESS_EXITS = (2, 3, os.EX_CONFIG)
"""Wrong input, a port in use, a model that cannot be loaded: before anything was ever ready, trying
again cannot help."""
FAILURES_BEFORE_READY = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked this process to stop. Raised out of whatever ran; the context manager then
    ends the children."""


@dataclass(slots=True)
class BackOff:
    """How long to wait before a process that ended is started again: doubling, and forgiving after
    a good run."""

    initial_s: float = 0.1
    longest_s: float = 10.0
    good_run_s: float = 30.0
    failures: int = field(default=0, init=False)

    def delay_s(self, ran_s: float) -> float:
        """The wait after a run of `ran_s` seconds."""
        self.failures = 1 if ran_s >= self.good_run_s else self.failures + 1
        return min(self.initial_s * 2.0 ** (self.failures - 1), self.longest_s)


@dataclass(slots=True)
class _Place:
    """One command that is to be running: its process now, or when to start it again."""

    spec: ChildSpec
    child: Child | None = None
    due_s: float = 0.0
    back_off: BackOff = field(default_factory=BackOff)
    on_trial: bool = False  # given up when it cannot start, instead of ending the run
    ends_s: float | None = None  # asked to end: when it is killed


class Supervisor:
    """Keeps its children running until a signal or an error; use as a context manager.

    1. `__enter__` takes the signals, makes the run directory and starts the janitor.
    2. `start` starts a child, also long before `run`: the worker imports while the plan is made.
    3. `run` waits: it hands output on, starts an ended child again with back-off, and calls
       `tick` each 0.1 s.
    4. `__exit__` ends every child within 2 s and removes the run directory, whatever happened.

    With `reloads` a SIGHUP is a word to `tick`, which asks `take_reload`; without, and when it was
    the terminal that went away, it asks to stop.
    """

    run_dir: RunDirectory

    def __init__(self, *, on_line: Callable[[str, str], None], reloads: bool = False) -> None:
        self._on_line = on_line
        self._places: list[_Place] = []
        self._selector = selectors.DefaultSelector()
        self._stop = False
        self._deferring = True
        self._terminal = reloads and _terminal_is_there()
        self._reloads = reloads
        self._reload = False
        self._given_up: dict[str, ChildFailed] = {}
        self.ready = False
        """Set once the pipeline has been ready: from then on a child that ends is started again
        without limit."""

    def __enter__(self) -> "Supervisor":
        # Until this is done signals are only noted: `__exit__` is not called for a half-made one.
        self._take_signals()
        become_subreaper()
        self.run_dir = RunDirectory.create()
        self._janitor = Janitor(self.run_dir.path)
        self._deferring = False
        return self

    def start(self, spec: ChildSpec, *, on_trial: bool = False) -> None:
        """Starts a child and keeps it running. Raises Interrupted when a signal has come.

        One that is on trial and cannot start is given up, and what runs beside it goes on.
        """
        if self._stop:
            raise Interrupted
        place = _Place(spec, on_trial=on_trial)
        self._places.append(place)
        self._start(place)

    def keep(self, name: str) -> None:
        """A child's trial is over: it is started again without limit."""
        for place in self._places:
            if place.spec.name == name:
                place.on_trial = False

    def end(self, name: str) -> None:
        """Asks a child to end and does not wait; it is gone when `names` lacks it."""
        for place in [p for p in self._places if p.spec.name == name and p.ends_s is None]:
            place.ends_s = time.monotonic() + GRACE_S
            if place.child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(place.child.pid, signal.SIGTERM)

    def names(self) -> frozenset[str]:
        """The children that are to run, or have not ended yet."""
        return frozenset(place.spec.name for place in self._places)

    def given_up(self, name: str) -> ChildFailed | None:
        """Why a child on trial was given up; None when it was not."""
        return self._given_up.get(name)

    def take_reload(self) -> bool:
        """Whether a SIGHUP has come since this was last asked."""
        asked, self._reload = self._reload, False
        return asked

    def run(self, tick: Callable[[], None]) -> None:
        """Returns when a signal asks to stop. Raises ChildFailed, and whatever `tick` raises."""
        self._deferring = True
        while not self._stop:
            for key, _ in self._selector.select(timeout=TICK_S):
                if isinstance(key.data, Child):
                    self._hand_on(key.data)
                else:
                    _drain(self._wake_read)
            for place in list(self._places):
                self._look_after(place)
            if not self._stop:
                tick()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deferring = True  # a second Ctrl-C must not break the ending
        self._end_children()
        self.run_dir.remove()
        self._janitor.dismiss()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        hung_up = self._terminal and not _terminal_is_there()
        if number == signal.SIGHUP and self._reloads and not hung_up:
            self._reload = True
            return
        self._stop = True
        # In `run` the wake-up descriptor ends the wait; anywhere else (planning, starting) only an
        # exception does.
        if not self._deferring:
            self._deferring = True
            raise Interrupted

    def _take_signals(self) -> None:
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        # A handler must exist for the wake-up descriptor to be written when a child ends.
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)

    def _start(self, place: _Place) -> None:
        child = Child(place.spec)
        self._janitor.adopt(child.pid)
        place.child = child
        self._selector.register(child.output, selectors.EVENT_READ, data=child)

    def _hand_on(self, child: Child) -> None:
        for line in child.read_lines():
            self._on_line(child.spec.name, line)
        if child.silent:
            self._forget_output(child)

    def _forget_output(self, child: Child) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.output)

    def _look_after(self, place: _Place) -> None:
        child = place.child
        if place.ends_s is not None:
            self._see_off(place, place.ends_s)
            return
        if child is None:
            if time.monotonic() >= place.due_s:
                self._start(place)
            return
        code = child.exit_code()
        if code is None:
            return
        self._hand_on(child)
        self._collect(place)
        wait_s = place.back_off.delay_s(time.monotonic() - child.started_s)
        hopeless = (place.on_trial or not self.ready) and (
            code in HOPELESS_EXITS or place.back_off.failures >= FAILURES_BEFORE_READY
        )
        if hopeless:
            failure = ChildFailed(name=child.spec.name, code=code, lines=tuple(child.lines))
            if not place.on_trial:
                raise failure
            self._given_up[child.spec.name] = failure
            self._places.remove(place)
            return
        place.due_s = time.monotonic() + wait_s
        message = f"{child.spec.name} ended with {describe_exit(code)}; starting again"
        self._on_line(child.spec.name, supervisor_line("WARNING", message))

    def _see_off(self, place: _Place, killed_s: float) -> None:
        child = place.child
        if child is not None:
            if child.exit_code() is None and time.monotonic() < killed_s:
                return
            self._hand_on(child)
            self._collect(place)
        self._places.remove(place)

    def _collect(self, place: _Place) -> None:
        child = place.child
        assert child is not None
        place.child = None
        self._forget_output(child)
        child.reap()
        self._janitor.release(child.pid)

    def _end_children(self) -> None:
        running = [place for place in self._places if place.child is not None]
        for place in running:
            assert place.child is not None
            # Only the leader is told: a worker parent must not take its stages' ends for crashes.
            with contextlib.suppress(ProcessLookupError):
                os.kill(place.child.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + GRACE_S
        while running and time.monotonic() < deadline_s:
            for place in [p for p in running if p.child and p.child.exit_code() is not None]:
                self._collect(place)
                running.remove(place)
            if running:
                self._selector.select(timeout=min(TICK_S, max(deadline_s - time.monotonic(), 0)))
                _drain(self._wake_read)
                for place in running:
                    assert place.child is not None
                    place.child.read_lines()
        for place in running:
            logger.warning("killed", extra={"child": place.spec.name, "grace_s": GRACE_S})
            self._collect(place)


def describe_exit(code: int) -> str:
    """`exit code 3`, or `signal SIGKILL` for what the standard library calls -9."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _terminal_is_there() -> bool:
    """Whether this process has a terminal that could hang up, and it has not."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _drain(descriptor: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 512):
            continue
