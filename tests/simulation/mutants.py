"""Small deliberate faults, each of which the simulation must find: it can fail.

``python -m tests.simulation.mutants`` prints how many schedules it took for each.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from lamella_contract.wire import (
    Adopt,
    Envelope,
    Replay,
    TokenEvent,
    Verdict,
    check_envelope,
)
from lamella_gateway.dispatch import Dispatcher
from lamella_gateway.journal import Journal, News
from lamella_worker.batch import Bundle
from lamella_worker.head import HeadLoop
from lamella_worker.links import InGate
from lamella_worker.membership.control import StageControl
from lamella_worker.membership.gateway_port import GatewayPort
from lamella_worker.membership.head_choice import HeadChoice
from lamella_worker.membership.head_control import HeadControl
from lamella_worker.membership.orders import DropOwner
from lamella_worker.membership.ring import Action, Refuse, Ring, Seen
from lamella_worker.sampling import Sampler
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.stage import StageLoop, StepRunner

from .checks import run
from .engine import ToyEngine
from .gateway_process import GatewayProcess
from .run import say
from .schedule import Schedule, random_schedule
from .stage_process import CheckedHeadLoop, CheckedRunner, CheckedStageLoop, StageProcess

ENOUGH = 600


class Mutant(NamedTuple):
    """What is wrong with it, and its programs."""

    what: str
    stage: type[StageProcess] = StageProcess
    gateway: type[GatewayProcess] = GatewayProcess
    hint: Schedule | None = None  # tried first, where random ones take long


# -- what comes in -----------------------------------------------------------------------------


class _AnyEpoch(InGate):
    def admits(self, envelope: Envelope) -> bool:
        expected = self._expected
        envelope = dataclasses.replace(
            envelope, incarnation=expected.incarnation, epoch=expected.epoch
        )
        return super().admits(envelope)


class _AnySequence(InGate):
    def admits(self, envelope: Envelope) -> bool:
        if check_envelope(envelope, self._expected) is Verdict.GAP:
            envelope = dataclasses.replace(envelope, sequence=self._expected.sequence)
        return super().admits(envelope)


class _Twice(InGate):
    def admits(self, envelope: Envelope) -> bool:
        again = dataclasses.replace(self._expected, sequence=envelope.sequence)
        if self.is_open and envelope.sequence < self._expected.sequence:
            return check_envelope(envelope, again) is Verdict.ACCEPT
        return super().admits(envelope)


def _with_gate(gate: type[InGate]) -> type[StageProcess]:
    class Loop(CheckedStageLoop):
        def __init__(self, *parts: Any, **named: Any) -> None:
            super().__init__(*parts, **named)
            _, _, _, channel, telemetry, config_hash = parts
            self._gate = gate(config_hash, channel, telemetry, what="frame")

    class Head(CheckedHeadLoop):
        def __init__(self, *parts: Any, **named: Any) -> None:
            super().__init__(*parts, **named)
            channel, telemetry, config_hash = parts[4:7]
            self._gate = gate(config_hash, channel, telemetry, what="StepDone")

    class Stage(StageProcess):
        def make_stage_loop(self, *parts: Any, **named: Any) -> StageLoop:
            return Loop(*parts, **named)

        def make_head_loop(self, *parts: Any, **named: Any) -> HeadLoop:
            return Head(*parts, **named)

    return Stage


# -- what is kept ------------------------------------------------------------------------------


class _KeepsTables(StageProcess):
    def make_runner(self, *parts: Any, **named: Any) -> StepRunner:
        class Runner(CheckedRunner):
            def enter(self, incarnation: bytes) -> Any:
                self._last_step = -1
                return ()

        return Runner(*parts, **named)


class _BelievesTooMuch(StageProcess):
    """One position more is taken for kept than was computed."""

    def make_runner(self, *parts: Any, **named: Any) -> StepRunner:
        class Runner(CheckedRunner):
            def enter(self, incarnation: bytes) -> Any:
                for held in super().enter(incarnation) or ():
                    self._slots._sure[held.slot] += 1
                return self._slots.held()

        return Runner(*parts, **named)


class _ForgetsFree(StageProcess):
    def make_engine(self) -> ToyEngine:
        engine = super().make_engine()
        engine.release = lambda slot: None  # type: ignore[method-assign]
        return engine


class _SkipsFirst(StageProcess):
    """After a change of epoch one value is not computed, as if it were still there."""

    def make_engine(self) -> ToyEngine:
        process = self

        class Engine(ToyEngine):
            fresh = True

            def step(self, batch: Any, bundle: Bundle) -> Bundle:
                after = process.telemetry.counters.resyncs > 1
                if self.fresh and after and batch.tokens > 1:
                    self.fresh = False
                    (name,) = bundle
                    bundle = {name: bundle[name].clone()}
                    bundle[name][0] = 0
                return super().step(batch, bundle)

        engine = super().make_engine()
        engine.__class__ = Engine
        return engine


class _ShortMemory(StageProcess):
    """The sampler is told the prompt only: penalties count from there again."""

    def make_runner(self, *parts: Any, **named: Any) -> StepRunner:
        class Forgetful(Sampler):
            def adopt(self, adopt: Adopt) -> None:
                super().adopt(adopt)
                seen = self._slots[adopt.slot].seen
                if seen is not None:
                    seen._counts[:] = 0

        engine, slots, sampler, *others = parts
        return CheckedRunner(
            engine, slots, Forgetful() if sampler is not None else None, *others, **named
        )


# -- what others left --------------------------------------------------------------------------


class _CopiesNothing(StageProcess):
    def make_engine(self) -> ToyEngine:
        engine = super().make_engine()
        engine.copy_blocks = lambda sources, blocks: None  # type: ignore[method-assign]
        return engine


class _RemembersAll(StageProcess):
    """What was found before a change of epoch is found after it, and no stage objects."""

    def make_runner(self, *parts: Any, **named: Any) -> StepRunner:
        _, slots, *_ = parts
        slots._sure_of_copies = lambda sources: len(sources) * slots.block_size
        return super().make_runner(*parts, **named)

    def make_scheduler(self, limits: SchedulerLimits) -> Scheduler:
        scheduler = super().make_scheduler(limits)
        running = scheduler._compose.running
        running.blocks.drop_kept = lambda: None  # type: ignore[method-assign]
        running.index.clear = lambda: None  # type: ignore[method-assign]
        return scheduler


class _FindsOverwritten(StageProcess):
    """A block that was given away is found under its old name."""

    def make_scheduler(self, limits: SchedulerLimits) -> Scheduler:
        scheduler = super().make_scheduler(limits)
        running = scheduler._compose.running
        running.blocks._forget = lambda block: None
        running.check_integrity = lambda: None  # type: ignore[method-assign]
        return scheduler


class _ReusesAny(StageProcess):
    """What a stage says that it can never keep is begun with all the same."""

    def make_scheduler(self, limits: SchedulerLimits) -> Scheduler:
        scheduler = super().make_scheduler(limits)
        restart = scheduler.restart
        scheduler.restart = lambda answers=(): restart(  # type: ignore[method-assign]
            [answer or () for answer in answers]
        )
        return scheduler


# -- who belongs to it -------------------------------------------------------------------------


def _with_ring(ring: type[Ring]) -> type[StageProcess]:
    class Control(HeadControl):
        def __init__(self, *parts: Any, **named: Any) -> None:
            super().__init__(*parts, **named)
            self._ring.__class__ = ring

    class Stage(StageProcess):
        def make_head_control(self, *parts: Any, **named: Any) -> HeadControl:
            return Control(*parts, **named)

    return Stage


class _NeverOverdue(Ring):
    __slots__ = ()

    def tick(self, now_s: float, **ages: float) -> list[Action]:
        self._flows.clear()
        return Ring.tick(self, now_s, oldest_step_age_s=0.0, predicted_step_s=0.0)


class _NeverMissed(Ring):
    __slots__ = ()

    def tick(self, now_s: float, **ages: float) -> list[Action]:
        self._flows.clear()
        return Ring.tick(self, now_s, **ages)


class _LastComer(Ring):
    __slots__ = ()

    def _is_older(self, claimant: Seen, present: Seen) -> bool:
        return False


class _NoRefusal(Ring):
    __slots__ = ()

    def join(self, *args: Any, **named: Any) -> list[Action]:
        actions = Ring.join(self, *args, **named)
        if any(isinstance(action, Refuse) for action in actions):
            self._retired.clear()
            return Ring.join(self, *args, **named)
        return actions


class _AnyAddress(HeadChoice):
    __slots__ = ()

    def _knows_better(self) -> bool:
        return False


class _FollowsAny(StageProcess):
    def _make_control(self) -> HeadControl | StageControl:
        control = super()._make_control()
        if isinstance(control, StageControl):
            control._head.choice.__class__ = _AnyAddress
        return control


class _DeafPort(GatewayPort):
    def expire(self, now_s: float) -> list[DropOwner]:
        return []


class _NeverFrees(StageProcess):
    def make_head_control(self, *parts: Any, **named: Any) -> HeadControl:
        control = HeadControl(*parts, **named)
        control._gateways.__class__ = _DeafPort
        return control


# -- what was asked ----------------------------------------------------------------------------


def _with_journal(journal: type[Journal]) -> type[GatewayProcess]:
    class Gateway(GatewayProcess):
        def make_dispatcher(self, *parts: Any, **named: Any) -> Dispatcher:
            dispatcher = Dispatcher(*parts, **named)
            dispatcher._journal.__class__ = journal
            return dispatcher

    return Gateway


class _AnyPosition(Journal):
    def take(self, replica: str, event: TokenEvent, now_s: float) -> News | Replay | None:
        entry = self._entries.get(event.request_id)
        if entry is not None:
            event = event._replace(position=len(entry.emitted))
        return super().take(replica, event, now_s)


_LONG = 17  # `request_of` makes a request of many tokens of it
_FROZEN = Schedule(
    stages=(2,),
    steps=((0, "submit", 0, _LONG, 0), (20, "freeze", 1, 7, 0), (9500, "submit", 0, 3, 0)),
)
_LATE_DROP = Schedule(
    stages=(2,),
    steps=(
        (0, "burst", 0, _LONG, 3),
        (500, "burst", 0, _LONG, 3),
        (500, "submit", 0, _LONG, 0),
        (8, "drop", 0, 1, 0),
    ),
)
_EARLY_DROP = Schedule(stages=(2,), steps=((0, "submit", 0, 1, 0), (5, "drop", 0, 1, 0)))
_THAWED_STAGE = Schedule(
    stages=(2,),
    steps=(
        (0, "submit", 0, 3, 0),
        (20, "freeze", 1, 7, 0),
        (5500, "kill", 0, 0, 0),
        (1500, "submit", 0, 3, 0),
    ),
)
_THAWED_HEAD = Schedule(
    stages=(2,),
    steps=((750, "freeze", 0, 6, 0), (6500, "submit", 0, 3, 0), (2500, "submit", 0, 3, 0)),
)
_DOUBLED = Schedule(
    stages=(2,), steps=((0, "burst", 0, _LONG, 3), *((3, "double", n, 0, 0) for n in range(8)))
)
_ANEW = Schedule(
    stages=(2,),
    blocks=30,
    steps=((500, "burst", 0, 60, 3), (2000, "kill", 1, 0, 0), (2500, "burst", 0, 60, 3)),
)
_DEAD_GATEWAY = Schedule(
    stages=(2,),
    gateways=2,
    steps=((500, "burst", 0, _LONG, 3), (2, "power_off", 1, 7, 0), (2, "gateway_kill", 0, 0, 0)),
)

MUTANTS: dict[str, Mutant] = {
    "any_epoch": Mutant("frames of older epochs are taken", _with_gate(_AnyEpoch)),
    "any_sequence": Mutant("a missing frame is not missed", _with_gate(_AnySequence)),
    "twice": Mutant("a frame that was seen before is taken again", _with_gate(_Twice)),
    "keeps_tables": Mutant("tables outlive their epoch", _KeepsTables),
    "believes_too_much": Mutant("one position too much is taken for kept", _BelievesTooMuch),
    "forgets_free": Mutant("a stage's engine is not told of frees", _ForgetsFree),
    "skips_first": Mutant("one value is not computed again after a change", _SkipsFirst),
    "copies_nothing": Mutant("found blocks are not copied", _CopiesNothing),
    "remembers_all": Mutant(
        "what ended requests left outlives its epoch", _RemembersAll, hint=_ANEW
    ),
    "finds_overwritten": Mutant("blocks that were given away are found", _FindsOverwritten),
    "reuses_any": Mutant("a state that cannot be copied is begun with", _ReusesAny),
    "short_memory": Mutant("penalties forget what was said before a restart", _ShortMemory),
    "never_overdue": Mutant("no step is ever overdue", _with_ring(_NeverOverdue), hint=_LATE_DROP),
    "never_missed": Mutant(
        "a lost last frame is not missed", _with_ring(_NeverMissed), hint=_EARLY_DROP
    ),
    "last_comer": Mutant(
        "a new stage 0 takes the last comer", _with_ring(_LastComer), hint=_THAWED_STAGE
    ),
    "any_address": Mutant("a replaced stage 0 is followed", _FollowsAny, hint=_THAWED_HEAD),
    "no_refusal": Mutant("a replaced process may come back", _with_ring(_NoRefusal), hint=_FROZEN),
    "never_frees": Mutant("a dead gateway's requests stay", _NeverFrees, hint=_DEAD_GATEWAY),
    "any_position": Mutant(
        "events are taken as they come", gateway=_with_journal(_AnyPosition), hint=_DOUBLED
    ),
}


def find(mutant: Mutant, seeds: Sequence[int] = range(ENOUGH)) -> tuple[int, str]:
    """The first seed that finds it, and how; (-1, "") when none does."""
    tried = [(0, mutant.hint)] if mutant.hint is not None else []
    for seed, schedule in (*tried, *((seed, random_schedule(seed)) for seed in seeds)):
        try:
            run(schedule, stage_class=mutant.stage, gateway_class=mutant.gateway)
        except Exception as error:  # however it shows
            return seed, f"{type(error).__name__}: {error}"
    return -1, ""


def main() -> int:
    logging.disable(logging.CRITICAL)
    unfound = 0
    wanted = sys.argv[1:] or list(MUTANTS)
    for name in wanted:
        seed, how = find(MUTANTS[name])
        unfound += seed < 0
        found = f"schedule {seed}: {how[:110]}" if seed >= 0 else f"NOT in {ENOUGH} schedules"
        say(f"| {name:17} | {MUTANTS[name].what:48} | {found} |")
    return 1 if unfound else 0


if __name__ == "__main__":
    sys.exit(main())
