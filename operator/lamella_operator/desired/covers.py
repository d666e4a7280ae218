"""Whether a live object already says all that is wanted of it.

Knows Kubernetes' ways of storing what it was given: defaults and other managers' fields are added,
empty fields vanish, quantities are written anew, and some lists are sets by key. Used to write
nothing when nothing has changed, and to undo what somebody edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamella_contract.errors import InvalidSpec
from lamella_operator.desired.memory import cores
from lamella_operator.views import Manifest

KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "env": (("name",),),
    "volumes": (("name",),),
    "volumeMounts": (("mountPath",),),
    "imagePullSecrets": (("name",),),
    "ownerReferences": (("uid",),),
    "ports": (("containerPort",), ("port", "protocol")),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
}
"""Lists whose items are told apart by a key: others may add items, and order says nothing."""

AMOUNTS = ("limits", "requests")
AMOUNT_FIELDS = ("sizeLimit",)
ATOMIC_OWNERS = ("ingress", "egress")
"""Rules of a policy are one value: a rule more is a hole, and its ports have no owners."""


def covers(desired: Manifest, live: Manifest) -> bool:
    """Whether ``live`` has everything of ``desired``; it may have more."""
    return _covers(desired, live, "")


def _covers(desired: Any, live: Any, field: str) -> bool:
    if desired is None or desired in ("", {}, []):
        return live is None or live == desired or (desired == {} and isinstance(live, Mapping))
    if isinstance(desired, Mapping):
        return isinstance(live, Mapping) and _mapping(desired, live, field)
    if isinstance(desired, list | tuple):
        return isinstance(live, list | tuple) and _list(list(desired), list(live), field)
    if field in AMOUNT_FIELDS:
        return _same_amount(desired, live)
    return type(desired) is type(live) and bool(desired == live)


def _mapping(desired: Mapping[str, Any], live: Mapping[str, Any], field: str) -> bool:
    if field in AMOUNTS:
        return all(_same_amount(amount, live.get(key)) for key, amount in desired.items())
    return all(_covers(value, live.get(key), key) for key, value in desired.items())


def _list(desired: list[Any], live: list[Any], field: str) -> bool:
    if field in ATOMIC_OWNERS:
        return len(desired) == len(live) and all(
            _exact_rule(a, b) for a, b in zip(desired, live, strict=True)
        )
    keys = next((each for each in KEYS.get(field, ()) if _all_have(desired, each[:1])), None)
    if keys is None:
        return len(desired) == len(live) and all(
            _covers(a, b, "") for a, b in zip(desired, live, strict=True)
        )
    found = {_key(item, keys): item for item in live if isinstance(item, Mapping)}
    return all(_covers(item, found.get(_key(item, keys)), "") for item in desired)


def _exact_rule(desired: Mapping[str, Any], live: Any) -> bool:
    """A rule may have no part more than wanted: ``from`` absent is everybody."""
    if not isinstance(live, Mapping) or set(desired) != set(live):
        return False
    return all(
        isinstance(live[key], list)
        and len(live[key]) == len(part)
        and all(_covers(a, b, "") for a, b in zip(part, live[key], strict=True))
        for key, part in desired.items()
    )


def _all_have(items: list[Any], keys: tuple[str, ...]) -> bool:
    return all(isinstance(item, Mapping) and all(key in item for key in keys) for item in items)


def _key(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    defaults = {"protocol": "TCP"}
    return tuple(item.get(key, defaults.get(key)) for key in keys)


def _same_amount(desired: object, live: object) -> bool:
    if desired == live:
        return True
    try:
        return live is not None and cores(desired) == cores(live)
    except InvalidSpec:
        return False
