"""What schedulers, kubelets and containers say, as a reason and a sentence that a user understands.

The original text stays at the end of each message, for those who look it up. Judges nothing: it is
told what happened (`verdict` knows whether a pod is lost by it). Amounts are as Kubernetes writes
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from lamella_contract import errors
from lamella_operator import reasons
from lamella_operator.actions import Note
from lamella_operator.views import Exit, PodView

EXIT_CONFIG = 78
"""A stage's exit code when its configuration or its model cannot work."""

_INSUFFICIENT = re.compile(r"Insufficient ([A-Za-z0-9_./-]+)")
_QUOTED = re.compile(r'persistentvolumeclaim "([^"]+)" not found')
_NATIVE = {
    "memory": reasons.INSUFFICIENT_MEMORY,
    "cpu": reasons.INSUFFICIENT_CPU,
    "ephemeral-storage": reasons.INSUFFICIENT_STORAGE,
}
_VOLUME, _NOWHERE = reasons.VOLUME_NOT_BOUND, reasons.UNSCHEDULABLE
_ELSEWHERE = (  # what the scheduler says, our reason, our words
    ("scheduling gates", reasons.QUEUED, "its queue has not admitted the pipeline yet"),
    ("pod group is not ready", reasons.QUEUED, "there is no room yet for all of its pipeline"),
    ("sibling pods", reasons.QUEUED, "there is no room yet for all of its pipeline"),
    ("unbound immediate PersistentVolumeClaims", _VOLUME, "its volume claim waits for a volume"),
    ("volume node affinity conflict", _VOLUME, "its volume can be used on other nodes only"),
    ("untolerated taint", _NOWHERE, "spec.tolerations names no taint of the nodes that would do"),
    ("node affinity/selector", _NOWHERE, "no node has the labels that spec asks for"),
    ("unschedulable", _NOWHERE, "nodes that would do are cordoned"),
    ("Too many pods", _NOWHERE, "no node takes one more pod"),
)

IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull",
         "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed")  # fmt: skip
"""Why a container waits whose image cannot be had."""
_START = ("RunContainerError", "CreateContainerError", "StartError", "PostStartHookError")
BLOCKED = frozenset({*IMAGE, *_START, "CreateContainerConfigError", "CreatePodSandboxError"})
"""Why a container waits and will go on waiting until somebody changes something."""

NEEDS_CONVERSION, _DISK_FULL = "needs_conversion", "disk_full"  # of `lamella_checkpoint.errors`
KINDS = {
    NEEDS_CONVERSION: reasons.UNSUPPORTED_FAMILY,
    _DISK_FULL: reasons.DISK_FULL,
    errors.OutOfMemory.kind: reasons.OUT_OF_DEVICE_MEMORY,
    errors.ModelNotFound.kind: reasons.MODEL_NOT_FOUND,
    errors.AuthRequired.kind: reasons.AUTH_REQUIRED,
    errors.GatedModel.kind: reasons.GATED_MODEL,
    errors.RateLimited.kind: reasons.RATE_LIMITED,
    errors.HubUnreachable.kind: reasons.HUB_UNREACHABLE,
    errors.DownloadStalled.kind: reasons.HUB_UNREACHABLE,
    errors.UnsupportedFamily.kind: reasons.UNSUPPORTED_FAMILY,
    errors.MissingTensor.kind: reasons.CORRUPT_MODEL,
    errors.CorruptModel.kind: reasons.CORRUPT_MODEL,
    errors.InvalidConfig.kind: reasons.STAGE_CONFIG,
    errors.InvalidSpec.kind: reasons.INVALID_SPEC,
    errors.DoesNotFit.kind: reasons.DOES_NOT_FIT,
    errors.ForbiddenCut.kind: reasons.FORBIDDEN_CUT,
    errors.PlanError.kind: reasons.DOES_NOT_FIT,
}
"""Reason of each kind of error that a process of ours may end with."""

_FAILED = {  # a pod's own reason -> ours, in words
    "Evicted": (reasons.EVICTED, "its node evicted it"),
    "NodeLost": (reasons.NODE_LOST, "its node is gone"),
    "Preempting": (reasons.EVICTED, "a pod of a higher priority took its place"),
    "Terminated": (reasons.NODE_LOST, "its node was shut down"),
    "NodeShutdown": (reasons.NODE_LOST, "its node was shut down"),
    "Shutdown": (reasons.NODE_LOST, "its node was shut down"),
    "DeadlineExceeded": (reasons.INSPECTION_FAILED, "it took too long"),
}


def unschedulable(message: str, needs: Mapping[str, str], placed: int = 0, total: int = 0) -> Note:
    """Why the scheduler found no node; ``needs`` is what the pod asks for, ``placed`` of ``total``
    stages of its pipeline have a node (``total`` 0: it is no stage)."""
    if not message:
        return Note(reasons.STARTING, "waits for the scheduler")
    reason, cause = _cause(message, needs)
    if not total:
        return Note(reason, f"{cause}; {message}")
    return Note(reason, f"{cause}: {placed} of {total} stages are placed; {message}")


def _cause(message: str, needs: Mapping[str, str]) -> tuple[str, str]:
    short = {name.rstrip(".,") for name in _INSUFFICIENT.findall(message)}
    devices = sorted(short - set(_NATIVE))
    for name in [*devices, *(native for native in _NATIVE if native in short)]:
        amount = f"{needs[name]} free" if name in needs else "enough free"
        return _NATIVE.get(name, reasons.INSUFFICIENT_GPU), f"no node has {amount} {name}"
    missing = _QUOTED.search(message)
    if missing:
        return reasons.VOLUME_NOT_BOUND, f"the volume claim {missing[1]} does not exist"
    for text, reason, words in _ELSEWHERE:
        if text in message:
            return reason, words
    return reasons.UNSCHEDULABLE, "no node takes it"


def waiting(pod: PodView) -> Note:
    """Why the container of a pod that has a node does not run yet."""
    said = _with(pod.waiting_reason, pod.waiting_message)
    if pod.waiting_reason in IMAGE:
        return Note(reasons.IMAGE_PULL, f"its image cannot be pulled: {said}")
    if pod.waiting_reason == "CreateContainerConfigError":
        if "not found" in pod.waiting_message and (
            "secret" in pod.waiting_message or "configmap" in pod.waiting_message
        ):
            return Note(reasons.SECRET_MISSING, f"what it needs does not exist: {said}")
        return Note(reasons.CONTAINER_CONFIG, f"its container cannot be made: {said}")
    if pod.waiting_reason in _START:
        return Note(reasons.CONTAINER_START, f"its container cannot be started: {said}")
    if pod.waiting_reason == "CrashLoopBackOff" and pod.last_exit is not None:
        return ended(pod.last_exit)
    if pod.missing:
        which = " and ".join(pod.missing)
        return Note(reasons.SECRET_MISSING, f"Secret {which} does not exist: create it")
    where = f" on {pod.node}" if pod.node else ""
    return Note(
        reasons.CONTAINER_CREATING,
        f"its container is being made{where} (image, volumes, network)"
        + (f": {said}" if said and pod.waiting_reason != "ContainerCreating" else ""),
    )


def ended(how: Exit) -> Note:
    """Why a container ended."""
    kind, message = told(how)
    if how.reason == "OOMKilled":
        return Note(
            reasons.OUT_OF_MEMORY,
            "the kernel killed it at its memory limit (OOMKilled): raise limits.memory of "
            f"spec.resources, or take more stages{_tail(message)}",
        )
    if kind:
        return Note(KINDS.get(kind, reasons.STAGE_FAILED), message)
    reason = reasons.STAGE_CONFIG if how.code == EXIT_CONFIG else reasons.STAGE_FAILED
    killed = f" (signal {how.code - 128})" if 128 < how.code < 192 else ""
    return Note(reason, f"its process ended with code {how.code}{killed}{_tail(message)}")


def told(how: Exit) -> tuple[str, str]:
    """Kind and message that a process of ours left; kind "" where it left none."""
    try:
        document = json.loads(how.message)
    except ValueError:
        return "", how.message.strip()
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        return "", how.message.strip()
    return document["kind"], str(document.get("message", ""))


def failed(pod: PodView) -> Note:
    """Why a pod is Failed or Succeeded."""
    if pod.reason in _FAILED:
        reason, words = _FAILED[pod.reason]
        return Note(reason, f"{words}{_tail(pod.message)}")
    if pod.reason == "UnexpectedAdmissionError" or pod.reason.startswith("OutOf"):
        words = "its node refused it after it was placed"
        return Note(reasons.UNEXPECTED_ADMISSION, f"{words}: {_with(pod.reason, pod.message)}")
    if pod.last_exit is not None and pod.last_exit.code:
        return ended(pod.last_exit)
    if pod.reason:
        return Note(reasons.STAGE_FAILED, f"its pod failed: {_with(pod.reason, pod.message)}")
    return Note(reasons.STAGE_FAILED, f"its pod ended as {pod.phase}{_tail(pod.message)}")


def _with(reason: str, message: str) -> str:
    return f"{reason}: {message}" if reason and message else reason or message


def _tail(message: str) -> str:
    return f": {message}" if message else ""
