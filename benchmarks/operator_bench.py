"""What a thousand models cost the operator: `python -m benchmarks.operator_bench`.

A real etcd, kube-apiserver and kube-controller-manager (garbage collector, namespaces, service
accounts, Deployments, ReplicaSets), this process as scheduler and kubelets, and the real operator
as a process of its own that speaks with just the permissions that the chart gives it:

1. apply all models, and wait until all are Ready;
2. watch a quiet minute: nothing may be written;
3. lose pods, half deleted and half evicted: how soon is each one's replacement created?
4. restart the operator: how soon has it looked at everything, and does it write anything?
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvloop
from benchmarks import operator_bench_world as world
from benchmarks.fake_kubelet import FakeKubelet, Pod
from benchmarks.operator_bench_api import Api, Thing

from lamella_contract import names

K = TypeVar("K")

SETTLED_LIMIT_S = 180.0  # to come to rest in


@dataclass(slots=True)
class Seen:
    """What the watches have told: which models are Ready, and when each pod came."""

    ready: set[str] = field(default_factory=set)
    created_s: dict[tuple[str, str, str], float] = field(default_factory=dict)  # by slot, the last

    def model(self, kind: str, thing: Thing) -> None:
        true = {each.type for each in thing.status.conditions if each.status == "True"}
        if kind != "DELETED" and "Ready" in true:
            self.ready.add(thing.metadata.uid)
        else:
            self.ready.discard(thing.metadata.uid)

    def pod(self, kind: str, thing: Thing) -> None:
        labels = thing.metadata.labels
        if kind == "ADDED" and labels.get(names.LABEL_ROLE) == names.ROLE_STAGE:
            slot = (
                labels[names.LABEL_MODEL_UID],
                labels[names.LABEL_REPLICA],
                labels[names.LABEL_STAGE],
            )
            self.created_s[slot] = time.monotonic()


@dataclass(slots=True)
class Bench:
    """One run; ``rows`` is what it has found, to be printed at the end."""

    options: argparse.Namespace
    plane: Any
    api: Api
    operator: world.Operator
    kubelet: FakeKubelet
    seen: Seen
    rows: list[tuple[str, str]] = field(default_factory=list)

    def found(self, what: str, value: str) -> None:
        self.rows.append((what, value))
        print(f"{what:<52} {value}", flush=True)

    async def converge(self) -> None:
        """Step 1."""
        start, before = time.monotonic(), world.others_cpu_s(self.plane)
        resting, served = self.operator.cpu_s(), await world.served(self.api)
        await world.apply_models(self.api, self.options)
        self.found("applied", f"{time.monotonic() - start:.1f} s")
        await self._all_ready("converging")
        took = time.monotonic() - start
        self.found("first apply to all Ready", f"{took:.1f} s")
        own = self.operator.cpu_s() - resting
        others = _difference(world.others_cpu_s(self.plane), before)
        used = own + sum(others.values())
        told = ", ".join(f"{name} {each:.0f}" for name, each in others.items())
        self.found("CPU seconds in it", f"{used:.0f}: operator {own:.0f}, {told}")
        calls = await self.operator.calls()
        answered = _difference(await world.served(self.api), served)
        asked = sum(calls.values()), sum(answered.values())
        self.found("requests in it", f"{asked[1]:,.0f}, of these the operator's {asked[0]:,.0f}")
        await self._settled()
        calls = await self.operator.calls()
        self.found("requests until then", f"{sum(calls.values()):,.0f} ({_by_verb(calls)})")
        rounds = (await self.operator.reconciles()).items()
        self.found("reconciles", ", ".join(f"{count:,.0f} {result}" for result, count in rounds))
        self.found("operator's CPU until then", f"{self.operator.cpu_s():.1f} s")
        self.found("operator's peak memory", f"{self.operator.peak_mb():.0f} MB")

    async def quiet(self) -> None:
        """Step 2."""
        before, calls = await world.versions(self.api), await self.operator.calls()
        cpu, rounds = self.operator.cpu_s(), await self.operator.reconciles()
        await asyncio.sleep(self.options.quiet)
        after, then = await world.versions(self.api), await self.operator.calls()
        changed = {key for key in before | after if before.get(key) != after.get(key)}
        self.found(f"objects changed in {self.options.quiet:.0f} quiet seconds", str(len(changed)))
        fresh = _difference(then, calls)
        self.found("requests in them", f"{sum(fresh.values()):,.0f} ({_by_verb(fresh)})")
        fresh_rounds = sum((await self.operator.reconciles()).values()) - sum(rounds.values())
        self.found("reconciles in them", f"{fresh_rounds:,.0f}")
        self.found("operator's CPU in them", f"{self.operator.cpu_s() - cpu:.2f} s")
        for key in sorted(changed)[:5]:
            print(f"    {key}: {before.get(key)} -> {after.get(key)}")

    async def lose(self) -> None:
        """Step 3."""
        chance = random.Random(self.options.seed)
        stages = [pod for pod in self.kubelet.pods.values() if pod.role == names.ROLE_STAGE]
        lost = chance.sample(stages, min(self.options.losses, len(stages)))
        took = await asyncio.gather(*(self._lose(n, pod) for n, pod in enumerate(lost)))
        took.sort()
        p50, p99 = statistics.median(took), took[min(len(took) - 1, int(len(took) * 0.99))]
        self.found(f"{len(took)} losses, to the replacement: p50", f"{p50 * 1000:.0f} ms")
        self.found(f"{len(took)} losses, to the replacement: p99", f"{p99 * 1000:.0f} ms")
        self.found("the slowest", f"{took[-1] * 1000:.0f} ms")
        await self._all_ready("recovering")
        await self._settled()

    async def _lose(self, number: int, pod: Pod) -> float:
        await asyncio.sleep(number * self.options.loss_every)
        slot = (*pod.ring, str(pod.stage))
        before, start = self.seen.created_s[slot], time.monotonic()
        if number % 2:
            await self.kubelet.evict(pod)
        else:
            await self.api.request("DELETE", pod.path, {"gracePeriodSeconds": 0})
        await _until(lambda: self.seen.created_s[slot] != before, f"a replacement of {pod.name}")
        return self.seen.created_s[slot] - start

    async def restart(self) -> None:
        """Step 4."""
        before = await world.versions(self.api)
        self.operator.stop()
        start = time.monotonic()
        self.operator.start()
        await self.operator.until_ready()
        self.found("restart to ready", f"{time.monotonic() - start:.1f} s")
        await self.operator.until_reconciled(self.options.models)
        took = time.monotonic() - start
        self.found("restart to nothing left to do", f"{took:.1f} s")
        await self._settled()
        after, calls = await world.versions(self.api), await self.operator.calls()
        changed = {key for key in before | after if before.get(key) != after.get(key)}
        self.found("objects changed by the restart", str(len(changed)))
        self.found("requests after it", f"{sum(calls.values()):,.0f} ({_by_verb(calls)})")
        self.found("operator's peak memory after it", f"{self.operator.peak_mb():.0f} MB")

    async def _all_ready(self, doing: str) -> None:
        start = shown = time.monotonic()
        while len(self.seen.ready) < self.options.models:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if now - shown > 10:
                shown = now
                text = f"{len(self.seen.ready)}/{self.options.models} Ready"
                peak = f"{self.operator.peak_mb():.0f} MB"
                print(f"  {doing}: {text}, {peak}", file=sys.stderr, flush=True)
            if now - start > self.options.limit:
                raise TimeoutError(f"{doing}: not all Ready in {self.options.limit:.0f} s")

    async def _settled(self) -> None:
        """Until nothing is written or looked at; the quiet minute shows what never ends."""
        seen, since = (-1.0, -1.0), time.monotonic()
        end = since + SETTLED_LIMIT_S
        while time.monotonic() - since < self.options.settled and time.monotonic() < end:
            rounds = sum((await self.operator.reconciles()).values())
            now = world.writes(await self.operator.calls()), rounds
            if now != seen:
                seen, since = now, time.monotonic()
            await asyncio.sleep(0.5)


async def _until(condition: Callable[[], bool], what: str, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit_s:.0f} s: {what}")
        await asyncio.sleep(0.005)


def _difference(after: Mapping[K, float], before: Mapping[K, float]) -> dict[K, float]:
    return {key: value - before.get(key, 0) for key, value in after.items()}


def _by_verb(calls: Mapping[tuple[str, str], float]) -> str:
    verbs: dict[str, float] = {}
    for (verb, _), count in calls.items():
        verbs[verb] = verbs.get(verb, 0) + count
    told = sorted(verbs.items(), key=lambda item: -item[1])
    return ", ".join(f"{verb} {count:,.0f}" for verb, count in told if count)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument(
        "--namespaces", type=int, default=50, help="that the models are spread over"
    )
    parser.add_argument("--losses", type=int, default=100)
    parser.add_argument("--loss-every", type=float, default=0.2, help="seconds")
    parser.add_argument("--quiet", type=float, default=60, help="seconds to watch for writes")
    parser.add_argument(
        "--settled",
        type=float,
        default=10,
        help="seconds without a write or a reconcile are an end",
    )
    parser.add_argument("--limit", type=float, default=900, help="seconds to converge")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="for logs; default: one that is removed")
    return parser.parse_args()


async def _run(options: argparse.Namespace, folder: Path) -> None:
    plane = world.control_plane(folder)
    try:
        plane.start()
        kubeconfig = world.prepare(plane, options)
        api = Api(plane.url, str(plane.authority), world.admin_token())
        seen = Seen()
        kubelet = FakeKubelet(api, options.stages, world.profile_message(), seen.pod)
        async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
            watching = group.create_task(world.watch_models(api, seen.model))
            running = group.create_task(kubelet.run())
            operator = world.Operator(folder, kubeconfig, session)
            bench = Bench(options, plane, api, operator, kubelet, seen)
            try:
                operator.start()
                await operator.until_ready()
                bench.found(
                    "machine",
                    f"{os.cpu_count()} cores, {options.models} models of "
                    f"{options.stages} stages in {options.namespaces} namespaces",
                )
                bench.found("operator's memory at rest", f"{operator.peak_mb():.0f} MB")
                await bench.converge()
                await bench.quiet()
                await bench.lose()
                await bench.restart()
            finally:
                operator.stop()
                watching.cancel()
                running.cancel()
                await api.close()
    finally:
        plane.close()


def main() -> int:
    """Exit status 0 when it ran to its end, whatever the figures."""
    options = _options()
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamella-bench-")))
        folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        uvloop.run(_run(options, folder.resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
