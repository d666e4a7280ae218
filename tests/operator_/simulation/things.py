"""What is in the simulated cluster: a manifest, a profile, nodes, pods and models, as values.

Nothing here moves by itself: `cluster` moves it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella_contract import names, spec
from lamella_contract.errors import LamellaError
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_contract.spec_cluster import KUEUE
from lamella_operator.desired import gangs
from lamella_operator.settings import Settings
from lamella_operator.views import Exit, ModelView, PodView

MIB = 1 << 20
GPU = "nvidia.com/gpu"
SETTINGS = Settings(worker_image="registry.test/worker:1", operator_image="registry.test/op:1")


def make_body(**changes: Any) -> dict[str, Any]:
    """A manifest's spec: two stages with a GPU each, no gateways but one."""
    body: dict[str, Any] = {
        "model": {"uri": "hf://Qwen/Qwen3"},
        "pipeline": {"stages": 2, "stageMemory": "24Gi"},
        "resources": {"limits": {GPU: 1}},
        "gateway": {"replicas": 1},
        "replicas": 1,
    }
    return body | changes


def make_profile(layers: int = 8) -> ModelProfile:
    """A model of equal layers."""
    return ModelProfile(
        uri="hf://Qwen/Qwen3",
        commit="0123456789abcdef0123456789abcdef01234567",
        family="qwen3",
        dtype="bfloat16",
        hidden_size=1024,
        vocab_size=151936,
        max_model_len=4096,
        layers=(LayerProfile(256 * MIB, 4096, 0, "full_attention"),) * layers,
        embedding_bytes=MIB,
        head_bytes=MIB,
        final_bytes=2048,
        tied=False,
        boundary_bytes_per_token=2048,
        allowed_cuts=tuple(range(1, layers)),
        eos_token_ids=(1,),
    )


@dataclass
class Node:
    gpus: int = 8
    ready: bool = True


@dataclass
class Pod:
    """A pod and what its kubelet knows; `view` is what the operator sees."""

    manifest: Mapping[str, Any]
    uid: str
    created_s: float
    deleted_s: float | None = None
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    node: str = ""
    unschedulable: str = ""
    running: bool = False
    started_s: float = 0.0
    ready: bool = False
    ready_since_s: float = 0.0
    waiting_reason: str = ""
    waiting_message: str = ""
    restart_count: int = 0
    last_exit: Exit | None = None
    loaded: bool = False
    wedged: bool = False
    immortal: bool = False  # its kubelet never ends it
    held: bool = False  # a finalizer keeps it, even from force

    @property
    def labels(self) -> Mapping[str, str]:
        return self.manifest["metadata"]["labels"]  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def role(self) -> str:
        return self.labels[names.LABEL_ROLE]

    @property
    def owner(self) -> str:
        return self.labels[names.LABEL_MODEL_UID]

    @property
    def replica(self) -> int:
        return int(self.labels.get(names.LABEL_REPLICA, "0"))

    @property
    def stage(self) -> int:
        return int(self.labels.get(names.LABEL_STAGE, "0"))

    @property
    def over(self) -> bool:
        return self.phase in ("Failed", "Succeeded")

    @property
    def by_kueue(self) -> bool:
        return gangs.gang_of(self.manifest) == KUEUE

    @property
    def gpus(self) -> int:
        containers = self.manifest["spec"]["containers"]
        limits = (containers[0].get("resources") or {}).get("limits") or {}
        return int(limits.get(GPU, 0))

    @property
    def grace_s(self) -> float:
        return float(self.manifest["spec"].get("terminationGracePeriodSeconds", 30))

    def end(
        self, code: int = 1, reason: str = "Error", message: str = "", at_s: float = 0.0
    ) -> None:
        """Its container ends."""
        self.last_exit = Exit(code, reason, message, self.started_s, at_s)
        self.running = self.ready = self.loaded = False
        self.ready_since_s, self.started_s = 0.0, 0.0

    def fail(self, reason: str, message: str = "") -> None:
        """The whole pod fails."""
        self.phase, self.reason, self.message = "Failed", reason, message
        self.running = self.ready = self.loaded = False
        self.ready_since_s = self.started_s = 0.0

    def view(self, nodes: Mapping[str, Node]) -> PodView:
        notes = self.manifest["metadata"].get("annotations", {})
        return PodView(
            name=self.name,
            uid=self.uid,
            role=self.role,
            revision=self.labels.get(names.LABEL_REVISION, ""),
            replica=self.replica,
            stage=self.stage,
            created_s=self.created_s,
            deleted_s=self.deleted_s,
            phase=self.phase,
            reason=self.reason,
            message=self.message,
            node=self.node,
            node_ready=not self.node or nodes[self.node].ready,
            scheduled=bool(self.node),
            unschedulable=self.unschedulable,
            ready=self.ready,
            ready_since_s=self.ready_since_s,
            waiting_reason=self.waiting_reason,
            waiting_message=self.waiting_message,
            running=self.running,
            started_s=self.started_s,
            restart_count=self.restart_count,
            last_exit=self.last_exit,
            restarts=int(notes.get(names.ANNOTATION_RESTARTS) or 0),
            predecessor=notes.get(names.ANNOTATION_PREDECESSOR, ""),
            resume=notes.get(names.ANNOTATION_RESUME, ""),
            gang=notes.get(names.ANNOTATION_GANG, ""),
            finalizers=(gangs.KUEUE_FINALIZER,) if self.held and self.by_kueue else (),
        )


@dataclass
class Model:
    """A ShardedModel as it is stored."""

    name: str
    uid: str
    created_s: float
    body: Any
    generation: int = 1
    annotations: dict[str, str] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    deleting: bool = False

    def view(self) -> ModelView:
        manifest = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": self.name, "namespace": "ai"},
            "spec": self.body,
        }
        parsed, problem = None, ""
        try:
            parsed = spec.parse(manifest).spec
        except LamellaError as error:
            problem = str(error)
        return ModelView(
            self.name,
            "ai",
            self.uid,
            self.generation,
            self.created_s,
            self.deleting,
            parsed,
            problem,
            dict(self.annotations),
            copy.deepcopy(self.status),
        )


class Forbidden(AssertionError):
    """The operator did what it may never do."""
