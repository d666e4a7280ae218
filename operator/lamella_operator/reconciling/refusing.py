"""A request that the API server refused, as a reason and words that a user can act on.

Pure. What is worth repeating later (no answer, overload) is no refusal.
"""

from __future__ import annotations

from lamella_contract import names
from lamella_operator import reasons
from lamella_operator.desired import gangs
from lamella_operator.reconciling.failures import ApiError
from lamella_operator.reconciling.parse import mapping
from lamella_operator.views import Manifest, Refusal

_QUOTA = "exceeded quota"
_LIMITS = ("maximum", "minimum", "limit to request ratio")  # a LimitRange's first words
_POLICY = ("violates podsecurity", "admission webhook", "validatingadmissionpolicy")
_ROLE = ("cannot create resource", "cannot patch resource", "cannot delete resource")


def is_refusal(error: ApiError) -> bool:
    """Whether the server understood and said no, so that asking again at once is of no use."""
    return not error.unreachable and error.status not in (401, 410)


def refusal(error: ApiError, manifest: Manifest) -> Refusal:
    """Why the object of ``manifest`` was not taken."""
    labels = mapping(manifest, "metadata", "labels")
    name = f"{manifest.get('kind', 'object')} {mapping(manifest, 'metadata').get('name', '')}"
    if error.status == 404 and manifest.get("kind") == gangs.POD_GROUP and not error.details:
        return Refusal(
            reasons.GANG_SYSTEM_MISSING,
            f"this cluster has no {gangs.POD_GROUP} of {manifest.get('apiVersion')}, which "
            "spec.scheduling.gang asks for: install that scheduler, or name another gang",
            replica=_index(labels.get(names.LABEL_REPLICA)),
        )
    return Refusal(
        _reason(error),
        f"{name}: {error.message or error.reason}",
        replica=_index(labels.get(names.LABEL_REPLICA)),
        stage=_index(labels.get(names.LABEL_STAGE)),
    )


def foreign(manifest: Manifest, owner: str) -> Refusal:
    """The object's name is taken by something that is not the model's."""
    labels = mapping(manifest, "metadata", "labels")
    name = f"{manifest.get('kind')} {mapping(manifest, 'metadata').get('name')}"
    return Refusal(
        reasons.NAME_CONFLICT,
        f"{name} exists and belongs to {owner}",
        replica=_index(labels.get(names.LABEL_REPLICA)),
        stage=_index(labels.get(names.LABEL_STAGE)),
    )


def _reason(error: ApiError) -> str:
    said = error.message.lower()
    if error.status == 403:
        if _QUOTA in said:
            return reasons.QUOTA_EXCEEDED
        if "because it is being terminated" in said:
            return reasons.NAMESPACE_TERMINATING
        if any(words in said for words in _ROLE):
            return reasons.FORBIDDEN
        if any(words in said for words in _POLICY):
            return reasons.ADMISSION_REFUSED
        if any(f"forbidden: {word}" in said or f"[{word}" in said for word in _LIMITS):
            return reasons.LIMIT_RANGE
        return reasons.ADMISSION_REFUSED
    if error.status == 409:
        return reasons.NAME_CONFLICT
    return reasons.ADMISSION_REFUSED


def _index(label: object) -> int | None:
    return int(label) if isinstance(label, str) and label.isdecimal() else None
