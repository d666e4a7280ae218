"""The name of every object of a model. Same parts, same name: a write done twice is done once.

Knows no manifest. Names have at most 63 characters (see `lamella_contract.names.object_name`); what
could outlive its model and meet its successor (keys, revisions) carries a hash of the model's UID.
"""

from __future__ import annotations

import hashlib

from lamella_contract.names import ROLE_GATEWAY, object_name

_REPLICA_ROOM = 6  # characters for "-" and a replica's number behind a Service's name


def service_name(model: str) -> str:
    """The Service that clients use."""
    return object_name(model)


def heads_name(model: str) -> str:
    """The headless Service whose addresses are the stage 0s of all pipelines."""
    return object_name(model, "heads")


def ring_name(model: str, replica: int | str) -> str:
    """The headless Service by which a pipeline's stages find its stage 0.

    ``replica`` may be a reference that Kubernetes fills in: it only ever stands at the end.
    """
    base = object_name(model, "ring", limit=63 - _REPLICA_ROOM)
    return f"{base}-{replica}"


def gateway_name(model: str) -> str:
    """The gateways' Deployment."""
    return object_name(model, ROLE_GATEWAY)


def gateway_budget_name(model: str) -> str:
    """The gateways' PodDisruptionBudget."""
    return object_name(model, ROLE_GATEWAY)


def budget_name(model: str, replica: int) -> str:
    """A pipeline's PodDisruptionBudget."""
    return object_name(model, str(replica))


def gang_name(model: str, model_uid: str, replica: int, revision: str) -> str:
    """A pipeline's gang: the PodGroup's name, and what its pods' marks say."""
    return object_name(model, "gang", str(replica), digest(f"{model_uid}/{revision}", 8))


def policy_name(model: str) -> str:
    """The NetworkPolicy."""
    return object_name(model)


def first_of(model_uid: str, revision: str) -> str:
    """What stands for the predecessor of a pod that has none."""
    return f"{model_uid}/{revision}"


def stage_pod_name(model: str, replica: int, stage: int, predecessor: str) -> str:
    """A stage's pod; ``predecessor`` is the UID of the pod whose place it takes, or `first_of`."""
    return object_name(model, str(replica), str(stage), digest(predecessor, 8))


def secret_name(model: str, role: str, model_uid: str, generation: int = 1) -> str:
    """The Secret with the key pair of ``role`` (``stage-0``, ``gateway-0``)."""
    return object_name(model, role, digest(model_uid, 6), str(generation))


def revision_name(model: str, model_uid: str, revision: str) -> str:
    """The ControllerRevision of the revision with hash ``revision``."""
    return object_name(model, digest(model_uid, 6), revision)


def inspector_name(model: str, key: str, attempt: int) -> str:
    """The pod that reads the profile ``key``, for the ``attempt``-th time."""
    return object_name(model, "inspect", digest(f"{key}/{attempt}", 8))


def host(service: str, namespace: str, domain: str) -> str:
    """The DNS name of a Service.

    A process that looks it up again and again puts a dot behind it: it is whole, and a resolver
    would try every search suffix first otherwise.
    """
    return f"{service}.{namespace}.svc.{domain}"


def digest(text: str, digits: int) -> str:
    """The first hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
