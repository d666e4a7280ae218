"""The running operator: everything put together, started in order, and ended in order.

1. connect to the API server, answer probes
2. wait until the CRD is there
3. watch each scope, resync each minute          (standby and leader)
4. become the leader, read the root Secret
5. reconcile                                     (leader only)

The end (a signal, or the loss of the lease) goes backwards; a signal empties the lease.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lamella_operator.reconciling import schema
from lamella_operator.reconciling.access import Access, connect
from lamella_operator.reconciling.act import Actor
from lamella_operator.reconciling.client import Client
from lamella_operator.reconciling.failures import ApiError
from lamella_operator.reconciling.keys import Keys
from lamella_operator.reconciling.kinds import MODEL
from lamella_operator.reconciling.observe import ModelKey, Nodes, Observer
from lamella_operator.reconciling.reconcile import Brain, Reconciler
from lamella_operator.reconciling.stage0 import HttpAsk
from lamella_operator.running import http
from lamella_operator.running.elector import Elector
from lamella_operator.running.flags import Process
from lamella_operator.running.lease import Leadership, LeadershipLost
from lamella_operator.running.ledger import LATE_S, Ledger
from lamella_operator.running.metrics import Metrics
from lamella_operator.running.resync import Resync
from lamella_operator.running.supervise import Supervisor
from lamella_operator.running.wakes import Wakes
from lamella_operator.running.watches import Watches
from lamella_operator.running.work import Workers
from lamella_operator.running.workqueue import WorkQueue
from lamella_operator.settings import Settings

log = logging.getLogger(__name__)

AGAIN_S = 5.0  # between two looks for what must be there before anything starts
ENDING_S = 5.0  # for all that runs, when the end has come
SETTLE_S = 0.25  # in which nothing new comes, when the first lists are delivered
SETTLE_TURNS, EMPTY_TURNS = 40, 6  # of waiting for that, at most; and in an empty cluster
SCHEMA_S = 300.0  # between two looks at the CRD
OK, FAILED = 0, 1


async def run(settings: Settings, process: Process, brain: Brain) -> int:
    """The operator until a signal comes (0) or it can go on no more (1)."""
    access = await connect(kubeconfig=process.kubeconfig)
    app = App(settings, process, brain, access)
    try:
        return await app.run()
    finally:
        await app.ask.close()
        await access.close()


@dataclass(slots=True)
class App:
    """One process. The parts, by who may write: `reader` never does, `writer` while it leads."""

    settings: Settings
    process: Process
    brain: Brain
    access: Access
    metrics: Metrics = field(default_factory=Metrics)
    ledger: Ledger = field(default_factory=Ledger)
    ask: HttpAsk = field(default_factory=HttpAsk)
    queue: WorkQueue[ModelKey] = field(default_factory=WorkQueue)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    waiting_for: str = "the API server"
    reader: Client = field(init=False)
    leadership: Leadership = field(init=False)
    reconciler: Reconciler = field(init=False)
    keys: Keys = field(init=False)
    supervisor: Supervisor = field(init=False)
    resync: Resync = field(init=False)
    workers: Workers = field(init=False)
    wakes: Wakes = field(init=False)

    def __post_init__(self) -> None:
        settings, counted = self.settings, self.metrics.request
        self.reader = Client(self.access, counted=counted)
        self.leadership = Leadership(
            self.reader, settings.namespace, self.process.lease, Elector(self.process.identity)
        )
        self.wakes = Wakes(self.queue)
        writer = Client(
            self.access, counted=counted, fence=self.leadership.check, wrote=self.wakes.wrote
        )
        self.keys = Keys(writer, settings.namespace, settings.root_secret, time.monotonic)
        nodes = Nodes(writer, not settings.namespaces, time.monotonic)
        observer = Observer(
            writer, nodes, self.ask, self.keys.public_key, settings.namespaces, time.time
        )
        self.reconciler = Reconciler(writer, observer, Actor(writer, self.keys), self.brain)
        watches = Watches(
            self.ledger, self.wakes.told, self.access.open_session, self._take_signals
        )
        self.supervisor = Supervisor(watches.watch, self._watch_began)
        self.resync = Resync(
            self.reader,
            self.ledger,
            settings.namespaces or ("",),
            self._found,
            settings.resync_s,
            time.monotonic,
            lambda scope: self.supervisor.is_up(scope),
            self.supervisor.renew,
        )
        self.workers = Workers(
            self.queue,
            self.reconciler.reconcile,
            self.metrics,
            self.process.workers,
            self.wakes.rested,
        )

    async def run(self) -> int:
        """See the module."""
        self._take_signals()
        self._measure()
        probes = http.Probes(self.alive, self.ready, self._metrics)
        runner, port = await http.serve(probes, self.process.port)  # 1
        log.info("started", extra={"port": port, "identity": self.process.identity})
        life = asyncio.ensure_future(self._live())
        stopped = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({life, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                log.info("asked to end")
            return self._verdict(life) if life.done() else OK
        finally:
            stopped.cancel()
            life.cancel()
            await asyncio.wait({life}, timeout=ENDING_S)
            await self.leadership.release()
            await runner.cleanup()

    def alive(self) -> str:
        """Why this process should be restarted; "" when that would not help."""
        for scope, owed_s in self.resync.overdue_s.items():
            if owed_s > LATE_S:
                return f"the watch of {scope or 'all namespaces'} has owed news for {owed_s:.0f} s"
        return self.workers.stuck()

    def ready(self) -> str:
        """What this process still waits for; the standby is ready too."""
        return f"waiting for {self.waiting_for}" if self.waiting_for else ""

    async def _live(self) -> None:
        await self._wait_for_crd()  # 2
        async with asyncio.TaskGroup() as group:
            for scope in self.resync.scopes:
                group.create_task(self.supervisor.keep(scope))  # 3
            group.create_task(self.resync.run())
            group.create_task(self._watch_schema())
            gc.collect()
            gc.freeze()  # modules live for ever: the collector looks at what is new, and more often
            self.waiting_for = ""
            await self.leadership.acquire()  # 4
            group.create_task(self.leadership.keep())
            await self._until(self.keys.load)
            await self._settle()
            group.create_task(self.workers.run())  # 5

    async def _settle(self) -> None:
        """Until the watches' first lists are delivered: each model is then looked at once."""
        count = -1
        for turn in range(SETTLE_TURNS):
            if len(self.ledger) == count and (count or turn >= EMPTY_TURNS):
                return
            count = len(self.ledger)
            await asyncio.sleep(SETTLE_S)

    async def _wait_for_crd(self) -> None:
        while not await self._read_schema():
            await asyncio.sleep(AGAIN_S)

    async def _read_schema(self) -> bool:
        """Whether there is a CRD; what it lacks stops all reconciles until it is upgraded."""
        try:
            found = await schema.read(self.reader)
        except ApiError as error:
            log.warning("the API server does not tell its schema", extra={"said": str(error)})
            return False
        if not found.installed:
            self.waiting_for = "the CRD to be installed"
            log.warning(found.problem)
            return False
        if found.problem != self.reconciler.crd_problem:
            log.log(
                logging.ERROR if found.problem else logging.INFO, found.problem or "CRD is well"
            )
            self.reconciler.crd_problem = found.problem
            for key in list(self.ledger.keys(MODEL.kind)):
                self.queue.add(key)
        return True

    async def _watch_schema(self) -> None:
        while True:
            await asyncio.sleep(SCHEMA_S)
            await self._read_schema()

    async def _until(self, step: Callable[[], object]) -> None:
        """``step`` again and again until the API server lets it succeed."""
        while True:
            try:
                await step()  # type: ignore[misc]
                return
            except ApiError as error:
                log.warning("not yet: %s", error)
                await asyncio.sleep(AGAIN_S)

    def _verdict(self, life: asyncio.Future[None]) -> int:
        error = life.exception()
        lost = error.subgroup(LeadershipLost) if isinstance(error, ExceptionGroup) else None
        if lost is not None:
            log.error("%s", lost.exceptions[0])
        else:
            log.error("the operator ends: %s", error, exc_info=error)
        return FAILED

    def _found(self, key: ModelKey) -> None:
        self.metrics.found.inc()
        self.queue.add(key)

    def _watch_began(self, scope: str) -> None:
        if self.supervisor.watched[scope].restarts:
            self.metrics.restarts.labels(scope).inc()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)

    def _measure(self) -> None:
        measure, queue = self.metrics.measure, self.queue
        measure("queue_depth", "Models that wait for a reconcile", lambda: len(queue))
        measure("queue_delayed", "Models that are looked at later", lambda: queue.delayed)
        measure("queue_oldest_seconds", "Age of the first in the queue", queue.oldest_s)
        measure("reconciling", "Reconciles at work", lambda: queue.at_work)
        measure("leader", "1 while this process leads", lambda: float(self.leadership.leads))
        measure("watched_objects", "Objects that the watches know", lambda: len(self.ledger))
        measure(
            "crd_problem",
            "1 while the CRD is too old",
            lambda: float(bool(self.reconciler.crd_problem)),
        )

    def _metrics(self) -> bytes:
        now_s, metrics = time.monotonic(), self.metrics
        for scope in self.resync.scopes:
            metrics.watch_up.labels(scope).set(self.supervisor.is_up(scope))
            metrics.lag.labels(scope).set(self.ledger.lag_s(scope, now_s))
            metrics.listed.labels(scope).set(scope in self.resync.problems)
            last_s = self.resync.last_s.get(scope)
            metrics.age.labels(scope).set(-1 if last_s is None else now_s - last_s)
        return metrics.text()
