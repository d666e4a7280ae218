"""A model's revision: its hash, what is made for it, and the object that keeps it.

Knows no cluster. The hash is of what a user can change and of the model's commit. Neither the plan
nor anything of the operator's is in it: with the same manifest and commit a plan differs only
because the operator does, and an operator that is upgraded must not restart a model. Parts that
equal their default are left out, so that a field which a later operator knows changes no hash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lamella_contract.plan import Plan
from lamella_contract.profile import ModelProfile
from lamella_contract.spec import ShardedModelSpec
from lamella_operator.desired import configs, labels, object_names, pods
from lamella_operator.desired.configs import PublicKey
from lamella_operator.desired.gateway import deployment_template
from lamella_operator.revision import Revision, revision_hash
from lamella_operator.settings import Settings
from lamella_operator.views import Manifest, ModelView

NOT_OF_A_REVISION = (
    ("replicas",),
    ("cluster", "paused"),
    ("cluster", "rollout"),
    ("cluster", "revision_history_limit"),
    ("cluster", "recovery", "max_restarts"),
    ("cluster", "scheduling", "timeout_s"),
    ("cluster", "gateway", "replicas"),
)
"""Fields of a spec that change no pod: they are heeded as they are now."""


def make_revision(
    model: ModelView,
    profile: ModelProfile,
    plan: Plan,
    settings: Settings,
    public_key: PublicKey,
) -> Revision:
    """The revision of ``model`` as its manifest is now; ``model.spec`` parses.

    Raises `InvalidSpec` for a cache that these settings do not allow.
    """
    making = pods.making_of(model, profile, plan, settings, public_key)
    return Revision(
        hash=hash_of(making.spec, profile.commit),
        commit=profile.commit,
        link_hash=configs.link_hash(making),
        plan=plan,
        pods=pods.templates(making),
        gateway=deployment_template(making),
        drain_s=making.spec.cluster.drain_s,
        key_generation=making.key_generation,
    )


def hash_of(spec: ShardedModelSpec, commit: str) -> str:
    """The hash that `make_revision` gives, without making anything."""
    return revision_hash(revision_parts(spec), commit)


def revision_parts(spec: ShardedModelSpec) -> dict[str, Any]:
    """What of a spec shapes pods, as plain JSON values without defaults."""
    return _fields(spec, ())


def revision_object(model: ModelView, revision: Revision, number: int) -> Manifest:
    """The ControllerRevision that keeps ``revision``; the ``number`` rises with each new one."""
    own = labels.labels(model, revision=revision.hash)
    name = object_names.revision_name(model.name, model.uid, revision.hash)
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": labels.metadata(model, name, own),
        "revision": number,
        "data": revision.to_document(),
    }


def _fields(value: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """A dataclass as a dict of the fields that count and differ from their default."""
    found = {}
    for field in dataclasses.fields(value):
        here = (*path, field.name)
        item = getattr(value, field.name)
        if here in NOT_OF_A_REVISION or item == _default(field):
            continue
        plain = _plain(item, here)
        if plain != {}:
            found[field.name] = plain
    return found


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields(value, path)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, ()) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, ()) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
