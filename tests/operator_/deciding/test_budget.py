"""How often and how soon a stage is replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operator_world import Model, make_body

from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.deciding import budget
from lamella_operator.deciding.verdict import Loss
from lamella_operator.views import Exit, ModelView, PodView

NOW = 100_000.0
POD = PodView("m-0-1-aa", "uid", "stage", stage=1, created_s=NOW - 100, restarts=3)
OWN = Loss(Note(reasons.CRASH_LOOP, "x"), own_fault=True)
OTHERS = Loss(Note(reasons.EVICTED, "x"))
ENDED = Exit(1, "Error", "", NOW - 60, NOW - 4)


def model(*, resume: str = "", told: int | None = None, most: int = 5) -> ModelView:
    stages = [] if told is None else [{"stage": 1, "podUID": "uid", "restarts": told}]
    annotations = {"lamella.dev/resume": resume} if resume else {}
    status: dict[str, Any] = {"pipelines": [{"replica": 0, "stages": stages}]}
    body = make_body(recovery={"maxRestarts": most})
    return Model("m", "u", 0.0, body, annotations=annotations, status=status).view()


@pytest.mark.parametrize(
    ("count", "pause"),
    list(enumerate([0, 0, 10, 20, 40, 80, 160, 300, 300])),
)
def test_pauses_grow(count: int, pause: float) -> None:
    assert budget.backoff_s(count) == pause


COUNTS = {
    "as the pod says": (POD, model(), 3),
    "as the status says": (POD, model(told=0), 0),
    "the status says more": (POD, model(told=9), 3),
    "of another resume": (POD, model(resume="2"), 0),
    "of this resume": (replace(POD, resume="2"), model(resume="2"), 3),
    "ready for nine minutes": (replace(POD, ready=True, ready_since_s=NOW - 540), model(), 3),
    "ready for ten minutes": (replace(POD, ready=True, ready_since_s=NOW - 600), model(), 0),
    "ran for an hour": (replace(POD, last_exit=Exit(1, "", "", NOW - 3700, NOW)), model(), 0),
    "ran for a minute": (replace(POD, last_exit=ENDED), model(), 3),
}


@pytest.mark.parametrize(("pod", "of", "want"), COUNTS.values(), ids=COUNTS)
def test_what_is_held_against_a_pod(pod: PodView, of: ModelView, want: int) -> None:
    assert budget.counted(pod, of, NOW) == want
    assert budget.next_count(pod, OWN, of, NOW) == want + 1
    assert budget.next_count(pod, OTHERS, of, NOW) == want


ENDS = {
    "within": (POD, OWN, model(most=4), False),
    "beyond": (POD, OWN, model(most=3), True),
    "not its fault": (POD, OTHERS, model(most=0), False),
    "hopeless": (POD, replace(OWN, hopeless=True), model(), True),
    "hopeless, before a resume": (POD, replace(OWN, hopeless=True), model(resume="1"), False),
    "none allowed": (replace(POD, restarts=0), OWN, model(most=0), True),
}


@pytest.mark.parametrize(("pod", "loss", "of", "want"), ENDS.values(), ids=ENDS)
def test_when_it_ends(pod: PodView, loss: Loss, of: ModelView, want: bool) -> None:
    assert budget.exhausted(pod, loss, of, NOW) is want


def test_the_pause_begins_when_the_container_ended() -> None:
    pod = replace(POD, last_exit=ENDED)
    assert budget.due_s(pod, OWN, model(), NOW) == ENDED.finished_s + 40
    assert budget.due_s(pod, OTHERS, model(), NOW) < NOW
    fresh = replace(POD, created_s=NOW - 1)
    assert budget.due_s(fresh, OTHERS, model(), NOW) == NOW + 9
