"""ShardedModels of these tests: small manifests, and what is looked up about them.

Reads what a user reads (status, columns, Events) and the pods behind.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

from e2e_kube import Kube, Object, wait_for

TINY = "file:///models/tiny"  # in the image that scripts/images e2e makes
DEMO = "file:///models/demo"
LAYERS = 4  # of the tiny model
READY_S = 180.0  # patience with two cores: several processes import torch at once

SPEC: Mapping[str, Any] = {
    "model": {"uri": TINY},
    # float32: the same text each time, however requests were batched and replayed
    "pipeline": {"stages": 2, "dtype": "float32", "device": "cpu"},
    "context": {"maxLength": 2048, "maxSequences": 8},
    "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "2Gi"}},
    "drainSeconds": 20,
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it; None removes."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = copy.deepcopy(value)
    return result


class Model:
    """One ShardedModel on the cluster."""

    def __init__(self, kube: Kube, namespace: str, name: str, **spec: Any) -> None:
        self.kube, self.namespace, self.name = kube, namespace, name
        self.spec = merged(SPEC, spec)

    # -- what a user does --------------------------------------------------------------------------
    def apply(self, **changes: Any) -> Model:
        """Applies the manifest, with changes kept for the next time."""
        self.spec = merged(self.spec, changes)
        self.kube.apply(
            {
                "apiVersion": "lamella.dev/v1alpha1",
                "kind": "ShardedModel",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": self.spec,
            }
        )
        return self

    def scale(self, replicas: int) -> None:
        """`kubectl scale`."""
        self.kube.run(
            "-n", self.namespace, "scale", f"sm/{self.name}", f"--replicas={replicas}"
        )  # fmt: skip
        self.spec["replicas"] = replicas

    def annotate(self, text: str) -> None:
        self.kube.run("-n", self.namespace, "annotate", "--overwrite", f"sm/{self.name}", text)

    def delete(self) -> None:
        self.kube.delete("shardedmodels", self.name, self.namespace)

    # -- what a user sees --------------------------------------------------------------------------
    @property
    def object(self) -> Object:
        found = self.kube.get("shardedmodels", self.name, self.namespace)
        assert found is not None, f"there is no model {self.name}"
        return found

    @property
    def status(self) -> Object:
        return dict(self.object.get("status", {}))

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])

    def reason(self) -> str:
        return str(self.status.get("reason", ""))

    def message(self) -> str:
        return str(self.status.get("message", ""))

    def condition(self, kind: str) -> Object:
        for condition in self.status.get("conditions", []):
            if condition["type"] == kind:
                return dict(condition)
        return {}

    def is_ready(self) -> bool:
        model = self.object
        status = model.get("status", {})
        ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready")
        return (
            ready == "True" and status.get("observedGeneration") == model["metadata"]["generation"]
        )

    def until_ready(self, patience_s: float = READY_S) -> float:
        """Seconds until Ready is True for the manifest as it is now."""
        began = time.monotonic()
        wait_for(f"{self.name} is Ready", self.is_ready, patience_s)
        return time.monotonic() - began

    def until_reason(self, *wanted: str, patience_s: float = 60) -> str:
        """The message once REASON is one of ``wanted``."""

        def told() -> str | None:
            status = self.status
            return status.get("message", "-") if status.get("reason") in wanted else None

        return wait_for(f"{self.name} says {wanted} (says {self.reason()})", told, patience_s)

    # -- pods --------------------------------------------------------------------------------------
    def pods(self, role: str = "stage", *, stage: int | None = None) -> list[Object]:
        """Its pods that are not being deleted, oldest first."""
        labels = f"lamella.dev/model={self.name},lamella.dev/role={role}"
        labels += "" if stage is None else f",lamella.dev/stage={stage}"
        found = self.kube.list("pods", self.namespace, labels)
        found = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def stage(self, stage: int) -> Object:
        """The newest pod of a stage of replica 0."""
        found = [
            pod for pod in self.pods(stage=stage)
            if pod["metadata"]["labels"]["lamella.dev/replica"] == "0"
        ]  # fmt: skip
        assert found, f"{self.name} has no pod of stage {stage}"
        return found[-1]

    def uids(self, role: str = "stage") -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods(role)}

    def until_replaced(self, old: Object, patience_s: float = 60) -> float:
        """Seconds until another pod has the place of ``old`` (and exists; not yet ready)."""
        stage = int(old["metadata"]["labels"]["lamella.dev/stage"])
        replica, began = old["metadata"]["labels"]["lamella.dev/replica"], time.monotonic()

        def other() -> bool:
            return any(
                pod["metadata"]["uid"] != old["metadata"]["uid"]
                and pod["metadata"]["labels"]["lamella.dev/replica"] == replica
                for pod in self.pods(stage=stage)
            )

        wait_for(f"stage {stage} has another pod", other, patience_s, 0.05)
        return time.monotonic() - began

    # -- the endpoint ------------------------------------------------------------------------------
    def url(self) -> str:
        """The Service's address, which this host must reach."""
        service = self.kube.get("services", self.name, self.namespace)
        assert service is not None, f"{self.name} has no Service"
        return f"http://{service['spec']['clusterIP']}:8000/v1"


def gone(kube: Kube, namespace: str, model: str) -> Callable[[], bool]:
    """Whether nothing of the model is left, of any kind that the operator makes."""

    def nothing() -> bool:
        kinds = (
            "pods", "services", "secrets", "deployments", "replicasets", "controllerrevisions",
            "poddisruptionbudgets", "networkpolicies",
        )  # fmt: skip
        return not any(kube.list(kind, namespace, f"lamella.dev/model={model}") for kind in kinds)

    return nothing
