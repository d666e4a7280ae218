"""Takes a changed manifest up while its pipeline serves: looks, asks `resplit`, and does.

Knows the supervisor, the gateway's words and the files of the run; decides nothing about what
starts and ends. One change at a time: what is asked meanwhile withdraws it while nothing has
moved yet, and else is looked at after it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from lamella import fit, machine, resplit
from lamella.documents import Documents, Pipeline
from lamella.errors import UsageError
from lamella.local import Supervisor
from lamella.logview import failure
from lamella.resplit import Change, Decision, Outcome, Seen
from lamella.target import Target
from lamella.watch import Watcher
from lamella_contract.errors import LamellaError
from lamella_contract.plan import Plan


@dataclasses.dataclass(slots=True)
class _Move:
    """A change that is under way."""

    change: Change
    old: Pipeline
    new: Pipeline
    named: tuple[str, ...]
    moved_at_s: float | None = None
    withdrawn: bool = False

    def addresses(self, pipelines: tuple[str, ...]) -> tuple[str, ...]:
        """Where the pipelines of these names are."""
        places = {each.name: each.made.address for each in (self.old, self.new)}
        return tuple(places[name] for name in pipelines)


class Reload:
    """`read` reads what the user pointed at again; `say` tells the user a line."""

    def __init__(
        self,
        *,
        read: Callable[[], Target],
        say: Callable[[str], None],
        supervisor: Supervisor,
        watcher: Watcher,
        documents: Documents,
        running: Pipeline,
        at_start: machine.Machine,
    ) -> None:
        self._read = read
        self._say = say
        self._supervisor = supervisor
        self._watcher = watcher
        self._documents = documents
        self._running = running
        self._at_start = at_start
        self._device = documents.options.device
        self._asked = False
        self._move: _Move | None = None

    def tick(self) -> None:
        """Goes on with the change that is under way, or begins the one that was asked for."""
        news = self._supervisor.take_reload()
        self._asked = news or self._asked
        if self._move is not None:
            if news:
                self._move.withdrawn = self._asks_for_another(self._move.new.target)
            # A disk that is full now may have room at the next look: nothing is given up for it.
            with contextlib.suppress(OSError):
                self._go_on(self._move)
        elif self._asked and self._supervisor.ready:
            self._asked = False
            try:
                self._begin(self._read())
            except (LamellaError, OSError) as error:
                self._say(f"the manifest is not taken up, all stays as it is: {error}")

    def _asks_for_another(self, target: Target) -> bool:
        """Whether the manifest is of another layout by now; what is wrong with it is told later."""
        try:
            return not resplit.same_layout(target.model, self._read().model)
        except (LamellaError, OSError):
            return False

    def _begin(self, target: Target) -> None:
        """Raises LamellaError for what cannot be planned, or not be changed now."""
        old = self._running
        if field := resplit.needs_restart(old.target.model, target.model):
            raise UsageError(f"{field} has changed, and that takes a restart")
        if resplit.same_layout(old.target.model, target.model):
            self._running = dataclasses.replace(old, target=target)
            self._say("the manifest asks for the stages that run")
            return
        here = machine.look()
        empty = resplit.without(old.plan, here, self._at_start, self._device)
        plan = self._plan(target, empty)
        beside = resplit.both_fit(old.plan, plan, empty, self._device)
        new = self._documents.pipeline(target, plan, here)
        self._watcher.wants_pipelines = True
        self._move = _Move(Change(old.name, new.name, beside), old, new, (old.name,))
        order = "beside the old ones" if beside else "after the old ones end: no room for both"
        self._say(f"the manifest has changed: {_layers(plan)} start {order}")

    def _plan(self, target: Target, empty: machine.Machine) -> Plan:
        """Requests that are live count on the context that they were promised."""
        spec = target.model.spec
        length = self._running.made.pipeline.max_model_len
        context = dataclasses.replace(spec.context, max_model_len=length)
        wanted = dataclasses.replace(spec, context=context)
        return fit.local(self._documents.facts.profile, wanted, empty, self._device)

    def _go_on(self, move: _Move) -> None:
        now_s = time.monotonic()
        seen = self._look(move, now_s)
        if seen.new_ready and move.moved_at_s is None:
            move.moved_at_s = now_s
        decision = resplit.decide(move.change, seen, move.new.target.model.spec.cluster.drain_s)
        self._do(move, decision)
        if decision.outcome is Outcome.DONE:
            self._done(move)
        elif decision.outcome is Outcome.GIVEN_UP:
            self._given_up(move)
        elif decision.outcome is Outcome.WITHDRAWN:
            self._end(move.old)

    def _look(self, move: _Move, now_s: float) -> Seen:
        told = self._watcher.pipelines
        return Seen(
            running=self._supervisor.names(),
            given_up=self._supervisor.given_up(move.new.name) is not None,
            new_ready=bool(told.get(move.new.made.address, {}).get("ready")),
            moved_s=None if move.moved_at_s is None else now_s - move.moved_at_s,
            old_idle=_idle(told.get(move.old.made.address, {})),
            withdrawn=move.withdrawn,
        )

    def _do(self, move: _Move, decision: Decision) -> None:
        if decision.named != move.named:
            self._documents.name(move.addresses(decision.named))
            move.named = decision.named
        if decision.end:
            self._supervisor.end(decision.end)
        if decision.start == move.new.name:
            self._supervisor.start(move.new.worker, on_trial=True)
        elif decision.start:
            self._supervisor.start(move.old.worker)

    def _done(self, move: _Move) -> None:
        self._supervisor.keep(move.new.name)
        self._documents.serving(move.new.made)
        self._watcher.follow(move.new.made.probe_ports)
        self._end(move.new)
        self._say(f"the manifest is taken up: {_layers(move.new.plan)} serve")

    def _given_up(self, move: _Move) -> None:
        reason = self._supervisor.given_up(move.new.name)
        assert reason is not None
        self._end(move.old)
        why = failure(reason.name, reason.code, reason.lines)
        self._say(f"the manifest is not taken up, the old stages serve: {why}")

    def _end(self, running: Pipeline) -> None:
        self._running = running
        self._move = None
        self._watcher.wants_pipelines = False


def _idle(told: Mapping[str, Any]) -> bool:
    """Whether the gateway sends nothing new there, and stage 0 says that it has no request."""
    if not told or told.get("preferred"):
        return False
    return not told.get("running", 1) and not told.get("waiting", 1)


def _layers(plan: Plan) -> str:
    """`3 stages of layers 0-1, 2-2, 3-3`."""
    spans = ", ".join(f"{stage.first_layer}-{stage.last_layer - 1}" for stage in plan.stages)
    count = len(plan.stages)
    return f"{count} stage{'' if count == 1 else 's'} of layers {spans}"
