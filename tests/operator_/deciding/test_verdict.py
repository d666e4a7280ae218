"""The verdict on one pod, a row per thing that can happen to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella_operator import reasons
from lamella_operator.deciding.verdict import judge
from lamella_operator.views import Exit, MemberView, PodView, RingView

NOW = 10_000.0
POD = PodView("m-0-1-aa", "uid", "stage", stage=1, created_s=NOW - 500)
PLACED = replace(POD, scheduled=True, node="node-1")
RUNS = replace(PLACED, running=True, phase="Running", started_s=NOW - 300)
READY = replace(RUNS, ready=True, ready_since_s=NOW - 200)
FAILED = replace(PLACED, phase="Failed")
OOM = Exit(137, "OOMKilled", "", NOW - 40, NOW - 5)
CRASH = Exit(1, "Error", "boom", NOW - 40, NOW - 5)
HOPELESS = Exit(78, "Error", '{"kind": "unsupported_family", "message": "no such mixer"}', 1, 2)
LONG_RUN = Exit(1, "Error", "boom", NOW - 5000, NOW - 5)
LONG_AGO = Exit(1, "Error", "boom", NOW - 5000, NOW - 4990)
SILENT = RingView(False, lost=1, members=(MemberView(1, "silent"),))
HEARD = RingView(True, members=(MemberView(1, "ready"),))

LIVES = {
    "unplaced": (POD, None, "Pending"),
    "placed": (PLACED, None, "Creating"),
    "image missing": (replace(PLACED, waiting_reason="ImagePullBackOff"), None, "Creating"),
    "running": (RUNS, None, "Loading"),
    "slice loaded": (READY, None, "Loaded"),
    "stage 0 serves": (replace(READY, stage=0), None, "Ready"),
    "stage 0 loaded": (
        replace(RUNS, stage=0),
        RingView(False, members=(MemberView(0, "ready"),)),
        "Loaded",
    ),
    "one exit, waiting": (replace(PLACED, last_exit=CRASH), None, "Creating"),
    "one exit, restarted": (replace(RUNS, restart_count=1, last_exit=CRASH), None, "Loading"),
    "exits far apart": (replace(PLACED, restart_count=4, last_exit=LONG_RUN), None, "Creating"),
    "exits long ago": (replace(RUNS, restart_count=4, last_exit=LONG_AGO), None, "Loading"),
    "two exits, ready again": (replace(READY, restart_count=2, last_exit=CRASH), None, "Loaded"),
    "silent, just started": (replace(RUNS, started_s=NOW - 5), SILENT, "Loading"),
    "silent, not started": (PLACED, SILENT, "Creating"),
    "its predecessor is silent": (RUNS, replace(SILENT, lost_uid="other"), "Loading"),
    "another is silent": (RUNS, RingView(False, lost=2), "Loading"),
    "stage 0 says stage 0": (replace(RUNS, stage=0), RingView(False, lost=0), "Loading"),
    "node not ready, heard": (replace(READY, node_ready=False), HEARD, "Loaded"),
}

LOST = {  # pod, ring; reason, own fault, by force, hopeless
    "being deleted": (replace(READY, deleted_s=NOW + 30), None, (reasons.STAGE_LOST, 0, 0, 0)),
    "past its grace": (
        replace(READY, deleted_s=NOW - 31),
        None,
        (reasons.STUCK_TERMINATING, 0, 0, 0),
    ),
    "failed": (FAILED, None, (reasons.STAGE_FAILED, 1, 0, 0)),
    "succeeded": (replace(PLACED, phase="Succeeded"), None, (reasons.STAGE_FAILED, 1, 0, 0)),
    "evicted": (replace(FAILED, reason="Evicted"), None, (reasons.EVICTED, 0, 0, 0)),
    "evicted by its own files": (
        replace(FAILED, reason="Evicted", message="emptyDir volume exceeds the limit 1Gi"),
        None,
        (reasons.EVICTED, 1, 0, 0),
    ),
    "preempted": (replace(FAILED, reason="Preempting"), None, (reasons.EVICTED, 0, 0, 0)),
    "node shut down": (replace(FAILED, reason="Terminated"), None, (reasons.NODE_LOST, 0, 0, 0)),
    "node lost": (replace(FAILED, reason="NodeLost"), None, (reasons.NODE_LOST, 0, 0, 0)),
    "kubelet refused": (
        replace(FAILED, reason="UnexpectedAdmissionError"),
        None,
        (reasons.UNEXPECTED_ADMISSION, 1, 0, 0),
    ),
    "out of gpu": (
        replace(FAILED, reason="OutOfnvidia.com/gpu"),
        None,
        (reasons.UNEXPECTED_ADMISSION, 1, 0, 0),
    ),
    "pod killed for memory": (
        replace(FAILED, last_exit=OOM),
        None,
        (reasons.OUT_OF_MEMORY, 1, 0, 0),
    ),
    "crash loop": (
        replace(PLACED, restart_count=1, last_exit=CRASH),
        None,
        (reasons.CRASH_LOOP, 1, 1, 0),
    ),
    "crash loop, runs again": (
        replace(RUNS, restart_count=2, last_exit=CRASH),
        None,
        (reasons.CRASH_LOOP, 1, 1, 0),
    ),
    "memory, twice": (
        replace(PLACED, restart_count=1, last_exit=OOM),
        None,
        (reasons.OUT_OF_MEMORY, 1, 1, 0),
    ),
    "hopeless": (replace(PLACED, last_exit=HOPELESS), None, (reasons.UNSUPPORTED_FAMILY, 1, 0, 1)),
    "hopeless, failed": (
        replace(FAILED, last_exit=HOPELESS),
        None,
        (reasons.UNSUPPORTED_FAMILY, 1, 0, 1),
    ),
    "silent": (RUNS, SILENT, (reasons.PEER_UNREACHABLE, 1, 1, 0)),
    "silent, though ready": (READY, SILENT, (reasons.PEER_UNREACHABLE, 1, 1, 0)),
    "silent by name": (
        replace(RUNS, started_s=NOW - 5),
        replace(SILENT, lost_uid="uid"),
        (reasons.PEER_UNREACHABLE, 1, 1, 0),
    ),
    "node gone": (replace(READY, node_ready=False), None, (reasons.NODE_LOST, 0, 1, 0)),
    "node gone, not heard": (
        replace(READY, node_ready=False),
        SILENT,
        (reasons.NODE_LOST, 0, 1, 0),
    ),
}


@pytest.mark.parametrize(("pod", "ring", "state"), LIVES.values(), ids=LIVES)
def test_a_pod_that_lives(pod: PodView, ring: RingView | None, state: str) -> None:
    verdict = judge(pod, NOW, ring)
    assert (verdict.state, verdict.loss) == (state, None)
    assert (verdict.note is None) == (state == "Ready")


@pytest.mark.parametrize(("pod", "ring", "want"), LOST.values(), ids=LOST)
def test_a_pod_that_is_lost(
    pod: PodView, ring: RingView | None, want: tuple[str, int, int, int]
) -> None:
    loss = judge(pod, NOW, ring).loss
    assert loss is not None
    assert (loss.note.reason, loss.own_fault, loss.force, loss.hopeless) == want
    assert loss.note.reason in reasons.ALL


def test_a_stage_that_cannot_read_its_slice_says_why() -> None:
    ring = RingView(False, members=(MemberView(1, "loading", error="no route to the hub"),))
    note = judge(RUNS, NOW, ring).note
    assert note is not None
    assert note.reason == reasons.HUB_UNREACHABLE
    assert note.message.endswith("tries again: no route to the hub")
