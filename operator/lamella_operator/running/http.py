"""/healthz, /readyz and /metrics. Knows no reason: who is asked gives "" or words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from lamella_contract import names

Probe = Callable[[], str]
"""Why the answer is no; "" when it is yes."""


@dataclass(frozen=True, slots=True)
class Probes:
    """``alive`` false gets the process restarted; ``ready`` false is shown and nothing else."""

    alive: Probe
    ready: Probe
    metrics: Callable[[], bytes]


async def serve(probes: Probes, port: int, host: str = "") -> tuple[web.AppRunner, int]:
    """Starts the server; the runner (whose ``cleanup`` ends it) and the port that it listens on."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(probes.alive())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(probes.ready())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=probes.metrics(), headers={"Content-Type": _PROMETHEUS})

    app = web.Application()
    app.router.add_get(names.PATH_HEALTH, healthz)
    app.router.add_get(names.PATH_READY, readyz)
    app.router.add_get(names.PATH_METRICS, metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host or None, port)
    await site.start()
    return runner, int(runner.addresses[0][1])


_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def _answer(problem: str) -> web.Response:
    return web.Response(text=problem or "ok", status=503 if problem else 200)
