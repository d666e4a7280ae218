"""What the cluster looks like now, as frozen values: everything a decision may know.

Made from the API's answers by `reconciling.observe`, and by tests. Times are seconds since 1970
(UTC), 0.0 where the API gives none. Knows no client and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lamella_contract.spec import ShardedModelSpec

Manifest = Mapping[str, Any]
"""A Kubernetes object as JSON has it."""


def kind_name(manifest: Manifest) -> str:
    """What a kind is called here: its own name, with its API group where two groups have it."""
    kind = str(manifest["kind"])
    return f"{kind}.{manifest['apiVersion'].partition('/')[0]}" if kind == "PodGroup" else kind


@dataclass(frozen=True, slots=True)
class ModelView:
    """One ShardedModel. ``spec`` None: it does not parse, and ``problem`` says where."""

    name: str
    namespace: str
    uid: str
    generation: int
    created_s: float = 0.0
    deleting: bool = False
    spec: ShardedModelSpec | None = None
    problem: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    status: Manifest = field(default_factory=dict)  # as it is stored


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended; ``message`` is what it wrote to its termination log."""

    code: int
    reason: str  # Error, OOMKilled, Completed, ...
    message: str = ""
    started_s: float = 0.0
    finished_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod of a model: a stage's, a gateway's or an inspector's.

    ``deleted_s`` is when its grace period ends (None: not being deleted). ``reason`` and
    ``message`` are the pod's own (Evicted, UnexpectedAdmissionError, NodeLost, ...);
    ``unschedulable`` is the scheduler's message, ``waiting_*`` the kubelet's about the container.
    ``ready_since_s`` is 0.0 while it is not ready; ``started_s`` is when the container that runs
    now was started, 0.0 while none runs. ``last_exit`` is the newest exit of the main container,
    whether it has been restarted since or not. ``restarts`` counts predecessors that failed in
    its place, ``resume`` is the annotation that the model had when the pod was made.
    """

    name: str
    uid: str
    role: str
    revision: str = ""
    replica: int = 0
    stage: int = 0
    created_s: float = 0.0
    deleted_s: float | None = None
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    node: str = ""
    node_ready: bool = True
    ip: str = ""
    scheduled: bool = False
    unschedulable: str = ""
    ready: bool = False
    ready_since_s: float = 0.0
    waiting_reason: str = ""
    waiting_message: str = ""
    missing: tuple[str, ...] = ()  # Secrets that it needs, when it has waited long
    running: bool = False
    started_s: float = 0.0
    restart_count: int = 0
    last_exit: Exit | None = None
    restarts: int = 0
    predecessor: str = ""
    resume: str = ""
    gang: str = ""  # the system that places it with the others of its pipeline
    finalizers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MemberView:
    """One stage as its stage 0 tells of it: absent, loading, ready, silent or failed."""

    stage: int
    state: str
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RingView:
    """What stage 0 of one replica says at /status; ``lost`` is the stage to be replaced.

    ``lost_uid`` is the UID of the pod that is meant, "" where stage 0 does not know.
    """

    ready: bool
    reason: str = ""
    lost: int | None = None
    members: tuple[MemberView, ...] = ()
    kv_tokens: int = 0
    live_requests: int = 0
    lost_uid: str = ""


@dataclass(frozen=True, slots=True)
class RevisionView:
    """A stored ControllerRevision; ``document`` is its ``data``, parsed by `revision`."""

    name: str
    uid: str
    number: int
    hash: str
    document: Manifest


@dataclass(frozen=True, slots=True)
class LiveObject:
    """An object that is applied (not a pod, not a revision), as it is now; ``kind`` is its
    `kind_name`."""

    kind: str
    name: str
    uid: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A PersistentVolumeClaim that the manifest names."""

    name: str
    exists: bool = True
    access_modes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server (quota, LimitRange, admission, conflict) would not take an action.

    ``reason`` is a status reason (QuotaExceeded, Forbidden, NameConflict, Invalid, ...).
    """

    reason: str
    message: str
    replica: int | None = None
    stage: int | None = None


@dataclass(frozen=True, slots=True)
class Rival:
    """A half-placed pipeline, of this model or another, that waits for capacity too."""

    model_uid: str
    replica: int
    created_s: float


def no_keys(role: str, generation: int) -> str:
    """Stands where nobody is asked for keys."""
    raise LookupError(f"no key of {role!r} ({generation}) was given")


@dataclass(frozen=True, slots=True)
class Observed:
    """One model and all that belongs to it.

    ``rings`` has an entry for each replica whose stage 0 was asked and answered. ``rivals`` is
    filled only when a replica of ours has been half-placed for its timeout. ``refusals`` are of
    the actions of this very reconcile, when it is told after acting. ``public_key`` gives the
    public key (z85) of a role (``stage-0``, ``gateway-0``) in a generation, when it is asked for.
    ``claims`` are those that the manifest names and that may be read; ``one_node`` is true when
    the cluster is known to have no more.
    """

    now_s: float
    model: ModelView
    pods: tuple[PodView, ...] = ()
    gateway_pods: tuple[PodView, ...] = ()
    inspectors: tuple[PodView, ...] = ()
    revisions: tuple[RevisionView, ...] = ()
    objects: tuple[LiveObject, ...] = ()
    rings: Mapping[int, RingView] = field(default_factory=dict)
    rivals: tuple[Rival, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    claims: tuple[ClaimView, ...] = ()
    one_node: bool = False
    public_key: Callable[[str, int], str] = field(default=no_keys, compare=False)
