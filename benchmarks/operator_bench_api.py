"""A client of the API server for benchmarks: JSON requests, and watches that decode only what is
looked at.

Knows no Lamella.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from http import HTTPStatus

import aiohttp
import msgspec


class Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    uid: str = ""
    namespace: str = ""
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}


class Container(msgspec.Struct):
    name: str = ""


class Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    replicas: int | None = None
    containers: list[Container] = []


class Condition(msgspec.Struct):
    type: str
    status: str
    reason: str = ""


class Status(msgspec.Struct):
    phase: str = ""
    conditions: list[Condition] = []
    reason: str = ""


class Thing(msgspec.Struct):
    """What is looked at of any object."""

    metadata: Metadata
    spec: Spec = msgspec.field(default_factory=Spec)
    status: Status = msgspec.field(default_factory=Status)


class Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class Page(msgspec.Struct):
    metadata: Metadata
    items: list[Thing] = []


class Refused(Exception):
    """The API server's answer was no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class Api:
    """JSON requests and watches under one token."""

    def __init__(self, url: str, authority: str, token: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=ssl.create_default_context(cafile=authority)
            ),
            headers={"Authorization": f"Bearer {token}"},
            read_bufsize=1 << 20,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=None),
        )

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: object = None, *, kind: str = "application/json"
    ) -> bytes:
        """One request; raises `Refused`."""
        if method == "PATCH":
            kind = "application/merge-patch+json"
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": kind}
        async with self._session.request(
            method, self._url + path, data=data, headers=headers
        ) as answer:
            found = await answer.read()
            if answer.status >= HTTPStatus.BAD_REQUEST:
                raise Refused(answer.status, found.decode(errors="replace"))
            return found

    async def watch(self, path: str) -> AsyncIterator[tuple[str, Thing]]:
        """All that is there as ADDED, then what happens, for ever."""
        page = msgspec.json.decode(await self.request("GET", path), type=Page)
        for thing in page.items:
            yield "ADDED", thing
        version = page.metadata.resource_version
        while True:
            url = f"{self._url}{path}?watch=1&resourceVersion={version}&timeoutSeconds=3600"
            async with self._session.get(url) as answer:
                async for line in answer.content:
                    event = msgspec.json.decode(line, type=Event)
                    if event.type in ("BOOKMARK", "ERROR"):
                        raise RuntimeError(f"watch of {path}: {line[:300]!r}")
                    thing = msgspec.json.decode(event.object, type=Thing)
                    version = thing.metadata.resource_version
                    yield event.type, thing
