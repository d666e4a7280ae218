"""One stage is killed in mid-answer: what clients of each two-stage system see.

    python -m benchmarks.peers --kill [--streams 16] [--patience 330]

SIGKILL goes to a stage that is not the one that clients talk to: a worker of vLLM, the second RPC
server of llama.cpp, the last stage of ours. Nothing is restarted from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.peers.measure import INPUT_TOKENS
from benchmarks.peers.running import Running

from lamella import bench
from lamella.bench_client import Sample, Tape, read

ANSWER_TOKENS = 160
MIDST = 8  # pieces of its answer that each stream has heard when the stage is killed
BEGIN_S = 60.0
HEALTH_EVERY_S = 0.2
ASK_S = 30.0
"""A new request that is not answered for so long is given up for another: a system that goes on
may still have forgotten the first."""


class NotKilled(Exception):
    """No stage could be killed in mid-answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What clients saw of one kill. Seconds are since the kill; None: not within the patience."""

    system: str
    streams: int
    whole: int  # streams that came to their end
    failed: int  # streams that ended with an error
    hanging: int  # streams that had not ended when patience did
    first_failure_s: float | None
    longest_silence_s: float  # of any stream
    answers_again_s: float | None  # the first new request that is answered
    health_lies_s: float  # /health said 200 though no new request was answered
    exited: bool  # the process that clients talk to has ended
    errors: tuple[str, ...] = ()
    patience_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Probe:
    """Asks /health and for one token over and over, each in a thread of its own."""

    running: Running
    until_s: float
    healthy_s: list[tuple[float, bool]] = field(default_factory=list)
    answered_s: float | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def health(self) -> None:
        while not self.stopping.is_set() and time.monotonic() < self.until_s:
            self.healthy_s.append((time.monotonic(), self.running.answers(1.0)))
            self.stopping.wait(HEALTH_EVERY_S)

    def ask(self, killed_s: float) -> None:
        """Until a request that was begun after the kill is answered, ASK_S for each."""
        while not self.stopping.is_set() and (left := self.until_s - time.monotonic()) > 0:
            if _one_token(self.running.port, min(left, ASK_S)):
                self.answered_s = time.monotonic() - killed_s
                return
            self.stopping.wait(HEALTH_EVERY_S)


def _one_token(port: int, timeout_s: float) -> bool:
    body = {"model": "bench", "prompt": "again", "max_tokens": 1, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), head)
        answer = connection.getresponse()
        return answer.status == 200 and b'"text"' in answer.read()
    return False


def longest_silence(times_s: Iterable[float], ended_s: float) -> float:
    """The longest time without a piece, up to the end."""
    marks = [0.0, *times_s, ended_s]
    return max(later - earlier for earlier, later in itertools.pairwise(marks))


def lies_s(health: list[tuple[float, bool]], killed_s: float, until_s: float) -> float:
    """Seconds between the kill and `until_s` in which the health page said 200."""
    marks = [mark for mark in health if killed_s <= mark[0] < until_s]
    ends = [*(at for at, _ in marks[1:]), until_s]
    return sum(end - at for (at, good), end in zip(marks, ends, strict=False) if good)


async def _stream(asking: bench.Asking, seed: int, tape: Tape) -> float:
    """Seconds until it ended."""
    began_s = time.monotonic()
    await asking.record(bench.Load(1, 1, INPUT_TOKENS, ANSWER_TOKENS), seed, tape)
    return time.monotonic() - began_s


def _pieces(tape: Tape) -> int:
    return sum(data.count(b"data: ") for _, data in tape.marks)


async def _in_mid_answer(streams: list[tuple[asyncio.Task[float], Tape]]) -> None:
    """Until each has heard MIDST pieces. Raises NotKilled if one ends before, or after BEGIN_S."""
    until_s = time.monotonic() + BEGIN_S
    while min(_pieces(tape) for _, tape in streams) < MIDST:
        for task, tape in streams:
            if task.done():
                error = read(tape).error or "it was whole"
                raise NotKilled(f"a stream had ended before all were in mid-answer: {error}")
        if time.monotonic() > until_s:
            raise NotKilled(f"not all streams were in mid-answer after {BEGIN_S:g} s")
        await asyncio.sleep(0.01)


def kill(running: Running, asking: bench.Asking, streams: int, patience_s: float) -> Seen:
    """Kills the stage and waits until every stream ended and a new request is answered, or until
    patience ends. Raises NotKilled, or psutil.Error when the stage was gone before."""
    return asyncio.run(_kill(running, asking, streams, patience_s))


async def _kill(running: Running, asking: bench.Asking, count: int, patience_s: float) -> Seen:
    victim = running.victim()
    if victim is None:
        raise NotKilled("no stage is told from its other processes")
    began_s = time.monotonic()
    tapes = [Tape() for _ in range(count)]
    streams = [
        (asyncio.create_task(_stream(asking, 7_000 + n, tape)), tape)
        for n, tape in enumerate(tapes)
    ]
    await _in_mid_answer(streams)
    victim.kill()
    killed_s = time.monotonic()
    probe = Probe(running, killed_s + patience_s)
    threading.Thread(target=probe.health, daemon=True).start()
    threading.Thread(target=probe.ask, args=(killed_s,), daemon=True).start()
    await asyncio.wait([task for task, _ in streams], timeout=patience_s)
    waited_s = time.monotonic() - began_s
    ends = [
        (tape, task.result() if task.done() else waited_s, task.done()) for task, tape in streams
    ]
    while probe.answered_s is None and time.monotonic() < probe.until_s and running.serves():
        await asyncio.sleep(HEALTH_EVERY_S)
    exited = not running.serves()
    probe.stopping.set()
    again_s = probe.answered_s
    until_s = killed_s + again_s if again_s is not None else time.monotonic()
    lies = lies_s(list(probe.healthy_s), killed_s, until_s)
    samples = [(read(tape), took_s, ended) for tape, took_s, ended in ends]
    silences = [longest_silence((at for at, _ in tape.marks), took_s) for tape, took_s, _ in ends]
    return summarize(
        running.system.key, samples, silences, killed_s - began_s, again_s, lies, exited, patience_s
    )


def summarize(
    system: str,
    samples: list[tuple[Sample, float, bool]],
    silences: list[float],
    offset_s: float,
    again_s: float | None,
    lies: float,
    exited: bool,
    patience_s: float,
) -> Seen:
    """The figures; `offset_s` is when the kill was, seconds after the streams began."""
    failed = [(sample, took_s) for sample, took_s, ended in samples if ended and sample.error]
    return Seen(
        system=system,
        streams=len(samples),
        whole=sum(ended and not sample.error for sample, _, ended in samples),
        failed=len(failed),
        hanging=sum(not ended for _, _, ended in samples),
        first_failure_s=min((took_s - offset_s for _, took_s in failed), default=None),
        longest_silence_s=max(silences, default=0.0),
        answers_again_s=again_s,
        health_lies_s=lies,
        exited=exited,
        errors=tuple(sorted({sample.error[:160] for sample, _ in failed})),
        patience_s=patience_s,
    )


COLUMNS = ["system", "streams", "whole", "failed", "hanging", "first failure", "longest silence",
           "answers again", "/health 200 though dead", "exited"]  # fmt: skip


def table(seen: list[tuple[str, Seen]], missing: dict[str, str]) -> str:
    """Markdown; titles come with the figures."""

    def told(value: float | None, patience_s: float) -> str:
        return f"not in {patience_s:.0f} s" if value is None else f"{value:.1f} s"

    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    for title, it in seen:
        first = "-" if it.first_failure_s is None else f"{it.first_failure_s:.1f} s"
        again = "never: it ended" if it.exited else told(it.answers_again_s, it.patience_s)
        if it.answers_again_s is not None:
            again = f"{it.answers_again_s:.1f} s"
        rows.append(
            [title, str(it.streams), str(it.whole), str(it.failed), str(it.hanging), first,
             f"{it.longest_silence_s:.1f} s", again, f"{it.health_lies_s:.1f} s",
             "yes" if it.exited else "no"]
        )  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for title, it in seen:
        lines += [f"{title}: {error}" for error in it.errors]
    return "\n".join([*lines, *(f"{key} is not there: {why}" for key, why in missing.items())])
