"""One reconcile of one model, from what is seen now. Nothing is remembered that matters.

1. observe   LISTs by the model's UID; nothing there is a model that is gone: forget it, and let
             go what Kueue holds of it
2. decide    pure; once more with the rivals for capacity, where those matter
3. act       in order; what is refused is told in the status, not raised
4. tell      one Event per transition, then the status, if it is worth writing
5. again     when a wait ends, soon while a ring is asked for its progress, else when woken

An error of the API server is raised: whoever woke us wakes us again, with back-off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lamella_operator import reasons
from lamella_operator.actions import Decision, Note, Situation, Wait
from lamella_operator.reconciling.act import Acted, Actor
from lamella_operator.reconciling.client import Client, Document
from lamella_operator.reconciling.observe import ModelKey, Observer, Sight
from lamella_operator.reconciling.telling import EventLine, post_events, write_status
from lamella_operator.views import Manifest, Observed

log = logging.getLogger(__name__)

ASK_AGAIN_S = 5.0  # between two questions to a stage 0 whose ring is not ready
STATUS_S = 10.0  # after which a status that was only newer numbers is written
FIRST_S = 1.0  # for which a model's very first status waits for more to tell
GONE, REFUSED, DEGRADED, PAUSED, READY, PROGRESSING, NOT_READY = (
    "Gone",
    "Refused",
    "Degraded",
    "Paused",
    "Ready",
    "Progressing",
    "NotReady",
)
STATES = (REFUSED, DEGRADED, PAUSED, READY, PROGRESSING, NOT_READY)


@dataclass(frozen=True, slots=True)
class Brain:
    """The pure parts, as functions."""

    decide: Callable[[Observed], Decision]
    wants_rivals: Callable[[Observed], bool]
    status_document: Callable[[Observed, Situation], Document]
    should_write: Callable[[Manifest, Document, float, float], bool]
    """(status as stored, new status, seconds since 1970 of our last write or 0.0, now)."""
    events: Callable[[Manifest, Document], Sequence[EventLine]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``state`` is one of `STATES` or Gone; ``again_s`` is when to look again, if nothing wakes."""

    state: str
    again_s: float | None
    writes: int = 0


@dataclass(slots=True)
class Reconciler:
    """``crd_problem`` is why nothing may be done at all ("": nothing is in the way)."""

    client: Client
    observer: Observer
    actor: Actor
    brain: Brain
    crd_problem: str = ""
    _written_s: dict[str, float] = field(default_factory=dict)  # last write of a status, by UID

    async def reconcile(self, key: ModelKey) -> Outcome:
        """Raises `ApiError`."""
        sight = await self.observer.observe(key)  # 1
        if sight is None:
            self._written_s.pop(key.uid, None)
            self.actor.keys.forget(key.uid)
        if sight is None or sight.observed.model.deleting:
            # its owner references clean up, but for what another finalizer holds
            return Outcome(GONE, None, await self.actor.let_go(key.namespace, key.uid))
        observed = sight.observed
        observed, decision = await self._decide(observed)  # 2
        acted = await self.actor.act(observed, decision.actions)  # 3
        situation = decision.situation
        if acted.refusals:
            observed = replace(observed, refusals=tuple(acted.refusals))
            second = self.brain.decide(observed)
            situation = second.situation
            for action in second.actions:
                if isinstance(action, Wait):
                    acted.wait(action.after_s)
        late = await self._tell(sight, observed, situation, acted)  # 4
        if sight.look_again:
            acted.wait(ASK_AGAIN_S)
        if late:
            acted.wait(STATUS_S)
        return Outcome(state_of(situation), acted.wait_s, acted.writes)  # 5

    async def _decide(self, observed: Observed) -> tuple[Observed, Decision]:
        if self.crd_problem:
            return observed, Decision((), too_old(self.crd_problem))
        if self.brain.wants_rivals(observed):
            observed = replace(observed, rivals=await self.observer.rivals())
        return observed, self.brain.decide(observed)

    async def _tell(
        self, sight: Sight, observed: Observed, situation: Situation, acted: Acted
    ) -> bool:
        """Whether there is something new that was not worth writing yet."""
        model, old = observed.model, observed.model.status
        if _just_begun(old, situation, acted):
            acted.wait(FIRST_S)
            return False
        new = self.brain.status_document(observed, situation)
        last_s = self._written_s.get(model.uid, 0.0)
        if not self.brain.should_write(old, new, last_s, observed.now_s):
            return self.brain.should_write(old, new, 0.0, observed.now_s)
        lines = self.brain.events(old, new)
        await post_events(self.client, model, sight.version, lines, observed.now_s)
        await write_status(self.client, model, new)
        self._written_s[model.uid] = observed.now_s
        acted.writes += 1
        log.info("status written", extra={"reason": new.get("reason"), "said": new.get("message")})
        return False


def too_old(problem: str) -> Situation:
    """What is told of a model when the CRD does not know all its fields."""
    return Situation(refused=Note(reasons.CRD_TOO_OLD, problem))


def _just_begun(old: Manifest, situation: Situation, acted: Acted) -> bool:
    """Whether nothing was ever told, and an inspector was made by this very pass: the next look,
    which comes at once, knows more, and nothing is lost that the inspector's name does not say."""
    waits = situation.unresolved is not None and not situation.replicas
    return not old and waits and bool(acted.writes) and not acted.refusals


def state_of(situation: Situation) -> str:
    """One word for a metric."""
    if situation.refused is not None:
        return REFUSED
    if situation.degraded is not None:
        return DEGRADED
    if situation.paused:
        return PAUSED
    if situation.unresolved is not None or situation.unplanned is not None:
        return NOT_READY
    ready = sum(replica.ready for replica in situation.replicas)
    if ready >= situation.wanted_replicas and situation.rolling is None:
        return READY
    return PROGRESSING if ready else NOT_READY
