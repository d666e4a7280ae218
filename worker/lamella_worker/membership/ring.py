"""Who belongs to the pipeline, under which epoch, and whether it may serve: stage 0's membership.

Pure: it knows no socket, thread or clock (time is an argument), and no tokens. `control` feeds it
what was heard and carries out the actions it returns. The phases, in order:

1. FORMING     not every stage has joined with its slice loaded;
2. CONNECTING  all have; each was told the epoch and whom to dial, not all have answered;
3. PROBING     all links stand; one probe step is travelling the whole ring;
4. SERVING     the probe came back: steps may be scheduled;
5. SUSPECT     a member fell silent or a step is overdue: no new steps until it speaks again.

An **incarnation** names one run of stage 0. Inside it the **epoch** rises at every change: a new
process in a stage's place, a suspect that came back, a broken link. Frames of another epoch are
dropped by whoever receives them, so nothing stale is ever computed on.

A process is named ``<pod>.<random>``. Once another process has a stage's place the one of before
is refused; another pod's process retires all of the pod before, children that its parent may yet
fork included. So a pod that was stopped or cut off, and was replaced, cannot come back.
A stage 0 that was started anew has no such memory: it goes by what either saw of the one before.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from lamella_contract.wire import Flow
from lamella_worker.membership.flows import Flows

STEP_OVERDUE_FLOOR_S = 1.0
"""A step younger than this is never called overdue, however short the prediction was."""

STEP_OVERDUE_FACTOR = 4.0
"""A step is overdue at this multiple of its predicted time."""

PROBE_TIMEOUT_S = 5.0
"""A probe or a connection that takes longer is tried again under a new epoch."""

RETIRED_KEPT = 256
"""Names of replaced processes and pods that are remembered for each stage."""


class Phase(enum.Enum):
    """Where the ring stands; only SERVING is ready."""

    FORMING = "forming"
    CONNECTING = "connecting"
    PROBING = "probing"
    SERVING = "serving"
    SUSPECT = "suspect"


@dataclass(frozen=True, slots=True)
class Connect:
    """Tell every stage the new epoch and the address that it sends its frames to."""

    epoch: int
    next_addresses: tuple[str, ...]  # [stages]; the last stage dials stage 0's StepDone socket


@dataclass(frozen=True, slots=True)
class Probe:
    """Send one probe step round the ring under this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Steps may be scheduled under this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Schedule nothing more: `reason` says why, in words for a user."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """A newer process has this one's place: tell it to end."""

    stage: int
    process: str
    reason: str


Action = Connect | Probe | Serve | Pause | Refuse

Seen: TypeAlias = tuple[str, int]
"""The newest incarnation (hex) and epoch that a process was told of; epoch 0: none yet."""


@dataclass(slots=True)
class Member:
    """What is known of one stage's present process."""

    process: str  # names one run of a stage; a new one means a new process in its place
    data_address: str
    loaded: bool
    last_heard_s: float
    acknowledged_epoch: int = 0
    failed: bool = False  # it says that it cannot work
    seen: Seen = ("", 0)  # when it joined


@dataclass(slots=True)
class Ring:
    """Membership of one pipeline, seen from its stage 0.

    `stages` counts stage 0 too. `suspect_after_s` is the silence after which a member is suspect.
    `incarnation` (hex) is this run's own name.
    """

    stages: int
    suspect_after_s: float
    incarnation: str = ""
    epoch: int = 0
    phase: Phase = Phase.FORMING
    reason: str = "no stage has joined yet"
    members: dict[int, Member] = field(default_factory=dict)
    _since_s: float = 0.0
    _ticked_s: float = 0.0
    _awake_since_s: float = 0.0  # since when this ring has been listening without a break
    _retired: dict[int, deque[str]] = field(default_factory=dict)
    _flows: Flows = field(default_factory=Flows)

    @property
    def ready(self) -> bool:
        """True only while requests are really served."""
        return self.phase is Phase.SERVING

    def join(
        self, stage: int, process: str, data_address: str, now_s: float, *, seen: Seen = ("", 0)
    ) -> list[Action]:
        """A stage's process says that it exists; the same process may say so again."""
        if not 0 <= stage < self.stages:
            return []
        known = self.members.get(stage)
        if known is not None and known.process == process:
            known.last_heard_s = now_s
            known.data_address = data_address
            return []
        retired = self._retired.setdefault(stage, deque(maxlen=RETIRED_KEPT))
        is_retired = process in retired or pod_of(process) in retired
        if is_retired or (known is not None and self._is_older(seen, known.seen)):
            return [Refuse(stage, process, f"stage {stage} has a newer process")]
        self.members[stage] = Member(process, data_address, False, now_s, seen=seen)
        if known is None:
            return []
        old, pod = known.process, pod_of(known.process)
        retired.append(old if pod == pod_of(process) else pod)
        return self._pause(Phase.FORMING, f"stage {stage} was replaced and is loading")

    def heard(
        self,
        stage: int,
        process: str,
        loaded: bool,
        now_s: float,
        *,
        failed: bool = False,
        flow: Flow | None = None,
    ) -> list[Action]:
        """A heartbeat. The last missing `loaded` connects the ring. `flow`: of this epoch only."""
        member = self.members.get(stage)
        if member is None or member.process != process:
            return []
        member.last_heard_s = now_s
        member.loaded = loaded
        member.failed = failed
        if flow is not None and self.phase is Phase.SERVING:
            self._flows.heard(stage, (stage - 1) % self.stages, flow, now_s)
        if failed and self.phase is not Phase.FORMING:
            return self._pause(Phase.FORMING, self._missing(now_s))
        if self.phase is Phase.SUSPECT and not self._silent(now_s):
            return self._connect(now_s)
        if self.phase is Phase.FORMING:
            return self._connect_if_whole(now_s)
        return []

    def acknowledged(self, stage: int, epoch: int, now_s: float) -> list[Action]:
        """A stage has dropped older frames and its link to the next one stands."""
        member = self.members.get(stage)
        if member is None or epoch != self.epoch or self.phase is not Phase.CONNECTING:
            return []
        member.acknowledged_epoch = epoch
        if any(m.acknowledged_epoch != epoch for m in self.members.values()):
            return []
        self._enter(Phase.PROBING, "the ring is being probed", now_s)
        return [Probe(epoch)]

    def probed(self, epoch: int, now_s: float) -> list[Action]:
        """The probe step of this epoch came back whole."""
        if epoch != self.epoch or self.phase is not Phase.PROBING:
            return []
        self._enter(Phase.SERVING, "", now_s)
        self._flows.clear()
        return [Serve(epoch)]

    def broken(self, reason: str, now_s: float) -> list[Action]:
        """A frame was lost or could not be trusted: connect again under a new epoch."""
        if self.phase in (Phase.FORMING, Phase.CONNECTING):
            return []
        return [Pause(reason), *self._connect_if_whole(now_s)]

    def tick(
        self, now_s: float, *, oldest_step_age_s: float, predicted_step_s: float
    ) -> list[Action]:
        """Notice silence, overdue steps, and connections or probes that never end."""
        if now_s - self._ticked_s > self.suspect_after_s:
            self._awake_since_s = now_s
        self._ticked_s = now_s
        if self.phase is Phase.FORMING:
            return self._connect_if_whole(now_s)
        silent = self._silent(now_s)
        if silent and self.phase is not Phase.SUSPECT:
            return self._pause(Phase.SUSPECT, f"stage {silent[0]} has fallen silent")
        if self.phase in (Phase.CONNECTING, Phase.PROBING) and not silent:
            return self._connect(now_s) if now_s - self._since_s > PROBE_TIMEOUT_S else []
        limit_s = max(STEP_OVERDUE_FLOOR_S, STEP_OVERDUE_FACTOR * predicted_step_s)
        if self.phase is Phase.SERVING and oldest_step_age_s > limit_s:
            return self.broken(f"a step is overdue ({oldest_step_age_s:.1f} s)", now_s)
        if self.phase is Phase.SERVING and (stage := self._flows.lost(now_s)) is not None:
            return self.broken(f"a frame to stage {stage} was lost", now_s)
        return []

    def lost(self, now_s: float, replace_after_s: float) -> int | None:
        """The first stage whose process must be replaced: it failed, or was silent for longer
        than `replace_after_s`; None when there is none. A stage that never joined is not lost.

        Silence counts only while this ring itself was listening: one that was stopped and goes on
        has heard from nobody, and must not have everybody replaced.
        """
        for stage, member in sorted(self.members.items()):
            heard_s = max(member.last_heard_s, self._awake_since_s)
            if stage and (member.failed or now_s - heard_s > replace_after_s):
                return stage
        return None

    def _is_older(self, claimant: Seen, present: Seen) -> bool:
        """Whether a claimant began before the present member, as far as can be told.

        Who has seen nothing is new. Of two that served a stage 0 of before, the one that saw more
        of it, or a later one, came later: names of incarnations are in the order of their
        beginning. One that had seen nothing when it joined here came after them all.
        """
        incarnation, epoch = claimant
        if epoch == 0 or incarnation == self.incarnation:
            return False
        return present[1] == 0 or present >= claimant

    def _silent(self, now_s: float) -> list[int]:
        return [
            stage
            for stage, member in sorted(self.members.items())
            if now_s - member.last_heard_s > self.suspect_after_s
        ]

    def _connect_if_whole(self, now_s: float) -> list[Action]:
        whole = len(self.members) == self.stages and all(m.loaded for m in self.members.values())
        if not whole or self._silent(now_s):
            self.phase, self.reason = Phase.FORMING, self._missing(now_s)
            return []
        return self._connect(now_s)

    def _connect(self, now_s: float) -> list[Action]:
        if len(self.members) < self.stages or not all(m.loaded for m in self.members.values()):
            return self._pause(Phase.FORMING, self._missing(now_s))
        self.epoch += 1
        self._enter(Phase.CONNECTING, "the stages are being connected", now_s)
        addresses = tuple(
            self.members[(stage + 1) % self.stages].data_address for stage in range(self.stages)
        )
        return [Connect(self.epoch, addresses)]

    def _missing(self, now_s: float) -> str:
        for stage in range(self.stages):
            member = self.members.get(stage)
            if member is None:
                return f"stage {stage} has not joined"
            if now_s - member.last_heard_s > self.suspect_after_s:
                return f"stage {stage} has fallen silent"
            if member.failed:
                return f"stage {stage} has failed"
            if not member.loaded:
                return f"stage {stage} is loading"
        return "all stages have joined"

    def _pause(self, phase: Phase, reason: str) -> list[Action]:
        self.phase, self.reason = phase, reason
        return [Pause(reason)]

    def _enter(self, phase: Phase, reason: str, now_s: float) -> None:
        self.phase, self.reason, self._since_s = phase, reason, now_s


def pod_of(process: str) -> str:
    """The pod (or the run of a parent) that a process belongs to."""
    return process.partition(".")[0]
