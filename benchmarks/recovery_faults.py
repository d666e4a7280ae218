"""What is done to a running pipeline, and how soon it goes on. Knows a server and its load.

Times come from the moment at which each line of the log and each piece of an answer arrived:

* detect: until the first word that something is wrong, or until /health says so;
* back-off: what the parent waits on purpose before a process that ends often is started again;
* restart: the rest of the time until the (last) process was forked;
* load: from there until stage 0 knows the slice loaded and connects the ring;
* replay: from there (a stopped process: from when it goes on) until the first new token of any
  stream: links, probe, recomputation. A gateway is restarted once it listens; then it reads its
  tokenizer.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.recovery_load import Load
from benchmarks.recovery_server import GOES_ON_S, Server

STOPPED_S = 5.0

DETECTED = (
    "stage ended and is started again",
    "the ring pauses",
    "worker ended with",
    "gateway ended with",
)
STARTED = "stage started"
CONNECTED = "the ring is connected anew"
LISTENING = "listening"
BACK_OFF = re.compile(r"started again .*delay_s=([0-9.]+)")


@dataclass(slots=True)
class Fault:
    """One fault and what came of it. Times are seconds; `at_s` is monotonic."""

    kind: str
    at_s: float
    over_s: float = 0.0  # when the last blow fell, or what was stopped went on
    detect_s: float | None = None
    wait_s: float | None = None
    restart_s: float | None = None
    load_s: float | None = None
    replay_s: float | None = None
    first_s: float = 0.0  # until the first new token
    all_s: float = 0.0  # until every stream that had begun has a new one, or has ended
    freed_s: float | None = None  # gateway: until its requests were freed
    hit: frozenset[int] = frozenset()  # stages whose process was meant
    fell: int = 0  # how many stages' processes the last blow ended
    healthy_restarted: int = 0
    live_tokens: int = 0
    failures: list[str] = field(default_factory=list)  # of requests
    differing: int = 0
    lost: int = 0
    doubled: int = 0
    cut: int = 0  # connections that went down with a gateway


Blow = Callable[[Server, Load, random.Random, Fault], None]


def _kill(server: Server, fault: Fault, *stages: int) -> None:
    pids = server.living_pids()
    _hit(fault, *stages)
    for stage in stages:
        os.kill(pids[stage], signal.SIGKILL)


def _hit(fault: Fault, *stages: int) -> None:
    fault.hit |= frozenset(stages)
    fault.fell = len(stages)
    fault.over_s = time.monotonic()
    fault.at_s = fault.at_s or fault.over_s


def kill_later_stage(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    _kill(server, fault, draw.randrange(1, server.stages))


def kill_first_stage(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    _kill(server, fault, 0)


def kill_two(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    _kill(server, fault, *draw.sample(range(server.stages), 2))


def kill_again(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    """The second blow falls while the ring is connected and tokens are computed again."""
    _kill(server, fault, draw.randrange(1, server.stages))
    began_s = fault.at_s
    server.wait_until(lambda: server.since(began_s, CONNECTED), GOES_ON_S, "not connected anew")
    time.sleep(draw.uniform(0.0, 0.2))
    _kill(server, fault, draw.randrange(1, server.stages))


def stop_a_while(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    pid = server.living_pids()[draw.randrange(server.stages)]
    _hit(fault)
    os.kill(pid, signal.SIGSTOP)
    while (now_s := time.monotonic()) < fault.at_s + STOPPED_S:
        if fault.detect_s is None and not server.healthy():
            fault.detect_s = time.monotonic() - fault.at_s
        time.sleep(max(0.0, min(0.05, fault.at_s + STOPPED_S - now_s)))
    os.kill(pid, signal.SIGCONT)
    fault.over_s = time.monotonic()


def kill_parent(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    parent = server.parent_pid()
    _hit(fault, *range(server.stages))
    os.kill(parent, signal.SIGKILL)


def kill_gateway(server: Server, load: Load, draw: random.Random, fault: Fault) -> None:
    """Its clients are held back until stage 0 has freed what it had submitted."""
    pid = server.gateway_pid()
    load.hold()
    _hit(fault)
    os.kill(pid, signal.SIGKILL)
    fault.freed_s = server.wait_until(server.is_quiet, GOES_ON_S, "requests are not freed")
    load.go_on()


KINDS: dict[str, Blow] = {
    "stage k killed": kill_later_stage,
    "stage 0 killed": kill_first_stage,
    "two killed at once": kill_two,
    "killed again in replay": kill_again,
    "stopped for 5 s": stop_a_while,
    "parent killed": kill_parent,
    "gateway killed": kill_gateway,
}


def order_of(kinds: Sequence[str], count: int, draw: random.Random) -> Iterator[str]:
    """`count` of the kinds in random order, all about equally often; a parent's end costs most
    time."""
    weighted = [k for k in kinds for _ in range(1 if k in ("parent killed",) else 2)]
    left: list[str] = []
    for _ in range(count):
        if not left:
            left = draw.sample(weighted, len(weighted))
        yield left.pop()


def strike(server: Server, load: Load, fault: Fault, draw: random.Random) -> None:
    """Do it, wait until every stream goes on, and measure. Stuck when one does not."""
    kind, before = fault.kind, server.living_pids()
    fault.live_tokens = live_tokens(load)
    KINDS[kind](server, load, draw, fault)
    marker = LISTENING if kind == "gateway killed" else CONNECTED

    def first() -> float | None:
        back_s = back_since(server, fault, marker)
        if back_s is None:
            return None
        return next((at for at in load.pieces_s[-400:] if at > back_s), None)

    server.wait_until(lambda: first() is not None, GOES_ON_S, f"{kind}: nothing goes on")
    first_s = first()
    assert first_s is not None

    def all_go_on() -> bool:
        return all(last_s > first_s or last_s > fault.over_s for last_s in load.lasts_s())

    server.wait_until(all_go_on, GOES_ON_S, f"{kind}: a stream does not go on")
    fault.first_s = first_s - fault.at_s
    fault.all_s = time.monotonic() - fault.at_s
    _parts(server, fault, first_s, marker)
    after = server.living_pids()
    changed = {k for k in range(server.stages) if before[k] != after[k]}
    fault.healthy_restarted = len(changed - fault.hit)


def kind_marks(kind: str) -> bool:
    """Whether what was broken says that it is back: a stage 0 that was stopped may need no new
    epoch."""
    return kind != "stopped for 5 s"


def back_since(server: Server, fault: Fault, marker: str) -> float | None:
    """When what the last blow broke said that it is back; None before."""
    if not kind_marks(fault.kind):
        return fault.over_s
    started_s = fault.over_s
    if fault.fell:
        started = server.since(fault.over_s, STARTED)
        if len(started) < fault.fell:
            return None
        started_s = started[-1].at_s
    marks = server.since(started_s, marker)
    return marks[-1].at_s if marks else None


def live_tokens(load: Load) -> int:
    """Tokens of the prompts and the pieces so far of all live streams, about."""
    return sum(load.size_of(answer) for answer in list(load.live.values()))


def _parts(server: Server, fault: Fault, first_s: float, marker: str) -> None:
    def until(found: float | None, from_s: float | None) -> float | None:
        return None if found is None or from_s is None else max(0.0, found - from_s)

    lines = [line for line in server.since(fault.at_s, "") if line.at_s <= first_s]
    detected = next((x.at_s for x in lines if any(w in x.text for w in DETECTED)), None)
    started = [x.at_s for x in lines if STARTED in x.text]
    marked = [x.at_s for x in lines if marker in x.text]
    start_s = started[-1] if started else None
    mark_s = marked[-1] if marked else None
    if fault.detect_s is None:
        fault.detect_s = until(detected, fault.at_s)
    waits = [float(match[1]) for x in lines if (match := BACK_OFF.search(x.text))]
    fault.wait_s = max(waits, default=None)
    fault.restart_s = until(mark_s if marker == LISTENING else start_s, detected)
    if fault.restart_s is not None and fault.wait_s is not None:
        fault.restart_s = max(0.0, fault.restart_s - fault.wait_s)
    fault.load_s = until(mark_s, start_s)
    fault.replay_s = until(first_s, mark_s if kind_marks(fault.kind) else fault.over_s)
