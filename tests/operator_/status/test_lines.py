"""Each failure as a user reads it in ``kubectl get sm`` and in the conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.settings import GIB, MIB

KNOWN = "Accepted ModelResolved"
PLACED = f"{KNOWN} StagesScheduled"
LOADED = f"{PLACED} WeightsReady"
CLOSED = f"{LOADED} PipelineConnected"
MOVES = "Progressing Reconciling"
GIVEN_UP = "stage 1 is not replaced again (6 failures in a row)"
SCARCE = "no node has 1 free nvidia.com/gpu: 1 of 2 stages are placed"
WRONG = "spec.replicas: got -1, want 0 or more"
ABSENT = "hf://Qwen/Qwen3: no such repository"
AWAY = "no route; next try in 40 s"

Rows = dict[str, tuple[Callable[[Any], Any], tuple[str, str, str, str], str]]


def _nothing_known(lab: Any, **changes: Any) -> Any:
    known = {"profile": None, "plan": None, "revision": "", "profile_message": ""}
    return dataclasses.replace(lab.known, **known, **changes)


def _one(state: str, *said: str, replica: str = "Starting", **more: Any) -> Callable[[Any], Any]:
    """One pipeline whose stage 1 is in ``state``; its note is the pipeline's too."""

    def made(lab: Any) -> Any:
        stages = lab.stage(0, "Loaded"), lab.stage(1, state, *said, **more)
        note = Note(said[0], f"stage 1: {said[1]}") if said else None
        return lab.situation(lab.replica(replica, *stages, said=note))

    return made


# situation; reason, READY, STAGES, the conditions that are True; message
ROWS: Rows = {
    "manifest does not parse": (
        lambda lab: _nothing_known(lab, refused=Note("InvalidSpec", WRONG)),
        ("InvalidSpec", "0/1", "0/?", "Stalled"),
        WRONG,
    ),
    "model not found": (
        lambda lab: _nothing_known(
            lab, unresolved=Note("ModelNotFound", ABSENT), degraded=Note("ModelNotFound", ABSENT)
        ),
        ("ModelNotFound", "0/1", "0/?", "Accepted Degraded Stalled"),
        ABSENT,
    ),
    "hub away": (
        lambda lab: _nothing_known(lab, unresolved=Note("HubUnreachable", AWAY)),
        ("HubUnreachable", "0/1", "0/?", "Accepted Progressing Reconciling"),
        AWAY,
    ),
    "does not fit": (
        lambda lab: dataclasses.replace(
            lab.known,
            plan=None,
            revision="",
            unplanned=Note("DoesNotFit", "stage 0 needs 9.1 GiB, has 8.0 GiB: take 3 stages"),
        ),
        ("DoesNotFit", "0/1", "0/?", "ModelResolved Stalled"),
        "stage 0 needs 9.1 GiB, has 8.0 GiB: take 3 stages",
    ),
    "given up": (
        lambda lab: lab.situation(
            lab.replica(
                "Degraded", lab.stage(0, "Loaded"), lab.stage(1, "Lost", "RetriesExhausted", "x")
            ),
            degraded=Note("RetriesExhausted", GIVEN_UP),
        ),
        ("RetriesExhausted", "0/1", "1/2", f"{KNOWN} Degraded Stalled"),
        GIVEN_UP,
    ),
    "no GPU": (
        _one("Pending", "InsufficientGPU", SCARCE),
        ("InsufficientGPU", "0/1", "1/2", f"{KNOWN} {MOVES}"),
        f"pipeline 0, stage 1: {SCARCE}",
    ),
    "bad image": (
        _one("Creating", "ImagePull", "its image cannot be pulled: not found"),
        ("ImagePull", "0/1", "1/2", f"{PLACED} {MOVES}"),
        "pipeline 0, stage 1: its image cannot be pulled: not found",
    ),
    "loading": (
        _one(
            "Loading", "LoadingWeights", "reads its slice", bytes_done=GIB, bytes_per_s=64.0 * MIB
        ),
        ("LoadingWeights", "0/1", "1/2", f"{PLACED} {MOVES}"),
        "loading weights: 3.3 GiB of 4.6 GiB (71%), 64.0 MiB/s, 21 s left",
    ),
    "loading again": (
        _one("Loading", "LoadingWeights", "its process starts", replica="Recovering", restarts=2),
        ("Recovering", "0/1", "1/2", f"{PLACED} {MOVES}"),
        "pipeline 0, (stage 1 was replaced 2 times) stage 1: its process starts",
    ),
    "ring open": (
        _one("Loaded"),
        ("Connecting", "0/1", "2/2", f"{LOADED} {MOVES}"),
        "pipeline 0, stage 0: its slice is loaded, the ring is open",
    ),
    "killed for memory": (
        _one(
            "Lost", "OutOfMemory", "the kernel killed it at its memory limit", replica="Recovering"
        ),
        ("OutOfMemory", "0/1", "1/2", f"{KNOWN} {MOVES}"),
        "pipeline 0, stage 1: the kernel killed it at its memory limit",
    ),
    "gave way": (
        lambda lab: lab.situation(
            lab.replica(
                "Yielded",
                lab.stage(0, "Pending"),
                lab.stage(1, "Pending"),
                said=Note("YieldedCapacity", "it gave its nodes back to an older pipeline"),
            )
        ),
        ("YieldedCapacity", "0/1", "0/2", f"{KNOWN} {MOVES}"),
        "pipeline 0: it gave its nodes back to an older pipeline",
    ),
    "no gateway": (
        lambda lab: lab.situation(lab.ready(), gateways_ready=0),
        ("GatewayNotReady", "1/1", "2/2", f"{CLOSED} {MOVES}"),
        "0 of 2 gateways are ready to take requests",
    ),
    "rolling": (
        lambda lab: lab.situation(
            lab.ready(),
            lab.ready(1, updated=False),
            wanted_replicas=2,
            rolling=Note("RollingOut", "1 of 2 pipelines are of the new revision"),
        ),
        ("RollingOut", "2/2", "4/4", f"{CLOSED} Available {MOVES}"),
        "1 of 2 pipelines are of the new revision",
    ),
    "one of two is late": (
        lambda lab: lab.situation(
            lab.ready(),
            lab.replica(
                "Starting",
                lab.stage(0, "Pending"),
                lab.stage(1, "Pending"),
                index=1,
                said=Note("QuotaExceeded", "pods: used 4, limited 4"),
            ),
            wanted_replicas=2,
        ),
        ("QuotaExceeded", "1/2", "2/4", f"{KNOWN} Available {MOVES}"),
        "pipeline 1: pods: used 4, limited 4",
    ),
    "paused": (
        lambda lab: lab.situation(lab.ready(updated=False), paused=True),
        ("Paused", "1/1", "2/2", f"{CLOSED} Available"),
        "nothing is changed while spec.paused is true; 1 of 1 pipelines serve",
    ),
    "to zero": (
        lambda lab: lab.situation(
            lab.replica("Draining", lab.stage(0, "Draining")), wanted_replicas=0
        ),
        ("Scaling", "0/0", "0/0", f"Ready {CLOSED}"),
        "no pipeline is wanted; 1 are being removed",
    ),
    "at zero": (
        lambda lab: lab.situation(wanted_replicas=0),
        ("ScaledToZero", "0/0", "0/0", f"Ready {CLOSED}"),
        "no pipeline is wanted; profile and plan are kept",
    ),
    "ready": (
        lambda lab: lab.situation(lab.ready(), recovery_needs_hub=True),
        ("Ready", "1/1", "2/2", f"Ready {CLOSED} Available RecoveryNeedsHub"),
        "1 of 1 pipelines serve qwen3 at http://qwen3.ai.svc.cluster.local:8000/v1",
    ),
}


@pytest.mark.parametrize(("situation", "columns", "message"), ROWS.values(), ids=ROWS)
def test_what_a_user_reads(
    lab: Any,
    faults: Callable[[Any], list[str]],
    situation: Callable[[Any], Any],
    columns: tuple[str, str, str, str],
    message: str,
) -> None:
    found = lab.document(situation(lab))
    holds = [each["type"] for each in found["conditions"] if each["status"] == "True"]
    shown = (found["reason"], found["ready"], found["stages"], " ".join(holds))
    assert shown == columns
    assert found["message"] == message
    assert faults(found) == []
    ready = found["conditions"][0]
    assert ready["type"] == "Ready"
    assert ready["reason"] == found["reason"]
    for each in found["conditions"]:
        assert each["reason"] in reasons.ALL
        assert each["message"]
        assert each["observedGeneration"] == found["observedGeneration"] == 3


def test_what_was_known_stays_while_a_manifest_is_refused(lab: Any) -> None:
    before = lab.document(lab.situation(lab.ready(), resumed="a"))
    refused = _nothing_known(lab, refused=Note("InvalidSpec", "spec.x: unknown"), profile_key="")
    after = lab.document(refused, before)
    for key in ("profile", "plan", "commit", "currentRevision", "updateRevision", "resumed"):
        assert after[key] == before[key]
    assert "pipelines" not in after
    too_old = dataclasses.replace(refused, refused=Note("CRDTooOld", "update the CRD"))
    assert lab.document(too_old, before)["pipelines"] == before["pipelines"]
    assert lab.document(too_old, before)["ready"] == "1/1"


def test_the_current_revision_is_the_one_that_all_had_last(lab: Any) -> None:
    new = lab.made.revision.hash
    old = lab.document(lab.situation(lab.ready(updated=False)))
    assert (old["currentRevision"], old["updateRevision"]) == ("0ld0ld0ld0", new)
    both = lab.situation(lab.ready(), lab.ready(1, updated=False), wanted_replicas=2)
    half = lab.document(both, old)
    assert half["currentRevision"] == "0ld0ld0ld0"
    assert half["updatedReplicas"] == 1
    assert lab.document(lab.situation(lab.ready()), half)["currentRevision"] == new


def test_failures_are_kept_with_their_time_newest_first(lab: Any) -> None:
    status: dict[str, Any] = {}
    for n in range(7):
        failed = lab.situation(lab.ready(), failures=(Note("StageFailed", f"line {n}"),))
        status = lab.document(failed, status, after_s=n)
        status = lab.document(failed, status, after_s=n + 0.5)  # told once
    shown = [(each["message"], each["time"][-3:]) for each in status["failures"]]
    assert shown == [(f"line {n}", f"{20 + n}Z") for n in (6, 5, 4, 3, 2)]
