"""What can be done in one reconcile, and the situation that it was decided in. Values only.

Every write has a deterministic name and every delete a UID, so that doing an action twice, or
doing it late, is harmless. They are done in order. One that fails ends the pass (the rest would
lean on it), with two exceptions: a pod that the API server refuses for good (quota, admission), and
what only its group leans on, are told as a `Refusal`, and the pass goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella_contract.plan import Plan
from lamella_contract.profile import ModelProfile
from lamella_operator.views import Manifest


@dataclass(frozen=True, slots=True)
class Create:
    """POST; that it exists already is fine. For pods and revisions, which are never applied.

    ``group`` names actions of which all or none shall hold (the pods of one replica): when one is
    refused, those of its group that this reconcile has made are deleted again.
    """

    manifest: Manifest
    group: str = ""


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply. With a ``group`` it is a condition of that group's `Create`s: when it is
    refused they are left out, and the pass goes on."""

    manifest: Manifest
    group: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE with the UID as precondition; ``grace_s`` None is the object's own grace period.
    ``kind`` is its `kind_name`."""

    kind: str
    name: str
    uid: str
    grace_s: int | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Takes ``finalizer`` from a pod whose finalizers are ``finalizers``, if they still are."""

    name: str
    uid: str
    finalizers: tuple[str, ...]
    finalizer: str


@dataclass(frozen=True, slots=True)
class EnsureKeys:
    """Secrets with the derived key pair of each role (``stage-0``, ``gateway-0``) exist."""

    roles: tuple[str, ...]
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done before ``after_s`` seconds have passed: look again then."""

    after_s: float


Action = Create | Apply | Delete | Release | EnsureKeys | Wait


@dataclass(frozen=True, slots=True)
class Note:
    """Why something is as it is: a CamelCase ``reason`` of `reasons`, and words."""

    reason: str
    message: str


STAGE_STATES = (
    "Pending",  # not placed yet
    "Creating",  # placed; its container does not run yet
    "Loading",  # runs, its slice is being read
    "Loaded",  # its slice is there, the ring does not serve yet
    "Ready",  # serves
    "Lost",  # gone or failed; it is being replaced, or will be after a back-off
    "Draining",  # asked to end, finishing requests
)


@dataclass(frozen=True, slots=True)
class StageSituation:
    """One stage of one replica; ``note`` says why it is not Ready. Bytes are of its slice."""

    stage: int
    state: str
    pod: str = ""
    pod_uid: str = ""
    node: str = ""
    restarts: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0
    note: Note | None = None


REPLICA_STATES = ("Starting", "Ready", "Recovering", "Draining", "Yielded", "Degraded")


@dataclass(frozen=True, slots=True)
class ReplicaSituation:
    """One pipeline. ``updated``: it is of the model's current revision."""

    replica: int
    revision: str
    updated: bool
    state: str
    stages: tuple[StageSituation, ...]
    note: Note | None = None

    @property
    def ready(self) -> bool:
        return self.state == "Ready"


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision found, for the status.

    ``refused`` is why the manifest cannot be acted on (Accepted=False), ``unresolved`` why there
    is no profile yet, ``unplanned`` why there is no plan. ``profile_message`` is the profile as
    the inspector sent it, to be kept in status. ``degraded`` needs the user; ``rolling`` says
    how far a change has come. ``resumed`` is the resume annotation that was last heeded,
    ``yielded_s`` when a replica last gave way (by replica).
    """

    refused: Note | None = None
    unresolved: Note | None = None
    unplanned: Note | None = None
    degraded: Note | None = None
    rolling: Note | None = None
    paused: bool = False
    profile: ModelProfile | None = None
    profile_message: str = ""
    profile_key: str = ""
    inspect_attempts: int = 0
    plan: Plan | None = None
    revision: str = ""
    replicas: tuple[ReplicaSituation, ...] = ()
    wanted_replicas: int = 0
    gateways_ready: int = 0
    gateways_wanted: int = 0
    gateway_note: Note | None = None
    recovery_needs_hub: bool = False
    capacity_known: bool = True
    resumed: str = ""
    yielded_s: tuple[tuple[int, float], ...] = ()
    failures: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in order, and what was found."""

    actions: tuple[Action, ...]
    situation: Situation
