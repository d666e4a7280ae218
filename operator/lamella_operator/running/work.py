"""Workers: each takes a key from the queue, reconciles it, and says when to look again.

An error of the API server, or a bug, sends the key into its own back-off and disturbs no other
key. Only the loss of leadership ends a worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lamella_contract.errors import LamellaError
from lamella_operator.reconciling.failures import ApiError
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.reconciling.reconcile import GONE, Outcome
from lamella_operator.reconciling.trace import following
from lamella_operator.running.lease import LeadershipLost
from lamella_operator.running.metrics import Metrics
from lamella_operator.running.workqueue import WorkQueue

log = logging.getLogger(__name__)

STUCK_S = 300.0  # a reconcile that takes longer is stuck: each of its calls ends after 30 s


@dataclass(slots=True)
class Workers:
    """``count`` reconciles at a time; ``rested`` is told of each that ends, before the queue is."""

    queue: WorkQueue[ModelKey]
    reconcile: Callable[[ModelKey], Awaitable[Outcome]]
    metrics: Metrics
    count: int
    rested: Callable[[ModelKey], None] = lambda key: None

    async def run(self) -> None:
        """Until cancelled; raises `LeadershipLost`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self._work())

    def stuck(self) -> str:
        """Why the reconcilers make no progress; "" when they do."""
        slow_s = self.queue.longest_s()
        return f"a reconcile has been at work for {slow_s:.0f} s" if slow_s > STUCK_S else ""

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            self.metrics.delay.observe(self.queue.waited_s)
            await self._one(key)

    async def _one(self, key: ModelKey) -> None:
        began_s = time.monotonic()
        with following(model=str(key)):
            try:
                outcome = await self.reconcile(key)
            except LeadershipLost:
                raise
            except ApiError as error:
                # 409: somebody changed what we saw; look again soon, it is no failure
                self._failed(key, f"api_{error.status}", error, loud=False)
            except LamellaError as error:
                self._failed(key, error.kind, error, loud=False)
            except Exception as error:
                self._failed(key, type(error).__name__, error, loud=True)
            else:
                self._done(key, outcome)
        self.metrics.duration.observe(time.monotonic() - began_s)

    def _done(self, key: ModelKey, outcome: Outcome) -> None:
        self.rested(key)
        self.metrics.outcome(key, outcome)
        if outcome.state == GONE:
            self.queue.forget(key)
        else:
            self.queue.done(key, outcome.again_s)
        log.debug("reconciled", extra={"state": outcome.state, "again_s": outcome.again_s})

    def _failed(self, key: ModelKey, kind: str, error: Exception, *, loud: bool) -> None:
        self.rested(key)
        self.metrics.failure(kind)
        again_s = self.queue.failed(key)
        facts = {"kind": kind, "again_s": round(again_s, 2)}
        log.warning("a reconcile failed: %s", error, extra=facts, exc_info=error if loud else None)
