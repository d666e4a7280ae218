"""A proxy before the API server that counts requests and can make trouble: an HTTP server thread.

``trouble(method, path)`` is asked for each request: None passes it on, a number is answered in its
place, `CUT` breaks the stream in its middle, `HANG` never answers.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

CUT, HANG = "cut", "hang"
Trouble = int | str | None
REASONS = {410: "Expired", 429: "TooManyRequests", 500: "InternalError", 403: "Forbidden"}
WRITES = ("POST", "PUT", "PATCH", "DELETE")
PASSED_ON = ("authorization", "accept", "content-type")


class FaultProxy:
    """``with FaultProxy(kubeconfig, folder) as proxy:``; `kubeconfig` of it goes through it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        self._server = document["clusters"][0]["cluster"]["server"]
        self._document = document
        self.kubeconfig = folder / "proxied.kubeconfig"
        self.trouble: Callable[[str, str], Trouble] = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        self._streams: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="fault-proxy")

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def writes(self, since: int = 0) -> list[tuple[str, str]]:
        """What was written, without the lease."""
        return [one for one in self.asked[since:] if one[0] in WRITES and "/leases" not in one[1]]

    def cut_streams(self) -> None:
        """Break every watch that is open."""

        def cut() -> None:
            for stream in self._streams:
                stream.cancel()

        self._loop.call_soon_threadsafe(cut)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(_settle())
            self._loop.close()

    async def _serve(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            self._server, connector=connector, timeout=timeout, auto_decompress=False
        ) as self._session:
            app = web.Application(client_max_size=1 << 24)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._document["clusters"][0]["cluster"] = {
                "server": f"http://127.0.0.1:{runner.addresses[0][1]}"
            }
            self.kubeconfig.write_text(yaml.safe_dump(self._document))
            self._ready.set()
            await self._stop.wait()
            for stream in self._streams:
                stream.cancel()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path_qs
        self.asked.append((request.method, path))
        trouble = self.trouble(request.method, path)
        if isinstance(trouble, int):
            body = {"kind": "Status", "reason": REASONS.get(trouble, ""), "message": "trouble"}
            return web.Response(
                status=trouble, text=json.dumps(body), content_type="application/json"
            )
        if trouble == HANG:
            await self._stop.wait()
            return web.Response(status=502)
        headers = {key: request.headers[key] for key in PASSED_ON if key in request.headers}
        try:
            async with self._session.request(
                request.method, path, data=await request.read() or None, headers=headers
            ) as answer:
                try:
                    return await self._pass_on(request, answer, trouble)
                except (aiohttp.ClientError, asyncio.CancelledError):
                    _abort(answer.connection and answer.connection.transport)
                    raise
        except aiohttp.ClientError:
            _abort(request.transport)
            return web.Response(status=502)

    async def _pass_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, trouble: Trouble
    ) -> web.StreamResponse:
        kind = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
        if "watch=true" not in request.query_string and trouble is None:
            return web.Response(status=answer.status, body=await answer.read(), headers=kind)
        response = web.StreamResponse(status=answer.status, headers=kind)
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async for chunk in answer.content.iter_any():
                await response.write(chunk[: len(chunk) // 2] if trouble == CUT else chunk)
                if trouble == CUT:
                    break
            else:
                return response
        except asyncio.CancelledError:
            pass
        finally:
            self._streams.discard(task)
        _abort(answer.connection and answer.connection.transport)
        _abort(request.transport)
        return response


def _abort(transport: asyncio.Transport | None) -> None:
    """End it at once: a TLS connection that is closed lives on until its peer agrees."""
    if transport is not None:
        transport.abort()


async def _settle() -> None:
    """What still runs ends, and transports that were closed get the turns in which they go."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for _ in range(5):
        await asyncio.sleep(0)
