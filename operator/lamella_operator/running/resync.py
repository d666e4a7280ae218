"""One LIST of metadata per kind and minute, which finds what no event announced.

Watches lose things: objects deleted while one was down are never reported. Whatever differs from
what the watches delivered wakes the model it belongs to. A namespace that cannot be listed is told
apart from the others and does not stop them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lamella_contract import names
from lamella_operator.reconciling.client import METADATA_ONLY, Client, Document
from lamella_operator.reconciling.failures import ApiError
from lamella_operator.reconciling.kinds import MODEL, WATCHED, Kind
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.reconciling.parse import mapping, text
from lamella_operator.running.ledger import LATE_S, Ledger, Listed

log = logging.getLogger(__name__)

FIRST_S = 10.0  # until the first round: the watches' own first LIST comes before


def listed(kind: Kind, document: Document) -> Listed:
    """An object's identity and the model that it belongs to."""
    meta = mapping(document, "metadata")
    namespace, uid = text(meta, "namespace"), text(meta, "uid")
    if kind is MODEL:
        key = ModelKey(namespace, text(meta, "name"), uid)
        return Listed(uid, text(meta, "resourceVersion"), key)
    labels = mapping(meta, "labels")
    model, model_uid = text(labels, names.LABEL_MODEL), text(labels, names.LABEL_MODEL_UID)
    owner = ModelKey(namespace, model, model_uid) if model and model_uid else None
    return Listed(uid, text(meta, "resourceVersion"), owner)


@dataclass(slots=True)
class Resync:
    """``scopes`` are the namespaces, or ("",) for all. ``found`` is told of what differs,

    ``renew`` of a scope whose watch owes something, ``up`` says whether it is being watched.
    ``problems`` has a word for each scope that could not be listed the last time, ``overdue_s``
    says for how long its watch owed something when it was listed with success.
    """

    client: Client
    ledger: Ledger
    scopes: Sequence[str]
    found: Callable[[ModelKey], None]
    every_s: float
    now_s: Callable[[], float]
    up: Callable[[str], bool] = lambda scope: True
    renew: Callable[[str], None] = lambda scope: None
    problems: dict[str, str] = field(default_factory=dict)
    last_s: dict[str, float] = field(default_factory=dict)
    overdue_s: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Rounds until cancelled; the pauses vary, so that two operators do not coincide."""
        pause_s = min(FIRST_S, self.every_s)
        while True:
            await asyncio.sleep(pause_s * (0.9 + 0.2 * random.random()))
            pause_s = self.every_s
            await self.round()
            await self._press()

    async def round(self) -> int:
        """One LIST per scope and kind; the number of models that differ."""
        return sum([await self.check(scope) for scope in self.scopes])

    async def check(self, scope: str) -> int:
        """One LIST per kind of one scope."""
        try:
            count = await self._scope(scope)
        except ApiError as error:
            self._failed(scope, error)
            return 0
        except Exception:  # a bug here must not end the reconciles
            log.exception("a resync failed", extra={"namespace": scope or "all"})
            return 0
        was_away = self.problems.pop(scope, None)
        if was_away:
            log.info("a namespace is looked after again", extra={"namespace": scope or "all"})
        self.last_s[scope] = self.now_s()
        if was_away or not self.up(scope):
            self.ledger.excuse(scope, self.now_s())
        self.overdue_s[scope] = self.ledger.lag_s(scope, self.now_s())
        return count

    async def _press(self) -> None:
        """Begin those watches anew that owe something for a while, and look whether that helps."""
        if not any(self.ledger.owes(scope) for scope in self.scopes):
            return
        await asyncio.sleep(LATE_S / 2)
        late = [scope for scope in self.scopes if self.ledger.owes(scope)]
        for scope in late:
            self.renew(scope)
        if late:
            await asyncio.sleep(LATE_S)
        for scope in late:
            await self.check(scope)

    def _failed(self, scope: str, error: ApiError) -> None:
        self.ledger.excuse(scope, self.now_s())
        reason = error.reason or str(error.status)
        if self.problems.get(scope) != reason:
            log.warning(
                "a namespace cannot be looked after",
                extra={"namespace": scope or "all", "said": str(error)},
            )
        self.problems[scope] = reason

    async def _scope(self, scope: str) -> int:
        different: set[ModelKey] = set()
        for kind in WATCHED:
            began_s = self.now_s()
            found = await self.client.list_objects(
                kind,
                scope,
                keep=lambda one, kind=kind: listed(kind, one),  # type: ignore[misc]
                labels=label_selector(kind),
                accept=METADATA_ONLY,
            )
            different |= self.ledger.compare(scope, kind.kind, found, began_s, self.now_s())
        for key in sorted(different):
            log.info("found by a resync", extra={"model": str(key)})
            self.found(key)
        return len(different)


def label_selector(kind: Kind) -> str:
    """What of a kind concerns us: all models, and what carries the label of one."""
    return "" if kind is MODEL else names.LABEL_MODEL_UID
