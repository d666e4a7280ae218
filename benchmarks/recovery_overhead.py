"""What the machinery of recovery costs while nothing is broken. It cannot be switched off, so:

* beats: processor time of all processes while no request is there. Heartbeats, ticks, statuses and
  looks at the clock go on then as they do under load, and nothing else does.
* journal: the gateway's bookkeeping for one token, timed by itself.
* the sum of both, at the tokens per second of a load, as a share of the cores that are busy then:
  what throughput could gain if none of it were there.
* other threads: under load, the share of the stages' processor time that was not the compute
  thread's. It holds beats, sockets, encryption and handing tokens to gateways: a bound from above.

    python -m benchmarks.recovery --overhead [--model m768] [--streams 16]
"""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import random_model
from benchmarks.recovery_load import Answer, Card, Load
from benchmarks.recovery_server import Server, serving

from lamella_contract.wire import Sampling, TokenEvent
from lamella_gateway.journal import Journal

IDLE_S = 15.0
LOAD_S = 45.0
JOURNAL_TOKENS = 20_000
WANTED_SHARE = 0.02


@dataclass(slots=True)
class Overhead:
    """Shares of one core (idle), of the stages' processor time (others), and microseconds."""

    idle_share: dict[str, float] = field(default_factory=dict)
    others_share: float = 0.0
    journal_us: float = 0.0
    busy_share: float = 0.0  # cores that all processes used under load
    tokens_per_s: float = 0.0

    @property
    def beats_share(self) -> float:
        """Of one core: all processes, idle."""
        return sum(self.idle_share.values())

    @property
    def share(self) -> float:
        """Of the cores that are busy under load: beats and journal."""
        spent = self.beats_share + self.journal_us * 1e-6 * self.tokens_per_s
        return spent / max(self.busy_share, 1e-9)

    def text(self) -> str:
        idle = ", ".join(f"{name} {share:.2%}" for name, share in self.idle_share.items())
        per_token_us = self.share * self.busy_share / max(self.tokens_per_s, 1e-9) * 1e6
        return (
            f"machinery: {self.share:.2%} of the {self.busy_share:.2f} cores that are busy at "
            f"{self.tokens_per_s:.0f} tokens/s, {per_token_us:.0f} us per token\n"
            f"  idle, of one core: {idle}; together {self.beats_share:.2%}\n"
            f"  journal: {self.journal_us:.1f} us per token\n"
            f"stages' threads other than the compute thread, under load: {self.others_share:.1%}"
        )


def _threads(pid: int) -> dict[int, float]:
    """Processor seconds of each thread that lives, to the nanosecond."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def _spent(pid: int) -> float:
    return sum(_threads(pid).values())


def overhead(options: Namespace, deck: list[Card]) -> int:
    """Prints what it costs under a load of `options.streams`; 1 when more than WANTED_SHARE."""
    ended: list[Answer] = []
    with (
        random_model(options.model, options.folder) as model,
        serving(model, stages=options.stages, dtype=options.dtype, pin=options.pin) as server,
    ):
        load = Load(server.port, deck, streams=options.streams, on_answer=ended.append)
        with measure(server) as found:
            load.start()
            time.sleep(LOAD_S)
        load.stop()
    print(f"{options.model}, {options.dtype}, {options.stages} stages, {options.streams} streams")
    print(found.text())
    failures = [answer.error for answer in ended if answer.error]
    print(*failures, sep="\n", end="")
    return int(found.share > WANTED_SHARE or bool(failures))


@contextlib.contextmanager
def measure(server: Server) -> Iterator[Overhead]:
    """Idle before the block, under load in it."""
    found = Overhead(journal_us=journal_us())
    people = server.everyone()
    before = {name: _spent(pid) for name, pid in people.items()}
    began_s = time.monotonic()
    time.sleep(IDLE_S)
    took_s = time.monotonic() - began_s
    found.idle_share = {n: (_spent(p) - before[n]) / took_s for n, p in people.items()}
    stages = [pid for name, pid in people.items() if name.startswith("stage")]
    threads = {pid: _threads(pid) for pid in stages}
    before = {name: _spent(pid) for name, pid in people.items()}
    tokens = _tokens(server)
    began_s = time.monotonic()
    yield found
    took_s = time.monotonic() - began_s
    found.tokens_per_s = (_tokens(server) - tokens) / took_s
    found.busy_share = sum(_spent(p) - before[n] for n, p in people.items()) / took_s
    compute = others = 0.0
    for pid in stages:
        for thread, spent_s in _threads(pid).items():
            delta_s = spent_s - threads[pid].get(thread, 0.0)
            if thread == pid:
                compute += delta_s
            else:
                others += delta_s
    found.others_share = others / max(compute + others, 1e-9)


def _tokens(server: Server) -> int:
    return int((server.stage(0) or {}).get("tokens", 0))


def journal_us() -> float:
    """Microseconds of the journal for one token of sixteen requests at once."""
    journal = Journal()
    ids = [number.to_bytes(16, "little") for number in range(16)]
    sampling = Sampling(temperature=0.0, max_tokens=JOURNAL_TOKENS)
    for request_id in ids:
        journal.submit(journal.add(request_id, (5,) * 100, sampling, 0.0), "replica", 0.0)
    began_s = time.process_time()
    for position in range(JOURNAL_TOKENS // len(ids)):
        for request_id in ids:
            journal.take("replica", TokenEvent(request_id, 1, position, (7,), ""), 0.0)
    return (time.process_time() - began_s) / JOURNAL_TOKENS * 1e6
