"""What schedulers, kubelets and containers say, in words that a user understands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella_checkpoint import errors as checkpoint_errors
from lamella_contract import errors
from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.deciding import words
from lamella_operator.views import Exit, PodView

NEEDS = {"nvidia.com/gpu": "1", "memory": "8Gi"}
POD = PodView("m-0-1-aa", "uid", "stage", stage=1, scheduled=True, node="node-1")
TWO = "0/2 nodes are available: "

SCHEDULER = {
    "no gpu": (
        TWO + "2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available",
        reasons.INSUFFICIENT_GPU,
        "no node has 1 free nvidia.com/gpu",
    ),
    "gpu of another maker": (
        TWO + "2 Insufficient amd.com/gpu.",
        reasons.INSUFFICIENT_GPU,
        "no node has enough free amd.com/gpu",
    ),
    "gpu and memory": (
        TWO + "1 Insufficient memory, 2 Insufficient nvidia.com/gpu.",
        reasons.INSUFFICIENT_GPU,
        "no node has 1 free nvidia.com/gpu",
    ),
    "memory": (
        TWO + "2 Insufficient memory.",
        reasons.INSUFFICIENT_MEMORY,
        "no node has 8Gi free memory",
    ),
    "cpu": (TWO + "2 Insufficient cpu.", reasons.INSUFFICIENT_CPU, "no node has enough free cpu"),
    "disk": (
        TWO + "2 Insufficient ephemeral-storage.",
        reasons.INSUFFICIENT_STORAGE,
        "no node has enough free ephemeral-storage",
    ),
    "taint": (
        TWO + "2 node(s) had untolerated taint {gpu: yes}.",
        reasons.UNSCHEDULABLE,
        "spec.tolerations names no taint of the nodes that would do",
    ),
    "selector": (
        TWO + "2 node(s) didn't match Pod's node affinity/selector.",
        reasons.UNSCHEDULABLE,
        "no node has the labels that spec asks for",
    ),
    "cordoned": (
        TWO + "2 node(s) were unschedulable.",
        reasons.UNSCHEDULABLE,
        "nodes that would do are cordoned",
    ),
    "no claim": (
        TWO + 'persistentvolumeclaim "weights" not found.',
        reasons.VOLUME_NOT_BOUND,
        "the volume claim weights does not exist",
    ),
    "unbound claim": (
        TWO + "pod has unbound immediate PersistentVolumeClaims.",
        reasons.VOLUME_NOT_BOUND,
        "its volume claim waits for a volume",
    ),
    "something new": (TWO + "2 tea time.", reasons.UNSCHEDULABLE, "no node takes it"),
}


@pytest.mark.parametrize(("said", "reason", "text"), SCHEDULER.values(), ids=SCHEDULER)
def test_the_scheduler(said: str, reason: str, text: str) -> None:
    want = Note(reason, f"{text}: 2 of 4 stages are placed; {said}")
    assert words.unschedulable(said, NEEDS, 2, 4) == want


KUBELET = {
    "image": ("ImagePullBackOff", "Back-off pulling x:1", reasons.IMAGE_PULL),
    "bad name": ("InvalidImageName", "", reasons.IMAGE_PULL),
    "never pulled": ("ErrImageNeverPull", "", reasons.IMAGE_PULL),
    "secret": ("CreateContainerConfigError", 'secret "hub" not found', reasons.SECRET_MISSING),
    "user": ("CreateContainerConfigError", "image will run as root", reasons.CONTAINER_CONFIG),
    "runtime": ("RunContainerError", "exec: python: not found", reasons.CONTAINER_START),
    "usual": ("ContainerCreating", "", reasons.CONTAINER_CREATING),
    "nothing yet": ("", "", reasons.CONTAINER_CREATING),
}


@pytest.mark.parametrize(("why", "said", "reason"), KUBELET.values(), ids=KUBELET)
def test_the_kubelet(why: str, said: str, reason: str) -> None:
    note = words.waiting(replace(POD, waiting_reason=why, waiting_message=said))
    assert note.reason == reason
    assert said in note.message


def test_a_secret_that_a_volume_lacks_is_named() -> None:
    note = words.waiting(
        replace(POD, waiting_reason="ContainerCreating", missing=("hub-token", "keys"))
    )
    assert note.reason == reasons.SECRET_MISSING
    assert note.message == "Secret hub-token and keys does not exist: create it"


EXITS = {
    "out of memory": (Exit(137, "OOMKilled"), reasons.OUT_OF_MEMORY, "limits.memory"),
    "device memory": (
        Exit(1, "Error", '{"kind": "out_of_memory", "message": "GPU has 22 GiB, needs 24"}'),
        reasons.OUT_OF_DEVICE_MEMORY,
        "GPU has 22 GiB, needs 24",
    ),
    "configuration": (Exit(78, "Error", "bad"), reasons.STAGE_CONFIG, "code 78: bad"),
    "killed": (Exit(137, "Error"), reasons.STAGE_FAILED, "code 137 (signal 9)"),
    "logs": (Exit(1, "Error", "Traceback: x"), reasons.STAGE_FAILED, "code 1: Traceback: x"),
    "json of others": (Exit(1, "Error", "[1]"), reasons.STAGE_FAILED, "[1]"),
}


@pytest.mark.parametrize(("how", "reason", "text"), EXITS.values(), ids=EXITS)
def test_a_container(how: Exit, reason: str, text: str) -> None:
    note = words.ended(how)
    assert note.reason == reason
    assert text in note.message


def test_every_kind_of_error_has_a_reason_of_the_list() -> None:
    every = [*vars(errors).values(), *vars(checkpoint_errors).values()]
    known = {value.kind for value in every if hasattr(value, "kind")}
    assert set(words.KINDS) <= known
    assert set(words.KINDS.values()) <= reasons.ALL
