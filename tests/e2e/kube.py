"""A cluster as tests see it: objects as values, waiting for conditions, evidence when one fails.

Reads go through `kubectl proxy`, so that whatever a KUBECONFIG says about reaching and identifying
works here too, and asking ten times a second costs nothing. Knows nothing of Lamella.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
Object = dict[str, Any]

CORE = (
    "namespaces", "nodes", "pods", "services", "secrets", "events", "resourcequotas", "limitranges",
)  # fmt: skip
PATHS: Mapping[str, str] = {
    **dict.fromkeys(CORE, "api/v1"),
    "shardedmodels": "apis/lamella.dev/v1alpha1",
    "deployments": "apis/apps/v1",
    "replicasets": "apis/apps/v1",
    "controllerrevisions": "apis/apps/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "rolebindings": "apis/rbac.authorization.k8s.io/v1",
    "clusterroles": "apis/rbac.authorization.k8s.io/v1",
    "leases": "apis/coordination.k8s.io/v1",
    "mutatingwebhookconfigurations": "apis/admissionregistration.k8s.io/v1",
    "horizontalpodautoscalers": "apis/autoscaling/v2",
    "apiservices": "apis/apiregistration.k8s.io/v1",
}
UNSCOPED = (
    "nodes", "namespaces", "clusterroles", "mutatingwebhookconfigurations", "apiservices",
)  # fmt: skip
REFUSED_S = 20.0  # for how long an API server that comes back may refuse


class Missed(AssertionError):
    """Something did not come true in time."""


def wait_for(
    what: str, probe: Callable[[], T | None], patience_s: float, every_s: float = 0.2
) -> T:
    """What ``probe`` returns once it is true; `Missed` says what was last seen."""
    deadline = time.monotonic() + patience_s
    last: object = None
    while True:
        try:
            found = probe()
        except httpx.HTTPError as error:  # an API server that is away is waited for as well
            found, last = None, error
        if found:
            return found
        if time.monotonic() > deadline:
            raise Missed(f"not in {patience_s:.0f} s: {what}; last: {last or found!r}")
        time.sleep(every_s)


class Kube:
    """The cluster of KUBECONFIG."""

    def __init__(self) -> None:
        self._proxy = subprocess.Popen(
            ["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        assert self._proxy.stdout is not None
        line = self._proxy.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, f"kubectl proxy said {line!r}: is KUBECONFIG right?"
        self.http = httpx.Client(base_url=f"http://{found[0]}", timeout=10)

    def close(self) -> None:
        self.http.close()
        self._proxy.terminate()
        self._proxy.wait(10)
        assert self._proxy.stdout is not None
        self._proxy.stdout.close()

    def run(
        self, *words: str, stdin: str | None = None, check: bool = True, timeout_s: float = 120
    ) -> str:
        """kubectl's output; what it complained about is the error's text."""
        done = subprocess.run(
            ["kubectl", *words], input=stdin, capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout + (done.stderr if done.returncode else "")

    def path(self, kind: str, namespace: str = "", name: str = "") -> str:
        scope = f"/namespaces/{namespace}" if namespace and kind not in UNSCOPED else ""
        return f"/{PATHS[kind]}{scope}/{kind}" + (f"/{name}" if name else "")

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """One object, None when it is not there."""
        answer = self.http.get(self.path(kind, namespace, name))
        if answer.status_code == 404:
            return None
        return dict(answer.raise_for_status().json())

    def list(self, kind: str, namespace: str = "", labels: str = "") -> list[Object]:
        query = {"labelSelector": labels} if labels else {}
        answer = self.http.get(self.path(kind, namespace), params=query)
        return list(answer.raise_for_status().json()["items"])

    def apply(self, *manifests: Object) -> str:
        """`kubectl apply`, as a user does."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        return self.run("apply", "-f", "-", stdin=text)

    def patch(self, kind: str, name: str, namespace: str, body: Object, sub: str = "") -> None:
        """A merge patch."""
        self.http.patch(
            self.path(kind, namespace, name) + (f"/{sub}" if sub else ""),
            content=json.dumps(body),
            headers={"Content-Type": "application/merge-patch+json"},
        ).raise_for_status()

    def delete(self, kind: str, name: str, namespace: str = "", grace_s: int | None = None) -> None:
        """Asks for it and does not wait; that it is gone already is fine."""
        query = {} if grace_s is None else {"gracePeriodSeconds": str(grace_s)}
        answer = self.http.delete(self.path(kind, namespace, name), params=query)
        if answer.status_code != 404:
            answer.raise_for_status()

    def namespace(self, name: str, labels: Mapping[str, str] | None = None) -> str:
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": dict(labels or {})},
            }
        )
        return name

    def events(self, namespace: str, about: str) -> list[str]:
        """Reasons of the Events about an object, in the order of their making."""
        found = self.list("events", namespace)
        found.sort(key=lambda event: event["metadata"]["creationTimestamp"])
        return [event["reason"] for event in found if event["involvedObject"]["name"] == about]

    def save_evidence(self, folder: Path, namespaces: Sequence[str]) -> None:
        """All that a person would ask for after a failure, as text files."""
        folder.mkdir(parents=True, exist_ok=True)
        for space in namespaces:
            for name, words in {
                "objects.txt": ("get", "all,sm,secrets,pdb", "-o", "wide"),
                "models.yaml": ("get", "sm", "-o", "yaml"),
                "pods.yaml": ("get", "pods", "-o", "yaml"),
                "describe.txt": ("describe", "pods"),
                "events.txt": ("get", "events", "--sort-by=.metadata.creationTimestamp"),
            }.items():
                text = self.run("-n", space, *words, check=False)
                (folder / f"{space}.{name}").write_text(text)
            for pod in self.run("-n", space, "get", "pods", "-o", "name", check=False).split():
                for more in ((), ("--previous",)):
                    text = self.run(
                        "-n", space, "logs", pod, "--all-containers", "--tail=400", *more,
                        check=False,
                    )  # fmt: skip
                    name = f"{space}.{pod.rpartition('/')[2]}{'.previous' if more else ''}.log"
                    if "previous terminated container" not in text:
                        (folder / name).write_text(text)


class Watch:
    """`kubectl get -w` beside a test: its text with the seconds at which each line came."""

    def __init__(self, namespace: str, *words: str) -> None:
        self.lines: list[tuple[float, str]] = []
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            ["kubectl", "-n", namespace, "get", *words, "-w"], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((time.monotonic() - self._began, line.rstrip()))

    def stop(self) -> str:
        """The lines, each with its second in front."""
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return "\n".join(f"{at:6.1f}s  {line}" for at, line in self.lines)


def environment(name: str, default: str = "") -> str:
    return os.environ.get(name, default)
