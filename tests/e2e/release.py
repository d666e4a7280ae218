"""The chart on the cluster: installed, upgraded and taken away as a user does it, with helm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from zlib import crc32

from e2e_kube import Kube, Object, environment, wait_for

CHART = environment("LAMELLA_E2E_CHART", str(Path(__file__).parents[2] / "helm" / "lamella"))
NAMESPACE = "lamella-system"
NAME = "lamella"
WORKER = environment("LAMELLA_E2E_WORKER_IMAGE", "lamella-worker:e2e")
OPERATOR = environment("LAMELLA_E2E_OPERATOR_IMAGE", "lamella-operator:e2e")
HUB = "http://hub.lamella-e2e-hub.svc.cluster.local:8080"


def values(**more: Any) -> Object:
    """Values of these tests: the images at hand, and our own hub."""
    operator, worker = OPERATOR.rpartition(":"), WORKER.rpartition(":")
    return {
        "image": {"repository": operator[0], "tag": operator[2]},
        "workerImage": {"repository": worker[0], "tag": worker[2]},
        "pullPolicy": "IfNotPresent",
        "models": {"hubEndpoint": HUB},
        **more,
    }


class Release:
    """The one release."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube

    def install(self, **more: Any) -> None:
        """`helm upgrade --install`, and the wait until the new operators stand."""
        self._helm(
            "upgrade", "--install", NAME, CHART, "--create-namespace", "--values", "-",
            "--wait", "--timeout", "3m", stdin=json.dumps(values(**more)),
        )  # fmt: skip

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--wait", "--timeout", "2m")

    def _helm(self, *words: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["helm", "-n", NAMESPACE, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def pods(self) -> list[Object]:
        labels = f"app.kubernetes.io/instance={NAME}"
        found = self.kube.list("pods", NAMESPACE, labels)
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def leader(self) -> str:
        """The name of the pod that leads; "" when nobody does."""
        lease = self.kube.get("leases", NAME, NAMESPACE)
        holder = (lease or {}).get("spec", {}).get("holderIdentity") or ""
        return str(holder).partition("_")[0]

    def until_led(self, *, other_than: str = "", patience_s: float = 90) -> str:
        """The name of a leader that is among the pods of now."""

        def led() -> str | None:
            leader, pods = self.leader(), {pod["metadata"]["name"] for pod in self.pods()}
            return leader if leader in pods and leader != other_than else None

        return wait_for("an operator leads", led, patience_s)

    def logs(self) -> str:
        return self.kube.run(
            "-n", NAMESPACE, "logs", "-l", f"app.kubernetes.io/instance={NAME}", "--tail=-1",
            "--prefix", check=False,
        )  # fmt: skip


def hub_manifests(script: str) -> list[Object]:
    """The small hub: a Deployment of one pod that serves the tiny model's folder, and a Service."""
    meta = {"name": "hub", "namespace": "lamella-e2e-hub"}
    labels = {"app": "hub"}
    changes = {"script": str(crc32(script.encode()))}  # another script is another pod
    container = {
        "name": "hub",
        "image": WORKER,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/hub/hub.py", "8080", "/models/tiny"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}],
        "resources": {"requests": {"cpu": "50m"}},
    }
    pod = {
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "hub", "configMap": {"name": "hub"}}],
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": meta["namespace"]}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"hub.py": script}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": changes},
                    "spec": pod,
                },
            },
        },
    ]


class Hub:
    """The small hub, which can be switched off."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        kube.apply(*hub_manifests(Path(__file__).with_name("hub.py").read_text()))

    def scale(self, replicas: int) -> None:
        """0 is off: nothing answers at its address."""
        self._kube.patch("deployments", "hub", "lamella-e2e-hub", {"spec": {"replicas": replicas}})

        def settled() -> bool:
            hub = self._kube.get("deployments", "hub", "lamella-e2e-hub") or {}
            pods = self._kube.list("pods", "lamella-e2e-hub")
            ready = hub.get("status", {}).get("readyReplicas", 0)
            return bool(ready == replicas and len(pods) == replicas)

        wait_for(f"{replicas} hubs run", settled, 60)
