"""What the status is told: the first thing that a user should read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from operator_world import SETTINGS, World, make_body

from lamella_operator import reasons
from lamella_operator.actions import Situation
from lamella_operator.deciding.decide import decide
from lamella_operator.views import MemberView, Observed, PodView, Refusal, RingView


def serving() -> Observed:
    world = World()
    model = world.apply("m", make_body())
    world.settle()
    return world.observe(model)


def told(observed: Observed) -> Situation:
    return decide(observed, SETTINGS).situation


def each(change: Callable[[PodView], PodView]) -> Observed:
    observed = serving()
    return replace(observed, pods=tuple(change(pod) for pod in observed.pods))


def starting(pod: PodView) -> PodView:
    return replace(
        pod, scheduled=False, node="", running=False, ready=False, phase="Pending", started_s=0.0
    )


def placed(pod: PodView) -> PodView:
    return replace(starting(pod), scheduled=True, node="node-7")


def test_a_pipeline_that_serves_needs_no_words() -> None:
    situation = told(serving())
    [pipeline] = situation.replicas
    assert (pipeline.state, pipeline.note, pipeline.updated) == ("Ready", None, True)
    assert [stage.state for stage in pipeline.stages] == ["Ready", "Ready"]
    assert all(stage.bytes_done == stage.bytes_total > 0 for stage in pipeline.stages)
    assert situation.recovery_needs_hub
    assert situation.capacity_known
    assert situation.degraded is situation.rolling is situation.gateway_note is None


def test_a_slice_that_is_read_is_told_with_bytes_and_speed() -> None:
    gib = 1 << 30
    observed = each(lambda pod: replace(pod, ready=False))
    members = (MemberView(0, "ready"), MemberView(1, "loading", 2 * gib, 8 * gib, gib / 4))
    observed = replace(observed, rings={0: RingView(False, "stage 1 loads", None, members)})
    [pipeline] = told(observed).replicas
    assert pipeline.note is not None
    assert pipeline.note.reason == reasons.LOADING_WEIGHTS
    text = "stage 1: reads its slice: 2.0 GiB of 8.0 GiB (25%), 256.0 MiB/s"
    assert pipeline.note.message == text
    assert pipeline.stages[1].bytes_done == 2 * gib
    assert [stage.state for stage in pipeline.stages] == ["Loaded", "Loading"]


STATES = {
    "unplaced": (starting, "Pending", reasons.STARTING),
    "placed": (placed, "Creating", reasons.CONTAINER_CREATING),
    "no image": (
        lambda pod: replace(placed(pod), waiting_reason="ErrImagePull"),
        "Creating",
        reasons.IMAGE_PULL,
    ),
    "deleted": (lambda pod: replace(pod, deleted_s=1e6), "Lost", reasons.STAGE_LOST),
    "evicted": (
        lambda pod: replace(pod, phase="Failed", reason="Evicted"),
        "Lost",
        reasons.EVICTED,
    ),
}


@pytest.mark.parametrize(("change", "state", "reason"), STATES.values(), ids=STATES)
def test_each_stage_says_what_it_waits_for(
    change: Callable[[PodView], PodView], state: str, reason: str
) -> None:
    [pipeline] = told(each(change)).replicas
    assert {stage.state for stage in pipeline.stages} == {state}
    assert pipeline.note is not None
    assert pipeline.note.reason == reason
    assert pipeline.note.message.startswith("stage 0: ")


def test_a_pipeline_that_has_served_recovers_and_a_new_one_starts() -> None:
    observed = each(placed)
    assert told(observed).replicas[0].state == "Recovering"
    new = replace(observed, model=replace(observed.model, status={}))
    assert told(new).replicas[0].state == "Starting"


REFUSALS = {
    "quota": (Refusal("QuotaExceeded", "exceeded quota", 0, 1), None),
    "service": (Refusal("NameConflict", "Service m is theirs"), reasons.NAME_CONFLICT),
    "unknown word": (Refusal("Teapot", "no"), reasons.ADMISSION_REFUSED),
}


@pytest.mark.parametrize(("refusal", "degraded"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_where_it_matters(refusal: Refusal, degraded: str | None) -> None:
    observed = each(lambda pod: replace(pod, ready=False))
    lost = tuple(pod for pod in observed.pods if pod.stage == 0)
    situation = told(replace(observed, pods=lost, refusals=(refusal,)))
    assert (situation.degraded.reason if situation.degraded else None) == degraded
    if refusal.stage is not None:
        note = situation.replicas[0].note
        assert note is not None
        assert (note.reason, note.message) == (refusal.reason, refusal.message)
    assert situation.yielded_s == ()


def test_a_revision_of_another_version_is_not_guessed_at() -> None:
    observed = serving()
    broken = tuple(
        replace(one, document={**one.document, "version": 99}) for one in observed.revisions
    )
    pods = tuple(pod for pod in observed.pods if pod.stage == 0)
    frozen = replace(observed.model, spec=None, problem="spec.newField: unknown")
    situation = told(replace(observed, revisions=broken, pods=pods, model=frozen))
    assert situation.refused is not None
    assert situation.refused.message == "spec.newField: unknown"
    assert decide(replace(observed, revisions=broken, model=frozen), SETTINGS).actions == ()
