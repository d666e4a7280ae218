"""The watches on kopf itself, against a twin of the API server: all news is told, and kopf is given
no object, for which it would begin a worker and keep a memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lamella_contract import names
from lamella_operator.reconciling.kinds import POD, WATCHED, Kind
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.running.ledger import Ledger
from lamella_operator.running.watches import Watches

OTHERS = (
    Kind("Namespace", "v1", "namespaces"),
    Kind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions"),
)


def pod(number: int, version: int) -> dict[str, Any]:
    labels = {names.LABEL_MODEL: "m", names.LABEL_MODEL_UID: "model"}
    meta = {"name": f"p{number}", "namespace": "ai", "uid": f"pod-{number}", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta | {"resourceVersion": f"{version}"}}


class Twin:
    """One page of a pod, then what a watch of pods says; nothing of any other kind."""

    def __init__(self, page: list[Any], events: list[tuple[str, Any]]) -> None:
        self._page, self._events = page, events
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            return web.json_response({"groups": self._groups()})
        kinds = [kind for kind in (*WATCHED, *OTHERS) if kind.prefix == request.path]
        if kinds:
            return web.json_response({"resources": [self._resource(kind) for kind in kinds]})
        pods = request.path.endswith("/pods")
        if request.query.get("watch") == "true":
            return await self._watch(request, self._events if pods else [])
        items = self._page if pods else []
        meta = {"resourceVersion": "10"}
        listing = {"apiVersion": "v1", "kind": "List", "metadata": meta, "items": items}
        return web.json_response(listing)

    def _groups(self) -> list[dict[str, Any]]:
        pairs = {kind.api_version for kind in (*WATCHED, *OTHERS) if "/" in kind.api_version}
        found = []
        for group, version in (pair.split("/") for pair in pairs):
            one = {"version": version}
            found.append({"name": group, "versions": [one], "preferredVersion": one})
        return found

    def _resource(self, kind: Kind) -> dict[str, Any]:
        verbs = ["get", "list", "watch"]
        named = {"name": kind.plural, "singularName": kind.kind.lower(), "kind": kind.kind}
        return {**named, "namespaced": kind not in OTHERS, "verbs": verbs}

    async def _watch(self, request: web.Request, events: list[Any]) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        for word, document in events:
            await stream.write(json.dumps({"type": word, "object": document}).encode() + b"\n")
        await asyncio.Event().wait()  # until the server ends
        return stream


@contextlib.asynccontextmanager
async def serving(twin: Twin) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/{path:.*}", twin.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def seen_by(twin: Twin, last: tuple[str, bool]) -> tuple[list[Any], list[str]]:
    """What was told up to (version, whether gone), and kopf's workers at that time."""
    told: list[tuple[ModelKey, str, str, bool]] = []
    over = asyncio.Event()

    def wake(key: ModelKey, uid: str, version: str, *, gone: bool) -> None:
        told.append((key, uid, version, gone))
        if (version, gone) == last:
            over.set()

    async with serving(twin) as url:

        async def open_session(**more: Any) -> tuple[str, aiohttp.ClientSession]:
            return url, aiohttp.ClientSession(**more)

        watch = asyncio.create_task(Watches(Ledger(), wake, open_session).watch("ai"))
        waiting = asyncio.create_task(asyncio.wait_for(over.wait(), 30))
        await asyncio.wait({watch, waiting}, return_when=asyncio.FIRST_COMPLETED)
        workers = [t.get_name() for t in asyncio.all_tasks() if "worker for" in t.get_name()]
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        await waiting
    return told, workers


@pytest.mark.parametrize("listed", [0, 3], ids=["none was there", "three were there"])
def test_news_is_told_and_kopf_is_given_no_object(listed: int) -> None:
    events = [("ADDED", pod(7, 11)), ("MODIFIED", pod(7, 12)), ("DELETED", pod(7, 13))]
    # The last is told when kopf has taken what came before.
    twin = Twin([pod(n, n) for n in range(listed)], [*events, ("ADDED", pod(8, 14))])
    told, workers = asyncio.run(seen_by(twin, ("14", False)))
    key = ModelKey("ai", "m", "model")
    before = [(key, f"pod-{n}", f"{n}", False) for n in range(listed)]
    after = [(key, "pod-7", version, gone) for version, gone in (("11", 0), ("12", 0), ("13", 1))]
    assert told == [*before, *after, (key, "pod-8", "14", False)]
    assert workers == []
    (first, second) = (
        path for path in twin.asked if path.startswith(f"{POD.prefix}/namespaces/ai/pods")
    )
    assert "watch=true" in second
    assert "resourceVersion=10" in second
    assert "watch" not in first
