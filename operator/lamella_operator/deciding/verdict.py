"""What becomes of one pod of a stage: it lives, it waits, or it is lost and why.

Knows one pod and what its stage 0 says of it; whether a lost one is replaced, and when, is for
`budget` and `replacing`. Times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lamella_contract import errors
from lamella_contract.units import human
from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.deciding import words
from lamella_operator.views import MemberView, PodView, RingView

STUCK_S = 30.0
"""After its grace period a pod should be gone within this time; then it is deleted by force."""
GHOST_S = 120.0
"""A pod that even force has not removed after this time is left out of every count."""
CRASH_S = 600.0
"""Two container exits within this time replace the pod; so long the first is remembered."""
JOIN_S = 120.0
"""From its container's start a stage has this time to register with stage 0, before what stage 0
says of a lost stage, without saying of which pod, is taken to be about it."""
BLOCKED_S = 60.0
"""After this time a container that cannot start needs the user."""

HOPELESS = frozenset(
    {
        errors.InvalidConfig.kind,
        errors.UnsupportedFamily.kind,
        errors.MissingTensor.kind,
        words.NEEDS_CONVERSION,
    }
)
"""Kinds of failure that a new pod of the same revision must meet again."""

_BLAMELESS = ("Evicted", "NodeLost", "Preempting", "Terminated", "NodeShutdown", "Shutdown")
_OWN_EVICTION = ("exceeds the total limit", "exceeds the limit")  # of its ephemeral storage


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a pod is lost. ``own_fault``: it counts against maxRestarts. ``force``: it may still
    run and is deleted without grace. ``hopeless``: a new pod would fail alike."""

    note: Note
    own_fault: bool = False
    force: bool = False
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """``state`` is one of `STAGE_STATES`; ``note`` says why it is not Ready."""

    pod: PodView
    state: str
    loss: Loss | None = None
    note: Note | None = None
    member: MemberView | None = None

    @property
    def alive(self) -> bool:
        return self.loss is None


def ghost(pod: PodView, now_s: float) -> bool:
    """Whether it should have been gone for so long that nothing may wait for it."""
    return pod.deleted_s is not None and now_s > pod.deleted_s + STUCK_S + GHOST_S


def stuck(pod: PodView, now_s: float) -> bool:
    """Whether it is being deleted and past its time."""
    return pod.deleted_s is not None and now_s > pod.deleted_s + STUCK_S


def judge(
    pod: PodView, now_s: float, ring: RingView | None, needs: Mapping[str, str] | None = None
) -> Verdict:
    """The verdict on ``pod``; ``needs`` is what it asks for. Counts of its pipeline's placed
    stages are filled in by `slots`, which sees all of them."""
    member = _member(ring, pod.stage)
    loss = find_loss(pod, now_s, ring, member)
    if loss is not None:
        return Verdict(pod, "Lost", loss, loss.note, member)
    state, note = _progress(pod, ring, member, needs or {})
    return Verdict(pod, state, None, note, member)


def find_loss(
    pod: PodView, now_s: float, ring: RingView | None, member: MemberView | None
) -> Loss | None:
    """Why the pod is lost; None while it lives or may yet."""
    if pod.deleted_s is not None:
        if stuck(pod, now_s):
            words_ = "it should have ended and has not: it is deleted by force"
            return Loss(Note(reasons.STUCK_TERMINATING, words_))
        return Loss(Note(reasons.STAGE_LOST, "its pod is being deleted"))
    if pod.phase in ("Failed", "Succeeded"):
        return _failed(pod)
    if _node_gone(pod, member):
        return Loss(Note(reasons.NODE_LOST, f"node {pod.node} is not ready"), force=True)
    crashed = _crashed(pod, now_s)
    if crashed is not None:
        return crashed
    if ring is not None and ring.lost == pod.stage and _is_meant(pod, ring, now_s):
        said = f": {member.error}" if member is not None and member.error else ""
        text = f"stage 0 has not heard of it for too long, or it reports a failure{said}"
        return Loss(Note(reasons.PEER_UNREACHABLE, text), own_fault=True, force=True)
    return None


def exits(pod: PodView) -> int:
    """How often its container has ended."""
    return pod.restart_count + (1 if pod.last_exit is not None and not pod.running else 0)


def blocked(pod: PodView, now_s: float) -> bool:
    """Whether its container has waited so long for something that only a user can change."""
    return pod.waiting_reason in words.BLOCKED and now_s - pod.created_s > BLOCKED_S


def _failed(pod: PodView) -> Loss:
    if pod.reason in _BLAMELESS:
        own = any(text in pod.message for text in _OWN_EVICTION)
        return Loss(words.failed(pod), own_fault=own)
    return Loss(words.failed(pod), own_fault=True, hopeless=_hopeless(pod))


def _hopeless(pod: PodView) -> bool:
    return pod.last_exit is not None and words.told(pod.last_exit)[0] in HOPELESS


def _node_gone(pod: PodView, member: MemberView | None) -> bool:
    """A node that is not ready may only be cut off: stage 0, which hears the stage, knows best."""
    heard = member is not None and member.state in ("loading", "ready")
    return not pod.node_ready and not heard


def _crashed(pod: PodView, now_s: float) -> Loss | None:
    """The first exit restarts the container in its place; a second soon after needs a new pod."""
    last = pod.last_exit
    if last is None or pod.ready:
        return None
    if _hopeless(pod):
        return Loss(words.ended(last), own_fault=True, hopeless=True)
    quick = last.finished_s - last.started_s < CRASH_S
    recent = not pod.running or now_s - last.finished_s < CRASH_S
    if exits(pod) < 2 or not quick or not recent:
        return None
    why = words.ended(last)
    reason = reasons.CRASH_LOOP if why.reason == reasons.STAGE_FAILED else why.reason
    text = f"its container ended twice within {CRASH_S / 60:.0f} minutes; last: {why.message}"
    return Loss(Note(reason, text), own_fault=True, force=True)


def _is_meant(pod: PodView, ring: RingView, now_s: float) -> bool:
    """Whether stage 0 speaks of this pod, and not of one that was in its place before."""
    if ring.lost_uid:
        return ring.lost_uid == pod.uid
    return pod.stage > 0 and pod.running and now_s - pod.started_s > JOIN_S


def _member(ring: RingView | None, stage: int) -> MemberView | None:
    if ring is None:
        return None
    return next((member for member in ring.members if member.stage == stage), None)


def _progress(
    pod: PodView, ring: RingView | None, member: MemberView | None, needs: Mapping[str, str]
) -> tuple[str, Note | None]:
    """State and note of a pod that lives."""
    if not pod.scheduled:
        return "Pending", words.unschedulable(pod.unschedulable, needs, 0, 0)
    if not pod.running:
        return "Creating", words.waiting(pod)
    if pod.ready and pod.stage == 0:
        return "Ready", None
    loaded = pod.ready if pod.stage else member is not None and member.state == "ready"
    if loaded:
        said = f": {ring.reason}" if ring is not None and ring.reason else ""
        return "Loaded", Note(reasons.CONNECTING, f"its slice is loaded, the ring is open{said}")
    return "Loading", _loading(pod, member)


def _loading(pod: PodView, member: MemberView | None) -> Note:
    again = ""
    if pod.last_exit is not None and pod.restart_count:
        again = f" (restarted {pod.restart_count} times; {words.ended(pod.last_exit).message})"
    if member is not None and member.error:
        # a stage that cannot reach its model stays, says why, and tries again
        return Note(
            reasons.HUB_UNREACHABLE, f"cannot read its slice and tries again: {member.error}"
        )
    if member is None or not member.bytes_total:
        return Note(reasons.LOADING_WEIGHTS, f"its process starts{again}")
    percent = 100 * member.bytes_done // member.bytes_total
    return Note(
        reasons.LOADING_WEIGHTS,
        f"reads its slice: {human(member.bytes_done)} of {human(member.bytes_total)} ({percent}%), "
        f"{human(int(member.bytes_per_s))}/s{again}",
    )
