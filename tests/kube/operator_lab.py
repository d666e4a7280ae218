"""The operator as a process on a real API server, and what a test wants to know of it."""

from __future__ import annotations

import itertools
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from kube_control_plane import ControlPlane
from kube_fake_kubelet import FakeKubelet
from kube_processes import LOOPBACK, Program, wait_for

from lamella.machine import free_ports
from lamella_contract import names
from lamella_operator.reconciling.permissions import MODELS, OWN, PERMISSIONS

MODELS_PATH = "/apis/lamella.dev/v1alpha1/namespaces/{}/shardedmodels"
WAIT_S = 60.0
_numbers = itertools.count(1)


class Operator:
    """One process; ``folder`` keeps its log, ``namespace`` its Lease and root Secret."""

    def __init__(
        self, folder: Path, kubeconfig: Path, namespace: str, *flags: str, models: Sequence[str]
    ) -> None:
        (self.port,) = free_ports(1)
        scopes = [f"--namespaces={','.join(models)}"] if models else []
        self.program = Program(
            folder / f"operator-{next(_numbers)}.log",
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::ResourceWarning",  # a process that ends leaves its sockets to the kernel
            "-m",
            "lamella_operator",
            f"--kubeconfig={kubeconfig}",
            f"--namespace={namespace}",
            f"--port={self.port}",
            "--worker-image=worker:test",
            "--operator-image=operator:test",
            "--resync-s=5",
            *scopes,
            *flags,
        )

    def start(self) -> None:
        self.program.start()
        self.program.wait_until(lambda: self.probe("readyz") == 200)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.program.stop(number)

    def kill(self) -> None:
        self.program.stop(signal.SIGKILL)

    def probe(self, path: str) -> int:
        """Status of /healthz or /readyz; 0 when nothing answers."""
        try:
            answer = httpx.get(f"http://{LOOPBACK}:{self.port}/{path}", timeout=5, trust_env=False)
            return answer.status_code
        except httpx.TransportError:
            return 0

    def metric(self, name: str, **labels: str) -> float:
        """One number of /metrics; 0.0 where it is not there."""
        answer = httpx.get(f"http://{LOOPBACK}:{self.port}/metrics", timeout=5, trust_env=False)
        for line in answer.text.splitlines():
            what, _, value = line.rpartition(" ")
            if what.split("{")[0] == f"lamella_operator_{name}" and all(
                f'{key}="{label}"' in what for key, label in labels.items()
            ):
                return float(value)
        return 0.0

    @property
    def leads(self) -> bool:
        return self.program.pid is not None and self.metric("leader") == 1

    @property
    def log(self) -> str:
        return self.program.log.read_text(errors="replace")


class Lab:
    """One namespace with a fake kubelet, and operators for it."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, kubelet: FakeKubelet):
        self.plane = plane
        self.api = plane.api
        self.namespace = namespace
        self.folder = folder
        self.kubelet = kubelet
        self.operators: list[Operator] = []

    def operator(
        self, *flags: str, kubeconfig: Path | None = None, models: Sequence[str] | None = None
    ) -> Operator:
        """A process that looks after this namespace (or ``models``); not started yet."""
        found = Operator(
            self.folder,
            kubeconfig or self.plane.kubeconfig,
            self.namespace,
            *flags,
            models=(self.namespace,) if models is None else models,
        )
        self.operators.append(found)
        return found

    def started(self, *flags: str, **more: Any) -> Operator:
        operator = self.operator(*flags, **more)
        operator.start()
        return operator

    # -- the model --------------------------------------------------------------------------------

    def path(self, kind: str, name: str = "", namespace: str = "") -> str:
        """``kind`` is a plural of the core group, or ``shardedmodels``."""
        where = namespace or self.namespace
        base = MODELS_PATH if kind == "shardedmodels" else f"/api/v1/namespaces/{{}}/{kind}"
        return "/".join(part for part in (base.format(where), name) if part)

    def make(self, name: str = "tiny", namespace: str = "", **spec: Any) -> dict[str, Any]:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": {
                "model": {"uri": "file:///models/tiny"},
                "pipeline": {"stages": 2},
                "gateway": {"replicas": 1},
                **spec,
            },
        }
        return self.api.request("POST", self.path("shardedmodels", "", namespace), body)

    def edit(self, name: str = "tiny", **spec: Any) -> None:
        self.api.request("PATCH", self.path("shardedmodels", name), {"spec": spec})

    def delete(self, name: str = "tiny") -> None:
        self.api.request("DELETE", self.path("shardedmodels", name))

    def model(self, name: str = "tiny", namespace: str = "") -> dict[str, Any]:
        return self.api.request("GET", self.path("shardedmodels", name, namespace))

    def is_ready(self, name: str = "tiny", namespace: str = "", ready: str = "1/1") -> bool:
        status = self.model(name, namespace).get("status", {})
        conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
        return conditions.get("Ready") == "True" and status.get("ready") == ready

    def wait_ready(self, name: str = "tiny", namespace: str = "", ready: str = "1/1") -> None:
        wait_for(lambda: self.is_ready(name, namespace, ready) or None, f"{name} is Ready", WAIT_S)

    # -- what there is ----------------------------------------------------------------------------

    def pods(self, role: str = "stage", namespace: str = "") -> dict[str, dict[str, Any]]:
        """Pods by name, without those that are going."""
        found = self.api.request(
            "GET", self.path("pods", "", namespace), labelSelector=f"{names.LABEL_ROLE}={role}"
        )
        return {
            one["metadata"]["name"]: one
            for one in found["items"]
            if "deletionTimestamp" not in one["metadata"]
        }

    def uids(self, role: str = "stage", namespace: str = "") -> dict[tuple[str, str], str]:
        """UIDs of the pods by replica and stage."""
        return {
            (
                one["metadata"]["labels"].get(names.LABEL_REPLICA, ""),
                one["metadata"]["labels"].get(names.LABEL_STAGE, ""),
            ): one["metadata"]["uid"]
            for one in self.pods(role, namespace).values()
        }

    def lose_a_pod(self, namespace: str = "", *, at_once: bool = False) -> str:
        """Delete a stage's pod; its UID, for `has_lost`. A replacement may have its name."""
        name, pod = next(iter(self.pods(namespace=namespace).items()))
        options = {"gracePeriodSeconds": 0} if at_once else None
        self.api.request("DELETE", self.path("pods", name, namespace), options)
        return str(pod["metadata"]["uid"])

    def has_replaced(self, uid: str, count: int = 2, namespace: str = "") -> bool:
        """Whether there are ``count`` stages, and the pod with ``uid`` is none of them."""
        uids = self.uids(namespace=namespace).values()
        return len(uids) == count and uid not in uids

    def everything(self) -> dict[str, list[str]]:
        """Names of all objects of models, by kind."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in (
            "/api/v1/namespaces/{}/pods",
            "/api/v1/namespaces/{}/services",
            "/api/v1/namespaces/{}/secrets",
            "/apis/apps/v1/namespaces/{}/deployments",
            "/apis/apps/v1/namespaces/{}/replicasets",
            "/apis/apps/v1/namespaces/{}/controllerrevisions",
            "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
            "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
        ):
            listed = self.api.request(
                "GET", path.format(self.namespace), labelSelector=names.LABEL_MODEL_UID
            )
            for one in listed["items"]:
                found[path.rsplit("/", 1)[1]].append(one["metadata"]["name"])
        return dict(found)


@contextmanager
def lab_in(plane: ControlPlane, namespace: str, folder: Path, *more: str) -> Iterator[Lab]:
    """Ends all operators afterwards; pytest shows the end of their logs when a test fails."""
    with FakeKubelet(plane.api, namespace, *more) as kubelet:
        found = Lab(plane, namespace, folder, kubelet)
        try:
            yield found
        finally:
            for operator in found.operators:
                operator.kill()
                if operator.program.log.exists():
                    sys.stdout.write(f"{operator.program.log}:\n{operator.log[-8000:]}\n")


def rules(scope: str) -> list[dict[str, Any]]:
    """What the operator says it needs, as rules of a Role."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for verb, resource, where in PERMISSIONS:
        if where == scope:
            group, slash, plural = resource.partition("/")
            group, plural = (group, plural) if slash else ("", resource)
            found[group, plural].add(verb)
    return [
        {"apiGroups": [group], "resources": [plural], "verbs": sorted(verbs)}
        for (group, plural), verbs in found.items()
    ]


def all_rules() -> list[dict[str, Any]]:
    """In one namespace that is the operator's own and has the models."""
    # OpenShift and the admission plugin for owner references ask for it
    finalizers = {
        "apiGroups": [names.GROUP],
        "resources": ["shardedmodels/finalizers"],
        "verbs": ["update"],
    }
    return [*rules(MODELS), *rules(OWN), finalizers]
