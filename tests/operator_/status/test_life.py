"""A model's life as its status tells it: whole documents, and one Event per transition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import yaml

from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.settings import GIB
from lamella_operator.status.document import should_write
from lamella_operator.status.events import events


def _life(lab: Any) -> dict[str, tuple[float, Any]]:
    """What is found, and when (seconds), from apply to Ready and through a loss."""
    unknown = dataclasses.replace(
        lab.known, profile=None, profile_message="", plan=None, revision="", gateways_ready=0
    )
    scarce = ("InsufficientGPU", "no node has 1 free nvidia.com/gpu: 1 of 2 stages are placed")
    stage, replica, found = lab.stage, lab.replica, lab.situation
    half = {"bytes_done": GIB, "bytes_per_s": 128 * 1024.0 * 1024}
    read = ("LoadingWeights", "stage 0: reads its slice")
    return {
        "resolving": (
            0, dataclasses.replace(unknown, inspect_attempts=1, unresolved=Note(
                reasons.RESOLVING, "an inspector pod reads the model's config and headers"))),
        "placing": (
            4, found(replica("Starting", stage(0, "Creating"), stage(1, "Pending", *scarce),
                             said=Note(scarce[0], f"stage 1: {scarce[1]}")), gateways_ready=0)),
        "creating": (
            9, found(replica("Starting", stage(0, "Creating"), stage(1, "Creating"),
                             said=Note(reasons.CONTAINER_CREATING, "stage 0: its container is "
                                       "being made on node-1 (image, volumes, network)")))),
        "loading": (
            30, found(replica("Starting", stage(0, "Loading", *read, **half), stage(1, "Loaded"),
                              said=Note(*read)))),
        "connecting": (
            45, found(replica("Starting", stage(0, "Loaded"), stage(1, "Loaded"),
                              said=Note(reasons.CONNECTING, "its slices are loaded, the ring is "
                                        "being closed")))),
        "ready": (46, found(lab.ready())),
        "lost": (
            100, found(replica("Recovering", stage(0, "Loaded"),
                               stage(1, "Lost", "NodeLost", "node node-2 is not ready"),
                               said=Note("NodeLost", "stage 1: node node-2 is not ready")),
                       failures=(Note("NodeLost", "qwen3-0-1-x on node-2: not ready"),))),
        "recovering": (
            101, found(replica("Recovering", stage(0, "Loaded"),
                               stage(1, "Loading", *read, restarts=1, **half), said=Note(*read)))),
        "ready again": (110, found(lab.ready())),
    }  # fmt: skip


def test_the_life_of_a_model(
    lab: Any, golden: Callable[[str, str], None], faults: Callable[[Any], list[str]]
) -> None:
    shown, old = [], {}
    for moment, (after_s, situation) in _life(lab).items():
        new = lab.document(situation, old, after_s)
        assert faults(new) == []
        assert should_write(old, new, 0.0, 1.0)
        told = [f"{event.type} {event.reason}: {event.message}" for event in events(old, new)]
        shown.append({"moment": moment, "events": told, "status": new})
        old = new
    golden("status-life.yaml", yaml.safe_dump_all(shown, width=100, sort_keys=False))


def test_times_change_with_the_condition_only(lab: Any) -> None:
    first = lab.document(lab.situation(lab.ready()), after_s=5)
    again = lab.document(lab.situation(lab.ready()), first, after_s=500)
    assert again == first
    lost = lab.document(
        lab.situation(lab.replica("Recovering", lab.stage(0, "Loaded"), lab.stage(1, "Lost"))),
        again,
        after_s=600,
    )
    since = {each["type"]: each["lastTransitionTime"][-9:] for each in lost["conditions"]}
    assert since["Ready"] == "22:23:20Z"
    assert since["ModelResolved"] == since["Accepted"] == "22:13:25Z"


def test_a_status_is_written_for_a_reason_at_once_for_numbers_now_and_then(lab: Any) -> None:
    def loading(done: int) -> Any:
        stage = lab.stage(0, "Loading", bytes_done=done, bytes_per_s=1000.0)
        return lab.document(lab.situation(lab.replica("Starting", stage, lab.stage(1, "Loaded"))))

    first, later, ready = loading(1), loading(GIB), lab.document(lab.situation(lab.ready()))
    rows = [
        (first, first, 0.0, 1e6, False),
        (first, later, 1e6, 1e6 + 9, False),
        (first, later, 1e6, 1e6 + 10, True),
        (first, later, 1e6, 1e6 - 99, True),  # the clock was put back
        (first, later, 0.0, 1e6, True),
        (first, ready, 1e6, 1e6, True),
        ({}, first, 1e6, 1e6, True),
    ]
    for old, new, last_s, now_s, want in rows:
        assert should_write(old, new, last_s, now_s) is want


def test_nothing_changed_is_no_event(lab: Any) -> None:
    ready = lab.document(lab.situation(lab.ready()))
    assert events(ready, ready) == []
