"""What the operator's benchmark runs in: control plane, namespaces, models, the operator's process.

Knows how they are started and read, not what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import msgspec
from benchmarks.operator_bench_api import Api, Page, Thing
from prometheus_client.parser import text_string_to_metric_families

from lamella.machine import free_ports
from lamella_contract import names
from lamella_contract import profile_message as messages
from lamella_contract.profile import LayerProfile, ModelProfile

ROOT = Path(__file__).parents[1]
NAMESPACE = "lamella-system"
CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "deployment-controller",
    "replicaset-controller",
)
APPLYING = 16  # at a time
READS = {"get", "list", "watch"}
WATCHED = (
    "/apis/lamella.dev/v1alpha1/shardedmodels",
    "/api/v1/pods",
    "/api/v1/services",
    "/api/v1/secrets",
    "/api/v1/events",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/controllerrevisions",
    "/apis/policy/v1/poddisruptionbudgets",
    "/apis/networking.k8s.io/v1/networkpolicies",
)

Calls = dict[tuple[str, str], float]
"""Requests by (verb, resource)."""


def _load(name: str) -> ModuleType:
    """A file of tests/kube as ``kube_<name>``, as its own tests load it."""
    path = ROOT / "tests" / "kube" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"kube_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(ROOT / "tests" / "common"))  # as tests/conftest.py does
_processes = _load("processes")
_planes = _load("control_plane")


def control_plane(folder: Path) -> Any:
    """Not started yet; the programs are found or built once."""
    found = subprocess.run(
        [str(ROOT / "scripts" / "control-plane")], capture_output=True, text=True, check=True
    )
    return _planes.ControlPlane(Path(found.stdout.strip()), folder, controllers=CONTROLLERS)


def admin_token() -> str:
    return str(_planes.ADMIN_TOKEN)


def prepare(plane: Any, options: argparse.Namespace) -> Path:
    """Namespaces with their service accounts; the kubeconfig of the operator's own account."""
    spaces = [NAMESPACE, *(space(number) for number in range(options.namespaces))]
    for name in spaces:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        plane.api.request("POST", "/api/v1/namespaces", body)
    for name in spaces:
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        _processes.wait_for(lambda account=account: plane.api.exists(account), account)
    from lamella_operator.reconciling.permissions import PERMISSIONS

    rules = []
    for verb, resource, _ in PERMISSIONS:
        group, _, plural = resource.rpartition("/") if resource.count("/") else ("", "", resource)
        if resource.count("/") == 2 or group == "lamella.dev/shardedmodels":
            group, _, plural = resource.partition("/")
        rules.append({"apiGroups": [group], "resources": [plural], "verbs": [verb]})
    path: Path = plane.kubeconfig_with(rules, namespace=NAMESPACE, everywhere=True)
    return path


def space(number: int) -> str:
    return f"team-{number}"


def profile_message() -> str:
    """What an inspector says of a model of 64 layers."""
    layer = LayerProfile(975_000_000, 4096, 0, "full_attention")
    profile = ModelProfile(
        uri="hf://Qwen/Qwen3-32B",
        commit="9216db5781bf21249d130ec9da846c4624c16137",
        family="qwen3",
        dtype="bfloat16",
        hidden_size=5120,
        vocab_size=151936,
        max_model_len=40960,
        layers=(layer,) * 64,
        embedding_bytes=1_555_824_640,
        head_bytes=1_555_824_640,
        final_bytes=10240,
        tied=False,
        boundary_bytes_per_token=10240,
        allowed_cuts=tuple(range(64)),
        eos_token_ids=(151645, 151643),
    )
    text: str = messages.pack(profile)
    return text


async def apply_models(api: Api, options: argparse.Namespace) -> None:
    """Create all models, as quickly as the API server takes them."""
    slots = asyncio.Semaphore(APPLYING)

    async def create(number: int) -> None:
        model = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": f"model-{number}"},
            "spec": {
                "model": {"uri": "hf://Qwen/Qwen3-32B"},
                "pipeline": {"stages": options.stages, "stageMemory": "24Gi"},
                "resources": {"limits": {"nvidia.com/gpu": 1}},
            },
        }
        where = space(number % options.namespaces)
        async with slots:
            path = f"/apis/{names.API_VERSION}/namespaces/{where}/shardedmodels"
            await api.request("POST", path, model)

    await asyncio.gather(*(create(number) for number in range(options.models)))


async def watch_models(api: Api, told: Callable[[str, Thing], None]) -> None:
    async for kind, thing in api.watch(f"/apis/{names.API_VERSION}/shardedmodels"):
        told(kind, thing)


async def served(api: Api) -> Calls:
    """Requests that the API server has answered since it started, whoever sent them; no watches."""
    text = (await api.request("GET", "/metrics")).decode()
    found: Calls = {}
    for line in text.splitlines():
        if line.startswith("apiserver_request_total{"):
            (sample,) = next(iter(text_string_to_metric_families(line))).samples
            verb, resource = sample.labels["verb"].lower(), sample.labels["resource"]
            if verb != "watch":
                found[verb, resource] = found.get((verb, resource), 0) + sample.value
    return found


async def versions(api: Api) -> dict[str, str]:
    """resourceVersion of everything that the operator may write, by path and name."""
    found = {}
    for path in WATCHED:
        page = msgspec.json.decode(await api.request("GET", path), type=Page)
        for item in page.items:
            meta = item.metadata
            found[f"{path} {meta.namespace}/{meta.name}"] = meta.resource_version
    return found


def writes(calls: Calls) -> float:
    """Requests that change something; holding the lease is no change."""
    return sum(
        count
        for (verb, resource), count in calls.items()
        if verb.lower() not in READS and resource != "leases"
    )


class Operator:
    """The real operator as a process; what it says of itself at /metrics and /proc."""

    def __init__(self, folder: Path, kubeconfig: Path, session: aiohttp.ClientSession) -> None:
        (self._port,) = free_ports(1)
        self._session = session
        self._program = _processes.Program(
            folder / "operator.log",
            sys.executable,
            "-m",
            "lamella_operator",
            f"--kubeconfig={kubeconfig}",
            f"--namespace={NAMESPACE}",
            "--worker-image=worker:bench",
            "--operator-image=operator:bench",
            f"--port={self._port}",
        )

    def start(self) -> None:
        self._program.start()

    def stop(self) -> None:
        import signal

        self._program.stop(signal.SIGTERM)

    async def _get(self, path: str) -> tuple[int, str]:
        url = f"http://{names.LOOPBACK}:{self._port}{path}"
        try:
            async with self._session.get(url) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            if self._program.pid is None:
                raise
            return 0, ""

    async def until_ready(self, limit_s: float = 60) -> None:
        end = time.monotonic() + limit_s
        while (await self._get(names.PATH_READY))[0] != 200:
            if time.monotonic() > end:
                raise TimeoutError(f"the operator is not ready after {limit_s:.0f} s")
            await asyncio.sleep(0.05)

    async def _samples(self) -> list[Any]:
        _, text = await self._get(names.PATH_METRICS)
        return [s for family in text_string_to_metric_families(text) for s in family.samples]

    async def calls(self) -> Calls:
        """Requests that it has sent since it started."""
        found: Calls = {}
        for sample in await self._samples():
            if sample.name == "lamella_operator_api_requests_total":
                key = sample.labels["verb"], sample.labels["resource"]
                found[key] = found.get(key, 0) + sample.value
        return found

    async def reconciles(self) -> dict[str, float]:
        """Reconciles since it started, by result."""
        return {
            sample.labels["result"]: sample.value
            for sample in await self._samples()
            if sample.name == "lamella_operator_reconciles_total"
        }

    async def until_reconciled(self, models: int, limit_s: float = 300) -> None:
        """Until it has looked at every model and has nothing queued."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            told: dict[str, float] = {}
            for sample in await self._samples():
                told[sample.name] = told.get(sample.name, 0) + sample.value
            done = told.get("lamella_operator_reconciles_total", 0)
            if done >= models and told.get("lamella_operator_queue_depth", 0) == 0:
                return
            await asyncio.sleep(0.1)
        raise TimeoutError(f"not every model was looked at within {limit_s:.0f} s")

    def peak_mb(self) -> float:
        """The most memory that it has had, in MB (10^6 bytes)."""
        for line in Path(f"/proc/{self._program.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
        return 0.0

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used."""
        return cpu_s(self._program.pid)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def others_cpu_s(plane: Any) -> dict[str, float]:
    """The same of everybody else, by name."""
    programs = (plane.api_server, plane.etcd, plane.controllers)
    used = {program.name: cpu_s(program.pid) for program in programs}
    return {**used, "kubelets and bench": cpu_s(os.getpid())}
