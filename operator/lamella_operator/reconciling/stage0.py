"""What a pipeline's stage 0 says of its ring, asked over HTTP at /status.

Asked only while a pipeline is not ready, and never waited for longer than a second: a stage 0
that does not answer is simply not heard. Nothing here raises on an odd answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import aiohttp

from lamella_contract import names
from lamella_operator.reconciling.parse import items, number, text
from lamella_operator.views import MemberView, PodView, RingView

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0
MOST_BYTES = 256 * 1024  # of an answer; a ring of 64 stages takes 10 KB


class Ask(Protocol):
    """GET of http://``host``:``port`` ``path``: its JSON, None when there is no answer."""

    async def __call__(self, host: str, port: int, path: str) -> object: ...


class HttpAsk:
    """The real one."""

    def __init__(self, parallel: int = 32) -> None:
        self._slots = asyncio.Semaphore(parallel)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, host: str, port: int, path: str) -> object:
        if self._session is None:  # made here, for it belongs to the loop that runs
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False)
        where = f"[{host}]" if ":" in host else host
        try:
            async with self._slots, self._session.get(f"http://{where}:{port}{path}") as answer:
                return json.loads(await answer.content.read(MOST_BYTES))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def to_ask(pods: Sequence[PodView]) -> dict[int, PodView]:
    """Stage 0 of each replica that is not all ready, where there is one to ask."""
    heads: dict[int, PodView] = {}
    unready: set[int] = set()
    for pod in pods:
        if not pod.ready or pod.deleted_s is not None:
            unready.add(pod.replica)
        newer = pod.replica not in heads or pod.created_s >= heads[pod.replica].created_s
        if pod.stage == 0 and pod.running and pod.ip and pod.deleted_s is None and newer:
            heads[pod.replica] = pod
    return {replica: pod for replica, pod in heads.items() if replica in unready}


async def rings(ask: Ask, pods: Sequence[PodView]) -> dict[int, RingView]:
    """What each stage 0 that was worth asking said, by replica."""
    heads = to_ask(pods)
    answers = await asyncio.gather(
        *(ask(pod.ip, names.PORT_PROBES, names.PATH_STATUS) for pod in heads.values())
    )
    found = {replica: ring(answer) for replica, answer in zip(heads, answers, strict=True)}
    return {replica: view for replica, view in found.items() if view is not None}


def ring(answer: object) -> RingView | None:
    """An answer of /status; None for what is none."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("ready"), bool):
        return None
    lost = answer.get("lost")
    return RingView(
        ready=answer["ready"],
        reason=text(answer, "reason"),
        lost=lost if isinstance(lost, int) and not isinstance(lost, bool) else None,
        members=tuple(_member(one) for one in items(answer, "members")),
        kv_tokens=number(answer, "kv_tokens"),
        live_requests=number(answer, "live_requests"),
        lost_uid=text(answer, "lost_pod"),
    )


def _member(one: Mapping[str, Any]) -> MemberView:
    speed = one.get("bytes_per_s")
    return MemberView(
        stage=number(one, "stage"),
        state=text(one, "state"),
        bytes_done=number(one, "bytes_done"),
        bytes_total=number(one, "bytes_total"),
        bytes_per_s=float(speed) if isinstance(speed, int | float) else 0.0,
        error=text(one, "error"),
    )
