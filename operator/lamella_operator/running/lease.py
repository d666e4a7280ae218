"""The operator's own Lease: of two operators one reconciles, the other waits and watches.

I/O around `elector`. Every update names the resourceVersion that was read, so of two who try, one
wins. Losing the lead raises `LeadershipLost`, which ends the process: nothing that a leader knew is
worth keeping. A clean end empties the Lease, so that the other takes over at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from lamella_contract.errors import LamellaError
from lamella_operator.reconciling.client import Client, Document
from lamella_operator.reconciling.failures import ApiError, Conflict, NotFound
from lamella_operator.reconciling.kinds import LEASE
from lamella_operator.reconciling.parse import mapping, number, text
from lamella_operator.running.elector import LEASE_S, RENEW_S, RETRY_S, Elector, Record

log = logging.getLogger(__name__)

STAMP = "%Y-%m-%dT%H:%M:%S.%fZ"


class LeadershipLost(LamellaError):
    """Another operator leads, or the API server was away for too long; start again."""

    kind = "leadership_lost"


@dataclass(slots=True)
class Leadership:
    """One contender. ``now_s`` is monotonic; ``sleep`` and ``jitter`` are parameters of tests."""

    client: Client
    namespace: str
    name: str
    elector: Elector
    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    jitter: Callable[[], float] = random.random

    @property
    def leads(self) -> bool:
        return self.elector.leads(self.now_s())

    def check(self) -> None:
        """Before every write; raises `LeadershipLost`."""
        if not self.leads:
            raise LeadershipLost(f"the lease {self.namespace}/{self.name} was not renewed in time")

    async def acquire(self) -> None:
        """Returns when this contender leads."""
        said = ""
        while not self.leads:
            await self._try()
            holder = self.elector.record.holder if self.elector.record else ""
            if not self.leads:
                if holder != said:
                    log.info("another operator leads", extra={"holder": holder})
                    said = holder
                await self.sleep(RETRY_S * (0.8 + 0.4 * self.jitter()))
        log.info("leading", extra={"identity": self.elector.identity})

    async def keep(self) -> None:
        """Renews until it is cancelled; raises `LeadershipLost` when that no longer works."""
        while True:
            await self.sleep(RETRY_S)
            self.check()
            await self._try()
            self.check()

    async def release(self) -> None:
        """Empty the Lease, if it is ours; best effort."""
        if not self.leads or self.elector.record is None:
            return
        record = Record(
            holder="",
            version=self.elector.record.version,
            renewed=_stamp(),
            duration_s=1.0,
            transitions=self.elector.record.transitions,
        )
        try:
            await self._write(record, deadline_s=2.0)
        except ApiError as error:
            log.warning("the lease could not be given back", extra={"said": str(error)})
        self.elector = Elector(self.elector.identity)

    async def _try(self) -> None:
        """Read and, where it may be ours, write; an API server that is away changes nothing."""
        began_s = self.now_s()
        try:
            self.elector = self.elector.saw(await self._read(), self.now_s())
            if self.elector.may_write(self.now_s()):
                began_s = self.now_s()
                written = await self._write(self.elector.next_record(_stamp()))
                self.elector = self.elector.wrote(written, began_s)
        except Conflict:
            log.info("somebody else wrote the lease first")
        except ApiError as error:
            log.warning("the lease could not be kept up", extra={"said": str(error)})

    async def _read(self) -> Record | None:
        path = LEASE.path(self.namespace, self.name)
        try:
            found = await self.client.call(
                "GET", path, LEASE, deadline_s=RENEW_S / 2, timeout_s=RENEW_S / 2
            )
        except NotFound:
            return None
        return record_of(found)

    async def _write(self, record: Record, deadline_s: float = RENEW_S / 2) -> Record:
        document = self._document(record)
        create = not record.version
        written = await self.client.call(
            "POST" if create else "PUT",
            LEASE.path(self.namespace, "" if create else self.name),
            LEASE,
            body=document,
            deadline_s=deadline_s,
            timeout_s=deadline_s,
            verb="create" if create else "update",
        )
        return record_of(written)

    def _document(self, record: Record) -> Document:
        metadata: Document = {"name": self.name, "namespace": self.namespace}
        if record.version:
            metadata["resourceVersion"] = record.version
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": metadata,
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": int(record.duration_s),
                "renewTime": record.renewed,
                "leaseTransitions": record.transitions,
            },
        }


def record_of(document: Document) -> Record:
    """A Lease as the API server gives it."""
    spec = mapping(document, "spec")
    return Record(
        holder=text(spec, "holderIdentity"),
        version=text(document, "metadata", "resourceVersion"),
        renewed=text(spec, "renewTime"),
        duration_s=float(number(spec, "leaseDurationSeconds") or LEASE_S),
        transitions=number(spec, "leaseTransitions"),
    )


def _stamp() -> str:
    return datetime.now(UTC).strftime(STAMP)
