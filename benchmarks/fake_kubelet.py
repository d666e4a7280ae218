"""A scheduler and a hundred kubelets that only pretend, in one object.

Every pod is bound at once and runs; an inspector ends with the model's profile as its termination
message; the first stage of a pipeline turns ready when all its stages run, and answers /status at
its address. Knows of Lamella only labels, ports and what a stage 0 says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from benchmarks import fake_kubelet_said as said
from benchmarks.operator_bench_api import Api, Refused, Thing

from lamella_contract import names

NODES = 100
PARALLEL = 24  # requests at a time
LOOPBACK_NET = 127


@dataclass(slots=True)
class Pod:
    """A pod as the kubelet knows it; ``ring`` is the pipeline that a stage's pod belongs to."""

    namespace: str
    name: str
    uid: str
    role: str
    stage: int
    ring: tuple[str, str]
    ip: str
    node: str
    container: str
    running: bool = False
    ready: bool = False
    gone: bool = False

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    def status(self) -> dict[str, Any]:
        """Of a pod that runs."""
        return said.running(self.container, self.ip, self.ready)


OnPod = Callable[[str, Thing], None]
"""Told of every event of a pod, at once."""


@dataclass(slots=True)
class FakeKubelet:
    """``profile_message`` is what an inspector says; ``stages`` make a whole pipeline."""

    api: Api
    stages: int
    profile_message: str
    on_pod: OnPod = lambda kind, thing: None
    pods: dict[str, Pod] = field(default_factory=dict)  # by UID
    rings: dict[tuple[str, str], dict[int, Pod]] = field(default_factory=dict)
    by_ip: dict[str, Pod] = field(default_factory=dict)
    asked: int = 0  # times that a stage 0 was asked for its status
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _count: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        await self._make_nodes()
        server = await asyncio.start_server(self._answer, "0.0.0.0", names.PORT_PROBES)
        async with server, asyncio.TaskGroup() as group:
            group.create_task(self._watch_pods())

    async def evict(self, pod: Pod) -> None:
        """The node's kubelet gives the pod up: Failed, and its object stays."""
        self._leave(pod)
        status = said.evicted(pod.container)
        await self.api.request("PATCH", f"{pod.path}/status", {"status": status})

    # -- pods ------------------------------------------------------------------------------------

    async def _watch_pods(self) -> None:
        async for kind, thing in self.api.watch("/api/v1/pods"):
            self.on_pod(kind, thing)
            uid = thing.metadata.uid
            if kind == "DELETED":
                gone = self.pods.pop(uid, None)
                if gone is not None:
                    self._leave(gone)
            elif uid not in self.pods:
                pod = self.pods[uid] = self._adopt(thing)
                self._do(self._start(pod))
            elif thing.metadata.deletion_timestamp and not self.pods[uid].gone:
                self._leave(self.pods[uid])
                self._do(self._end(self.pods[uid]))

    def _adopt(self, thing: Thing) -> Pod:
        labels = thing.metadata.labels
        self._count += 1
        number = self._count
        ip = f"{LOOPBACK_NET}.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        ring = labels.get(names.LABEL_MODEL_UID, ""), labels.get(names.LABEL_REPLICA, "")
        pod = Pod(
            thing.metadata.namespace,
            thing.metadata.name,
            thing.metadata.uid,
            labels.get(names.LABEL_ROLE, ""),
            int(labels.get(names.LABEL_STAGE, "0")),
            ring,
            ip,
            f"fake-{number % NODES}",
            thing.spec.containers[0].name,
        )
        self.by_ip[ip] = pod
        return pod

    async def _start(self, pod: Pod) -> None:
        target = {"kind": "Node", "name": pod.node}
        await self.api.request(
            "POST", f"{pod.path}/binding", {"metadata": {"name": pod.name}, "target": target}
        )
        if pod.role == names.ROLE_INSPECTOR:
            await self._say(pod, said.finished(pod.container, pod.ip, self.profile_message))
            return
        pod.running = True
        pod.ready = pod.role != names.ROLE_STAGE or pod.stage > 0
        ring = self.rings.setdefault(pod.ring, {}) if pod.role == names.ROLE_STAGE else {}
        ring[pod.stage] = pod
        head = ring.get(0)
        whole = len(ring) == self.stages
        if head is pod and whole:
            pod.ready = True
        await self._say(pod, pod.status())
        if head is not None and not head.ready and whole:
            head.ready = True
            await self._say(head, head.status())

    async def _end(self, pod: Pod) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
        await self.api.request("DELETE", pod.path, body)

    async def _say(self, pod: Pod, status: Mapping[str, Any]) -> None:
        if not pod.gone:
            await self.api.request("PATCH", f"{pod.path}/status", {"status": status})

    def _leave(self, pod: Pod) -> None:
        """The pod runs no more; its pipeline's stage 0 sees that within a second on a cluster."""
        pod.gone = True
        self.by_ip.pop(pod.ip, None)
        ring = self.rings.get(pod.ring, {})
        if ring.get(pod.stage) is not pod:
            return
        del ring[pod.stage]
        head = ring.get(0)
        if head is not None and head.ready:
            head.ready = False
            self._do(self._say(head, head.status()))

    # -- stage 0's /status -------------------------------------------------------------------------

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            pod = self.by_ip.get(writer.get_extra_info("sockname")[0])
            self.asked += 1
            code, body = (404, b"") if pod is None else (200, json.dumps(self._ring(pod)).encode())
            writer.write(
                b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%s" % (code, len(body), body)
            )
            await writer.drain()
        writer.close()

    def _ring(self, head: Pod) -> dict[str, Any]:
        ring = self.rings.get(head.ring, {})
        missing = [stage for stage in range(self.stages) if stage not in ring]
        members = [
            {
                "stage": stage,
                "state": "absent" if stage in missing else "ready",
                "bytes_done": 1 << 30,
                "bytes_total": 1 << 30,
                "bytes_per_s": 0.0,
                "error": "",
            }
            for stage in range(self.stages)
        ]
        return {
            "stage": 0,
            "stages": self.stages,
            "state": "serving" if head.ready else "joining",
            "ready": head.ready,
            "reason": "" if head.ready else f"waiting for stages {missing}",
            "members": members,
            "lost": None,
            "draining": False,
            "live_requests": 0,
            "kv_tokens": 100_000,
        }

    # -- the rest --------------------------------------------------------------------------------

    async def _make_nodes(self) -> None:
        for number in range(NODES):
            name = f"fake-{number}"
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            with contextlib.suppress(Refused):
                await self.api.request("POST", "/api/v1/nodes", node)
            status = {"conditions": [said.condition("Ready", True)]}
            await self.api.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": status})

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        """What was deleted in the meantime needs no answer."""
        async with self._slots:
            try:
                await work
            except Refused as error:
                if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                    raise
