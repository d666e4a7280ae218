"""Labels, selectors and owners of a model's objects.

Knows no kind of object. Everything of a model is found by its UID's label; people and dashboards
get the labels that Kubernetes recommends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella_contract import names
from lamella_operator.views import Manifest, ModelView

NAME = "lamella"  # app.kubernetes.io/name of everything
LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
ANNOTATION_LINK_HASH = f"{names.GROUP}/link-hash"  # on the gateways' Deployment: whom they serve


def labels(model: ModelView, role: str = "", **more: str) -> dict[str, str]:
    """Labels of an object of ``model``; ``role`` "" is an object that no single role has.

    ``more`` is any of revision, replica and stage.
    """
    found = {
        LABEL_NAME: NAME,
        names.LABEL_INSTANCE: model.name,
        names.LABEL_MANAGED_BY: names.MANAGER,
        names.LABEL_MODEL: model.name,
        names.LABEL_MODEL_UID: model.uid,
    }
    if role:
        found |= {LABEL_COMPONENT: role, names.LABEL_ROLE: role}
    keys = {
        "revision": names.LABEL_REVISION,
        "replica": names.LABEL_REPLICA,
        "stage": names.LABEL_STAGE,
    }
    return found | {keys[key]: value for key, value in more.items()}


def selector(
    model_uid: str, role: str, *, replica: int | None = None, stage: int | None = None
) -> dict[str, str]:
    """Labels that pods of one role have, of one replica or stage where given."""
    found = {names.LABEL_MODEL_UID: model_uid, names.LABEL_ROLE: role}
    if replica is not None:
        found[names.LABEL_REPLICA] = str(replica)
    if stage is not None:
        found[names.LABEL_STAGE] = str(stage)
    return found


def scale_selector(model_uid: str) -> str:
    """For the scale subresource: one pod per pipeline, its stage 0."""
    wanted = selector(model_uid, names.ROLE_STAGE, stage=0)
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def owner(model: ModelView) -> dict[str, Any]:
    """The owner reference: deleting the model deletes the object, and a drain may evict the pod."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": model.name,
        "uid": model.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(
    model: ModelView,
    name: str,
    own_labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The whole ``metadata`` of an object of ``model``."""
    found: dict[str, Any] = {
        "name": name,
        "namespace": model.namespace,
        "labels": dict(own_labels),
        "ownerReferences": [owner(model)],
    }
    if annotations:
        found["annotations"] = dict(annotations)
    return found


def merged(user: Mapping[str, str], ours: Manifest) -> dict[str, str]:
    """Labels or annotations of both; ours win."""
    return {**user, **ours}
