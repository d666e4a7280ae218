"""Secrets that a pod waits for and that do not exist.

A kubelet tells of a volume that it cannot make in Events alone, and those are not read here; so a
pod whose container has been "creating" for a while has its Secrets looked up one by one. Their
contents are dropped at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from lamella_operator.reconciling.client import Client, Document
from lamella_operator.reconciling.failures import NotFound
from lamella_operator.reconciling.kinds import SECRET
from lamella_operator.reconciling.parse import items, mapping, text
from lamella_operator.views import PodView

LATE_S = 5.0  # a container is usually made within this time


def creating(pod: PodView) -> bool:
    """Whether it has a node and no container, and the kubelet does not say why."""
    early = pod.phase == "Pending" and pod.scheduled and not pod.running
    return early and pod.deleted_s is None and pod.waiting_reason in ("", "ContainerCreating")


async def told(
    client: Client,
    namespace: str,
    pods: Sequence[PodView],
    documents: Sequence[Document],
    now_s: float,
) -> tuple[PodView, ...]:
    """``pods``, those that are late with what they lack. Raises `ApiError`."""
    late = {pod.uid for pod in pods if creating(pod) and now_s - pod.created_s > LATE_S}
    wanted = {
        text(one, "metadata", "uid"): _secrets(one)
        for one in documents
        if text(one, "metadata", "uid") in late
    }
    asked = sorted({name for names in wanted.values() for name in names})
    there = await asyncio.gather(*(_exists(client, namespace, name) for name in asked))
    gone = {name for name, found in zip(asked, there, strict=True) if not found}
    return tuple(
        replace(pod, missing=tuple(sorted(wanted.get(pod.uid, set()) & gone))) for pod in pods
    )


def _secrets(document: Document) -> set[str]:
    """Secrets without which the pod's volumes cannot be made."""
    volumes = items(mapping(document, "spec"), "volumes")
    secrets = [mapping(volume, "secret") for volume in volumes]
    return {
        text(one, "secretName") for one in secrets if one and one.get("optional") is not True
    } - {""}


async def _exists(client: Client, namespace: str, name: str) -> bool:
    try:
        await client.get(SECRET, namespace, name)
    except NotFound:
        return False
    return True
