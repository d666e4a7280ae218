"""The only module that imports kopf: it watches, and tells which model to look at.

kopf is a wake-up source and nothing else. Handlers are ``on.event`` on our kinds, selected by our
label on the server; there is no index, timer, daemon, finalizer or change detection, nothing is
written, and no object is kept: only metadata is asked for. `kopf.operator` is not used, because it
cancels every task of the loop when it ends; its parts are run here, one set per namespace.

kopf lists, watches, goes on where a stream broke, and begins anew after a 410. What a list or a
stream says of an object is read on its way to kopf, which sees a bookmark of that version in its
place: a task, a queue and a handler's arguments for each object were a quarter of all the
operator's work, and most of its memory when a thousand models start.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import kopf

from lamella_operator.reconciling import trimming
from lamella_operator.reconciling.client import JSON, METADATA_ONLY
from lamella_operator.reconciling.kinds import MODEL, WATCHED, Kind
from lamella_operator.running.ledger import Ledger
from lamella_operator.running.resync import label_selector, listed

log = logging.getLogger(__name__)

SERVER_TIMEOUT_S = 290  # after which the server ends a stream, and it goes on from where it was
CLIENT_TIMEOUT_S = 320.0  # after which we end it, if the server did not
CONNECT_S = 5.0
REQUEST_S = 30.0
RETRIES_S = (0.5, 1, 2, 4, 8)  # pauses before a watch gives up and is started anew
CHUNK = 200  # objects of one page of the first LIST
ENDING_S = 10.0  # for the tasks of a watch that is being ended
METADATA_OF_ONE = f"{JSON};as=PartialObjectMetadata;v=v1;g=meta.k8s.io,{JSON}"

Wake = Callable[..., None]
"""Told of each news of an object: its model's key, its UID and version, and whether it is gone."""

OpenSession = Callable[..., Awaitable[tuple[str, aiohttp.ClientSession]]]
"""A server's address and a session with it; takes arguments of `aiohttp.ClientSession`."""


class Watches:
    """Watches scopes; ``wake`` is told of each model of which something happened."""

    def __init__(
        self,
        ledger: Ledger,
        wake: Wake,
        open_session: OpenSession,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._wake = wake
        self._open_session = open_session
        self._started = started
        self.last_event_s: dict[str, float] = {}

    async def watch(self, scope: str) -> None:
        """Watches until something fails (raised) or until cancelled."""
        family = _found_family()
        where: dict[str, Any] = {"namespaces": [scope]} if scope else {"clusterwide": True}
        sessions: list[aiohttp.ClientSession] = []
        tasks = await kopf.spawn_tasks(
            registry=self._registry(scope, sessions),
            settings=_settings(),
            standalone=True,
            identity="lamella-operator",  # type: ignore[arg-type]
            **where,
        )
        self._started()  # kopf took the signals; they are the entry point's
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _end({*tasks, *family} - {asyncio.current_task()})
            for session in sessions:
                await session.close()

    def _registry(self, scope: str, sessions: list[aiohttp.ClientSession]) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        for kind in WATCHED:
            kopf.on.event(*_resource(kind), registry=registry)(_never)

        async def login(**_: Any) -> kopf.AiohttpSession:
            trace = aiohttp.TraceConfig()
            trace.on_request_start.append(_ask_for_metadata)
            server, session = await self._open_session(
                trace_configs=[trace], response_class=self._answers(scope)
            )
            sessions.append(session)
            return kopf.AiohttpSession(server=server, aiohttp_session=session)

        kopf.on.login(registry=registry)(login)
        return registry

    def _answers(self, scope: str) -> type[aiohttp.ClientResponse]:
        """The class of all answers in ``scope``: what they say of objects is read here."""

        class Answer(_Answer):
            def seen(self, kind: Kind, document: Any, gone: bool) -> None:
                outer._seen(scope, kind, document, gone)

        outer = self
        return Answer

    def _seen(self, scope: str, kind: Kind, document: Any, gone: bool) -> None:
        one, now_s = listed(kind, document), time.monotonic()
        news = self._ledger.delivered(scope, kind.kind, one, now_s, gone=gone)
        self.last_event_s[scope] = now_s
        if news and one.key is not None:
            self._wake(one.key, one.uid, one.version, gone=gone)


async def _ask_for_metadata(
    session: object, context: object, request: aiohttp.TraceRequestStartParams
) -> None:
    """Whole objects are many times as large, and nobody here looks at them."""
    watching = request.url.query.get("watch") == "true"
    request.headers["Accept"] = METADATA_OF_ONE if watching else METADATA_ONLY


async def _never(**_: Any) -> None:
    """kopf watches what there is a handler for; no object reaches it."""


class _Answer(aiohttp.ClientResponse):
    """Objects are told to `seen`; what is left for kopf are errors, bookmarks and empty lists."""

    def seen(self, kind: Kind, document: Any, gone: bool) -> None:
        raise NotImplementedError

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        await super().start(connection)
        kind = _kind_of(self.url.path)
        if kind is not None:
            told = functools.partial(self.seen, kind)
            self.content = trimming.Lines(self.content, told)  # type: ignore[assignment]
        return self

    async def json(self, **how: Any) -> Any:
        found, kind = trimming.document(await self.read()), _kind_of(self.url.path)
        if kind is None or not isinstance(found, dict) or "items" not in found:
            return found
        for document in found["items"]:
            self.seen(kind, document, False)
        return {**found, "items": []}


def _kind_of(path: str) -> Kind | None:
    """The kind whose collection is at ``path``, if it is one that is watched."""
    return next((kind for kind in WATCHED if _is_collection(kind, path)), None)


def _is_collection(kind: Kind, path: str) -> bool:
    before, _, plural = path.rpartition("/")
    inside = before.startswith(f"{kind.prefix}/namespaces/")
    return plural == kind.plural and (inside or before == kind.prefix)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.process.ultimate_exiting_timeout = None  # it would kill this whole process
    settings.networking.request_timeout = REQUEST_S
    settings.networking.connect_timeout = CONNECT_S
    settings.networking.error_backoffs = RETRIES_S
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.client_timeout = CLIENT_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_S
    settings.watching.chunk_size = CHUNK
    for kind in WATCHED:
        if kind is not MODEL:
            settings.watching.label_selectors[_resource(kind)] = label_selector(kind)
    return settings


def _resource(kind: Kind) -> tuple[str, str, str]:
    group, _, version = kind.api_version.rpartition("/")
    return group, version, kind.plural


_family: contextvars.ContextVar[weakref.WeakSet[asyncio.Task[Any]] | None] = contextvars.ContextVar(
    "family", default=None
)


def _found_family() -> weakref.WeakSet[asyncio.Task[Any]]:
    """From here on this task's offspring is written down, to the last generation.

    kopf leaves some of its tasks behind when it fails, and relies on ending all of the loop's.
    """
    asyncio.get_running_loop().set_task_factory(_born)
    family: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
    _family.set(family)
    return family


def _born(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **more)
    family = _family.get()
    if family is not None:
        family.add(task)
    return task


async def _end(tasks: Any) -> None:
    """Cancel a watch's tasks and see them end; a second time for those that are slow."""
    if not tasks:
        return
    for _ in range(2):
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=ENDING_S)
        if not left:
            break
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # told by whoever waited for the first; here only taken note of
