"""One small client of the API server: JSON documents in, JSON documents out.

Over the REST layer of `kubernetes.aio`, without its generated models. Every call has a timeout and
a deadline; what is worth repeating (no answer, 429, 5xx) is repeated with back-off, jitter and the
server's Retry-After until then. Repeating a write is harmless because every write has a
deterministic name. Knows no model and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

import msgspec

from lamella_contract import names
from lamella_operator.reconciling import trimming
from lamella_operator.reconciling.failures import RETRIED, ApiError, Expired, from_answer
from lamella_operator.reconciling.kinds import Kind
from lamella_operator.views import Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")
Document = dict[str, Any]

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
METADATA_ONLY = f"{JSON};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,{JSON}"
TABLE = f"{JSON};as=Table;v=v1;g=meta.k8s.io"

PAGE = 500  # objects of one page of a LIST
TIMEOUT_S = 15.0  # of one attempt
DEADLINE_S = 30.0  # of one call with all its attempts
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 5.0
RESTARTS = 3  # of a LIST whose pages expired


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``retry_after_s`` is the header's, None when there is none."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Transport(Protocol):
    """Sends one request; raises `OSError` or `TimeoutError` when there is no answer."""

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: object, timeout_s: float
    ) -> Answer: ...

    async def renew_credentials(self) -> None:
        """Read the token again: the server did not take the one that was sent."""


Counted = Callable[[str, str, int], None]
"""Told of each attempt: verb, plural (``pods``), status (0: no answer)."""

Wrote = Callable[[str, str], None]
"""Told of a write whose echo is no news: the object's UID and its resourceVersion after it."""

TO_THE_END = "to the end"
"""In place of that version: nothing that still happens to the object is news."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance, as parameters."""

    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


class Client:
    """Calls of the API server, at most ``parallel`` at a time.

    ``fence`` is called before each attempt to write, and raises when writing is not allowed.
    ``wrote`` is for those who write: see `Wrote`.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock | None = None,
        counted: Counted = lambda verb, plural, status: None,
        fence: Callable[[], None] = lambda: None,
        wrote: Wrote = lambda uid, version: None,
        parallel: int = 32,
    ) -> None:
        self.wrote = wrote
        self._transport = transport
        self._clock = clock or Clock()
        self._counted = counted
        self._fence = fence
        self._slots = asyncio.Semaphore(parallel)

    async def get(self, kind: Kind, namespace: str, name: str) -> Document:
        """Raises `NotFound` when there is none."""
        return await self.call("GET", kind.path(namespace, name), kind)

    async def list_objects(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        keep: Callable[[Document], T],
        labels: str = "",
        fields: str = "",
        accept: str = JSON,
        few: bool = False,
    ) -> list[T]:
        """``keep(object)`` of each object; namespace "" is all of them.

        Read page by page, so that no more than `PAGE` whole objects are in memory at once; not so
        when ``few`` are expected: many API servers answer from memory what has no limit, and read
        what has one from etcd, the whole namespace for the few that are selected.
        """
        limit = "" if few else str(PAGE)
        query = {"limit": limit, "labelSelector": labels, "fieldSelector": fields}
        for restart in range(RESTARTS + 1):
            if restart == RESTARTS:
                query["limit"] = ""  # pages expire faster than we read: all at once
            try:
                return await self._pages(kind, namespace, query, keep, accept)
            except Expired:
                if restart == RESTARTS:
                    raise
        raise RuntimeError("unreachable")

    async def create(self, kind: Kind, namespace: str, manifest: Manifest) -> Document:
        """Raises `Conflict` (``already_exists``) when the name is taken."""
        return await self.call("POST", kind.path(namespace), kind, body=manifest)

    async def replace(self, kind: Kind, namespace: str, name: str, manifest: Manifest) -> Document:
        """PUT; with a resourceVersion in ``manifest`` it raises `Conflict` for another one."""
        return await self.call("PUT", kind.path(namespace, name), kind, body=manifest)

    async def apply(
        self, kind: Kind, namespace: str, name: str, manifest: Manifest, sub: str = ""
    ) -> Document:
        """Server-side apply; fields that others hold are taken over.

        With a resourceVersion in ``manifest`` it raises `Conflict` for an object of another one,
        and makes one that is not there all the same.
        """
        return await self.call(
            "PATCH",
            kind.path(namespace, name, sub),
            kind,
            query={"fieldManager": names.MANAGER, "force": "true"},
            body=manifest,
            content_type=APPLY,
            verb="apply",
        )

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, grace_s: int | None = None
    ) -> None:
        """Delete that very object; gone already (or another by now) is fine."""
        body: Document = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            await self.call("DELETE", kind.path(namespace, name), kind, body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def call(
        self,
        method: str,
        path: str,
        kind: Kind | None = None,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        accept: str = JSON,
        verb: str = "",
        deadline_s: float = DEADLINE_S,
        timeout_s: float = TIMEOUT_S,
    ) -> Document:
        """One request with its repetitions; raises `ApiError` after the last."""
        url = f"{path}?{urlencode(query)}" if query else path
        headers = {"Accept": accept, "Content-Type": content_type, "Accept-Encoding": "identity"}
        counted_as = (verb or method.lower(), kind.plural if kind else path)
        until_s = self._clock.now_s() + deadline_s
        backoff_s, renewed = FIRST_BACKOFF_S, False
        while True:
            try:
                return await self._attempt(method, url, headers, body, timeout_s, counted_as)
            except ApiError as error:
                if error.status == 401 and not renewed:
                    renewed = True  # a rotated token: the new one lies in the same file
                    await self._transport.renew_credentials()
                    continue
                pause_s = backoff_s * (0.5 + self._clock.jitter())
                pause_s = max(pause_s, error.retry_after_s or 0.0)
                if error.status not in RETRIED or self._clock.now_s() + pause_s > until_s:
                    raise
                await self._clock.sleep(pause_s)
                backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    async def _attempt(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: object,
        timeout_s: float,
        counted_as: tuple[str, str],
    ) -> Document:
        try:
            async with self._slots:
                if method != "GET":
                    self._fence()
                answer = await self._transport.send(method, url, dict(headers), body, timeout_s)
        except (OSError, TimeoutError) as error:
            self._counted(*counted_as, 0)
            why = str(error) or type(error).__name__
            raise ApiError(0, "NoAnswer", f"{method} {url}: {why}") from error
        self._counted(*counted_as, answer.status)
        document = _json(answer.body, trimmed=headers["Accept"] == METADATA_ONLY)
        if 200 <= answer.status < 300 and isinstance(document, dict):
            return document
        status = answer.status if answer.status >= 300 else 502  # a cut body is no answer
        text = answer.body.decode("utf-8", "replace")
        raise from_answer(status, document, text, answer.retry_after_s)

    async def _pages(
        self,
        kind: Kind,
        namespace: str,
        query: Mapping[str, str],
        keep: Callable[[Document], T],
        accept: str,
    ) -> list[T]:
        kept: list[T] = []
        rest = {key: value for key, value in query.items() if value}
        while True:
            page = await self.call(
                "GET", kind.path(namespace), kind, query=rest, accept=accept, verb="list"
            )
            items = page.get("items") or []  # of no metadata: null
            kept += [keep(item) for item in items if isinstance(item, dict)]
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return kept
            rest["continue"] = more


def selector(pairs: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    """``a=1,b=2``: a label or field selector in which all must hold."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return ",".join(f"{key}={value}" for key, value in items)


def _json(body: bytes, *, trimmed: bool) -> object:
    try:
        return trimming.document(body) if trimmed else msgspec.json.decode(body)
    except (ValueError, msgspec.DecodeError):
        return None
