"""The one line: of all that could be said, the reason that a user should read first.

Refused before unresolved before unplanned before degraded before what the slowest pipeline waits
for (placing, image, loading, connecting) before a change that rolls before Ready. Reasons are from
the list in `reasons`; numbers stand in the message only.
"""

from __future__ import annotations

from lamella_contract.units import human
from lamella_operator import reasons
from lamella_operator.actions import Note, ReplicaSituation, Situation
from lamella_operator.desired.children import url
from lamella_operator.settings import Settings
from lamella_operator.status.progress import GOING, Counts, Loading
from lamella_operator.views import ModelView

RANK = ("Lost", "Pending", "Creating", "Loading", "Loaded", "Ready", "Draining")
"""States of a stage: what the first one waits for keeps the others waiting too."""
ON_THE_WAY = (
    reasons.STARTING,
    reasons.CONTAINER_CREATING,
    reasons.DOWNLOADING,
    reasons.LOADING_WEIGHTS,
    reasons.CONNECTING,
    reasons.STAGE_LOST,
)
"""Of a pipeline that has served before they are steps of its recovery."""


def summary(model: ModelView, situation: Situation, settings: Settings) -> Note:
    """Reason and message of the whole model."""
    blocked = blocker(situation)
    if blocked is not None:
        return blocked
    counts = Counts.of(situation)
    if situation.paused:
        return Note(
            reasons.PAUSED, f"nothing is changed while spec.paused is true; {_so_far(counts)}"
        )
    if situation.wanted_replicas == 0:
        return _none_wanted(situation)
    waiting = waits_for(situation)
    if waiting is not None and counts.ready < counts.wanted:
        return waiting
    if situation.gateways_ready == 0:
        return no_gateway(situation)
    if situation.rolling is not None:
        return situation.rolling
    if counts.updated_ready < counts.wanted:
        return waiting or Note(reasons.STARTING, f"{_so_far(counts)}; pods are being made")
    return Note(reasons.READY, f"{_so_far(counts)} {served_name(model)} at {url(model, settings)}")


def blocker(situation: Situation) -> Note | None:
    """What keeps everything else from mattering, if anything does."""
    for note in (situation.refused, situation.unresolved, situation.unplanned):
        if note is not None:
            return note
    return situation.degraded


def stalled(situation: Situation) -> Note | None:
    """What only a user can change, if that is what is missing."""
    return situation.refused or situation.unplanned or situation.degraded


def waits_for(situation: Situation) -> Note | None:
    """What the pipeline that is furthest from ready waits for; None: all that exist serve."""
    late = [
        replica for replica in situation.replicas if not replica.ready and replica.state != GOING
    ]
    if not late:
        return None
    replica = min(late, key=lambda one: (_rank(one), one.replica))
    note = replica.note or _usual(replica)
    recovers = replica.state == "Recovering" and note.reason in ON_THE_WAY
    reason = reasons.RECOVERING if recovers else note.reason
    before = _lost_before(replica)
    if note.reason in (reasons.LOADING_WEIGHTS, reasons.DOWNLOADING):
        loading = Loading.of(late)
        if loading.is_read:
            return Note(reason, f"{before}loading weights: {loading.text}")
    joint = "," if note.message.startswith("stage ") else ":"
    return Note(reason, f"pipeline {replica.replica}{joint} {before}{note.message}")


def no_gateway(situation: Situation) -> Note:
    """Why no request could be taken."""
    note = situation.gateway_note
    if note is not None:
        return note
    return Note(
        reasons.GATEWAY_NOT_READY,
        f"0 of {situation.gateways_wanted} gateways are ready to take requests",
    )


def resolved(situation: Situation) -> str:
    """What is known of the model, in a few words."""
    profile = situation.profile
    if profile is None:
        return "the model's profile is known"
    commit = f"commit {profile.commit[:12]}, " if profile.commit else ""
    return (
        f"{commit}{profile.num_layers} layers, {human(profile.weight_bytes)} in {profile.dtype}, "
        f"at most {profile.max_model_len:,} tokens"
    )


def planned(situation: Situation) -> str:
    """What the plan says, in a few words."""
    plan = situation.plan
    if plan is None:
        return ""
    largest = max(stage.weight_bytes for stage in plan.stages)
    return (
        f"{len(plan.stages)} stages of up to {human(largest)}, {plan.kv_tokens:,} tokens of cache, "
        f"{plan.max_model_len:,} per request"
    )


def served_name(model: ModelView) -> str:
    """What clients ask for."""
    return model.name if model.spec is None else model.spec.model.served_name


def _none_wanted(situation: Situation) -> Note:
    going = len(situation.replicas)
    if going:
        return Note(reasons.SCALING, f"no pipeline is wanted; {going} are being removed")
    return Note(reasons.SCALED_TO_ZERO, "no pipeline is wanted; profile and plan are kept")


def _so_far(counts: Counts) -> str:
    return f"{counts.ready} of {counts.wanted} pipelines serve"


def _rank(replica: ReplicaSituation) -> int:
    return min((RANK.index(stage.state) for stage in replica.stages), default=0)


def _usual(replica: ReplicaSituation) -> Note:
    """What a state says where nobody said more."""
    states = [stage.state for stage in replica.stages]
    first = RANK[_rank(replica)] if states else "Pending"
    stage = states.index(first) if first in states else 0
    reason, text = {
        "Lost": (reasons.RECOVERING, "it is being replaced"),
        "Pending": (reasons.STARTING, "it waits for a node"),
        "Creating": (reasons.CONTAINER_CREATING, "its container is being made"),
        "Loading": (reasons.LOADING_WEIGHTS, "it reads its slice"),
    }.get(first, (reasons.CONNECTING, "its slice is loaded, the ring is open"))
    return Note(reason, f"stage {stage}: {text}")


def _lost_before(replica: ReplicaSituation) -> str:
    """That a pipeline has lost stages before, and which."""
    lost = [stage for stage in replica.stages if stage.restarts and stage.state != "Ready"]
    if not lost:
        return ""
    most = max(lost, key=lambda stage: stage.restarts)
    times = "once" if most.restarts == 1 else f"{most.restarts} times"
    return f"(stage {most.stage} was replaced {times}) "
