"""Runs a schedule to its end and says what must hold: now and then, and when all is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .faults import GATEWAY_FREED_S, Faults
from .gateway_process import GatewayProcess, Record
from .kernel import Kernel
from .schedule import Schedule
from .stage_process import StageProcess
from .world import DEADLINE_S, Place, World

CHECK_EVERY_S = 0.25
MOST_EVENTS = 100_000  # a world that goes on for ever is as wrong as one that hangs
MOST_QUEUED = 400
LONGEST_TAIL_S = 30.0  # the slowest restart
SETTLE_S = 25.0
SERVE_AGAIN_S = 12.0
LOOK_S = 0.1


@dataclass
class Outcome:
    """What a run was like, for the table."""

    counts: Counter[str] = field(default_factory=Counter)
    simulated_s: float = 0.0
    longest_silence_s: float = 0.0
    events: int = 0


def run(
    schedule: Schedule,
    *,
    stage_class: type[StageProcess] = StageProcess,
    gateway_class: type[GatewayProcess] = GatewayProcess,
) -> Outcome:
    """AssertionError (or whatever the code under test raises) when something does not hold."""
    world = World(schedule, stage_class=stage_class, gateway_class=gateway_class)
    faults = Faults(world)
    kernel = world.kernel
    _keep_checking(world, kernel)
    kernel.run(1.0)  # most schedules begin with pipelines that serve
    for step in schedule.steps:
        kernel.run(kernel.now_s + step[0] / 1000)
        faults.step(step)
    _let_end(world, faults)
    _serves_again(world, faults)
    _is_tidy(world)
    return _outcome(world)


def _let_end(world: World, faults: Faults) -> None:
    """Faults go on for as long as they were to, then all requests end."""
    kernel = world.kernel
    _wait(kernel, 10.0, lambda: all_ended(world))
    faults.end()
    # whoever waits is told after the deadline; a token before it gives as much time again
    _wait(kernel, 2 * DEADLINE_S + LONGEST_TAIL_S, lambda: all_ended(world))
    open_ = [record.number for record in world.records if not record.end]
    assert not open_, f"requests {open_} hang"
    for record in world.records:
        _check_error(world, record)


def _check_error(world: World, record: Record) -> None:
    """An error must have a reason that lies in what was done to the world."""
    if record.end != "error":
        return
    why = f"request {record.number} failed: {record.error} (status {record.status})"
    if "no memory" in record.error:
        assert world.counts["exhaust"], why
    elif "lost 5 times" in record.error:
        assert len(world.schedule.faults) >= 5, why
    else:
        assert f"waited {DEADLINE_S:g} s" in record.error, why
        assert world.hurt_s >= DEADLINE_S, why


def _serves_again(world: World, faults: Faults) -> None:
    """Once everybody is back, each gateway's request is answered soon, and without an error."""
    kernel = world.kernel
    world.hasten(GATEWAY_FREED_S + LOOK_S)
    _wait(kernel, SETTLE_S + LONGEST_TAIL_S, lambda: _is_whole(world))
    assert _is_whole(world), f"it does not come back: {_state(world)}"
    last = [faults.submit(g, 13 + n) for n, g in enumerate(world.gateways)]
    patience_s = SERVE_AGAIN_S + _slow_steps_to_come_s(world)
    _wait(kernel, patience_s, lambda: all(record.end for record in last))
    for record in last:
        if "no memory" not in record.error:
            assert record.end in ("stop", "length"), (
                f"{record.end!r} {record.error}, {_state(world)}"
            )


def _slow_steps_to_come_s(world: World) -> float:
    """How long steps will take that nobody has asked for yet."""
    engines = [place.run.engine for place in world.places if place.run is not None]
    return sum(sum(engine.slow_s) for engine in engines if engine is not None)


def _is_whole(world: World) -> bool:
    ready = all(p[0].run is not None and p[0].run.telemetry.ready for p in world.pipelines)
    # who was replaced must have been told to end; a stage 0 tells nobody of another one
    rivals = [z for places in world.pipelines for place in places[1:] for z in place.zombies]
    ready = ready and not any(rival.process.alive for rival in rivals)
    return ready and all(_is_at_hand(place, world.kernel.now_s) for place in world.places)


def _is_at_hand(place: Place, now_s: float) -> bool:
    """Not in a step that takes long, either."""
    is_there = place.is_up and not place.coming and place.run is not None
    return is_there and place.run.compute_thread.local_s < now_s + 0.5


def _state(world: World) -> dict[str, Any]:
    return {
        f"{place.pod}": (
            "none"
            if place.run is None
            else (
                "up" if place.is_up else "down",
                place.run.telemetry.state,
                place.run.telemetry.reason,
            )
        )
        for place in world.places
    }


def _is_tidy(world: World) -> None:
    """Nothing is live, so nobody keeps anything."""
    kernel = world.kernel
    # a step that takes long may have waited for the last request of all, and a probe after it
    _wait(kernel, 5.0 + LONGEST_TAIL_S, lambda: _is_idle(world))
    for places in world.pipelines:
        head = places[0].run
        assert head is not None
        assert head.scheduler is not None
        stats = head.scheduler.stats()
        assert not stats.running + stats.waiting + stats.in_flight, f"{head.process} keeps {stats}"
        assert stats.kv_tokens_free == stats.kv_tokens
        head.scheduler.check_integrity()
        for place in places:
            run = place.run
            assert run is not None
            assert run.slots is not None
            assert run.engine is not None
            assert not run.slots.live(), f"{run.process} keeps slots {run.slots.live()}"
            assert not run.engine.held(), f"{run.process} keeps sequences {run.engine.held()}"
    for gateway in world.gateways:
        assert not len(gateway.dispatcher)
        gateway.dispatcher._journal.check_integrity()
        assert not len(gateway.dispatcher._journal)


def _wait(kernel: Kernel, most_s: float, wanted: Callable[[], bool]) -> None:
    """Until it is so, or for so long."""
    until_s = kernel.now_s + most_s
    while not wanted() and kernel.now_s < until_s:
        kernel.run(min(until_s, kernel.now_s + LOOK_S))


def _is_idle(world: World) -> bool:
    heads = (places[0].run for places in world.pipelines)
    stats = [r.scheduler.stats() for r in heads if r is not None and r.scheduler is not None]
    idle = not any(s.running + s.waiting + s.in_flight for s in stats)
    return idle and not any(p.run.slots.live() for p in world.places if p.run and p.run.slots)


def _keep_checking(world: World, kernel: Kernel) -> None:
    """What holds at any time."""

    def look() -> None:
        kernel.after(CHECK_EVERY_S, look)
        assert kernel.events < MOST_EVENTS, "it goes on for ever"
        assert world.net.most_queued < MOST_QUEUED, "frames pile up"
        for gateway in world.gateways:
            gateway.dispatcher._journal.check_integrity()
        for places in world.pipelines:
            head = places[0].run
            if head is not None and head.scheduler is not None and head.process.alive:
                head.scheduler.check_integrity()

    kernel.after(CHECK_EVERY_S, look)


def all_ended(world: World) -> bool:
    """Whether every client knows."""
    return all(record.end for record in world.records)


def _outcome(world: World) -> Outcome:
    outcome = Outcome(Counter(world.counts), world.kernel.now_s, events=world.kernel.events)
    for record in world.records:
        outcome.counts["requests"] += 1
        outcome.counts[f"ended: {record.end}"] += 1
        outcome.counts["tokens"] += len(record.tokens)
        if record.end in ("stop", "length") and not record.pause_s:
            outcome.longest_silence_s = max(outcome.longest_silence_s, record.longest_silence_s)
    for run_ in world.runs:
        counters = run_.telemetry.counters
        outcome.counts["frames refused"] += counters.frames_refused
        outcome.counts["frames stale"] += counters.frames_stale
        outcome.counts["epochs"] += counters.resyncs if run_.stage == 0 else 0
        if run_.scheduler is not None:
            outcome.counts["preemptions"] += run_.scheduler.stats().preemptions
            outcome.counts["tokens found"] += run_.scheduler.stats().prefix_cache_hits
    return outcome
