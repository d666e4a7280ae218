"""Parts of a manifest that are Kubernetes' own: names, labels, resources, tolerations, affinity.

Part of `spec`, which documents the manifest as a whole. Values are kept as they were written, for
pods are made of them; what is checked here is what would otherwise be refused only when a pod is
created, or be dropped without a word. Knows no pod.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lamella_contract import names
from lamella_contract.errors import InvalidSpec
from lamella_contract.spec_fields import Fields
from lamella_contract.units import MAX_QUANTITY, is_amount

MODEL_NAME = "at most 50 lower-case letters, digits and dashes that begin with a letter"
LABEL_NAME = "at most 63 lower-case letters, digits and dashes"
SUBDOMAIN = "a name of at most 253 lower-case letters, digits, dashes and dots"
SECRET_KEY = "a key of at most 253 letters, digits, dashes, dots and underscores"
LABEL_KEY = "a label's key, such as example.com/zone"
LABEL_VALUE = "at most 63 letters, digits, dashes, dots and underscores"
AMOUNT = "an amount such as 1, 500m or 24Gi"

MAX_LABELS, MAX_TOLERATIONS, MAX_RESOURCES = 64, 64, 32
OPERATORS = ("Equal", "Exists", "Lt", "Gt")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

SECRET_KEYS = ("name", "key")
_RESOURCES = ("limits", "requests")
_TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
_AFFINITY = ("nodeAffinity", "podAffinity", "podAntiAffinity")

_PART = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_PART}(?:\.{_PART})*")
_LABEL_NAME = re.compile(_PART)
_SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_LABEL_PART = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class SecretKey:
    """One key of a Secret in the model's namespace."""

    name: str
    key: str


def model_name(fields: Fields, key: str) -> str:
    """A name that services can have too, with room for what pods' names add to it."""
    value = fields.text(key, want=MODEL_NAME)
    short = len(value) <= names.MAX_MODEL_NAME and _LABEL_NAME.fullmatch(value)
    if not short or not value[0].isalpha():
        raise InvalidSpec(fields.at(key), value, MODEL_NAME)
    return value


def label_name(fields: Fields, key: str, default: str) -> str:
    """A name such as a namespace has."""
    value = fields.text(key, default, want=LABEL_NAME)
    if len(value) > names.MAX_OBJECT_NAME or not _LABEL_NAME.fullmatch(value):
        raise InvalidSpec(fields.at(key), value, LABEL_NAME)
    return value


def object_name(fields: Fields, key: str) -> str:
    """The name of a Secret, a claim or a class."""
    value = fields.text(key, want=SUBDOMAIN)
    if len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
        raise InvalidSpec(fields.at(key), value, SUBDOMAIN)
    return value


def optional_name(fields: Fields, key: str) -> str:
    """The same, "" if absent."""
    return "" if fields.get(key) is None else object_name(fields, key)


def secret_key(fields: Fields | None) -> SecretKey | None:
    """A Secret's name and key, both needed; None without ``fields``."""
    if fields is None:
        return None
    name, key = object_name(fields, "name"), fields.text("key", want=SECRET_KEY)
    if len(key) > 253 or not _SECRET_KEY.fullmatch(key):
        raise InvalidSpec(fields.at("key"), key, SECRET_KEY)
    return SecretKey(name, key)


def label_key(text: str, path: str) -> str:
    """``text`` if a label or an annotation may have it as its key."""
    prefix, slash, name = text.rpartition("/")
    valid = not slash or (len(prefix) <= 253 and _SUBDOMAIN.fullmatch(prefix))
    if not valid or not _LABEL_PART.fullmatch(name):
        raise InvalidSpec(path, text, LABEL_KEY)
    return text


def labels(fields: Fields, key: str) -> Mapping[str, str]:
    """Labels by key, as pods and nodes have them; empty if absent."""
    found = fields.strings(key, MAX_LABELS)
    for name, value in found.items():
        label_key(name, fields.at(key))
        if value and not _LABEL_PART.fullmatch(value):
            raise InvalidSpec(f"{fields.at(key)}[{name!r}]", value, LABEL_VALUE)
    return found


def not_ours(found: Mapping[str, str], path: str) -> Mapping[str, str]:
    """``found`` when no key in it is one that the operator sets itself."""
    for name in found:
        if name.startswith(f"{names.GROUP}/"):
            raise InvalidSpec(path, name, f"no key of {names.GROUP}/, which are the operator's")
    return found


def pod_annotations(fields: Fields, key: str) -> Mapping[str, str]:
    """Annotations by key; empty if absent."""
    found = fields.strings(key, MAX_LABELS)
    for name, value in found.items():
        label_key(name, fields.at(key))
        if len(value) > 16384:
            raise InvalidSpec(f"{fields.at(key)}[{name!r}]", value, "at most 16384 characters")
    return found


def resources(fields: Fields, key: str = "resources") -> Mapping[str, Any]:
    """A container's ``limits`` and ``requests``; empty if absent."""
    inner = fields.child(key, _RESOURCES)
    if inner is None:
        return {}
    given = [kind for kind in _RESOURCES if inner.get(kind) is not None]
    return {kind: _amounts(inner, kind) for kind in given}


def _amounts(fields: Fields, key: str) -> Mapping[str, Any]:
    found = fields.mapping(key, MAX_RESOURCES)
    found = {name: amount for name, amount in found.items() if amount is not None}
    for name, amount in found.items():
        label_key(name, fields.at(key))
        if not is_amount(amount):
            raise InvalidSpec(f"{fields.at(key)}[{name!r}]", amount, AMOUNT)
    return found


def tolerations(fields: Fields, key: str = "tolerations") -> tuple[Mapping[str, Any], ...]:
    """Tolerations as a pod has them; empty if absent."""
    found = fields.mappings(key, MAX_TOLERATIONS)
    for index, each in enumerate(found):
        item = Fields(each, f"{fields.at(key)}[{index}]", _TOLERATION)
        for name, most in (("key", 317), ("value", 63)):
            if item.get(name) not in (None, ""):
                item.text(name, most=most)
        for name, known in (("operator", OPERATORS), ("effect", EFFECTS)):
            item.choice(name, known)
        seconds = item.get("tolerationSeconds")
        if seconds is not None and (type(seconds) is not int or not abs(seconds) <= MAX_QUANTITY):
            raise InvalidSpec(item.at("tolerationSeconds"), seconds, "a whole number of seconds")
    return found


def affinity(fields: Fields, key: str = "affinity") -> Mapping[str, Any]:
    """Affinity as a pod has it, of which only the kinds are checked; empty if absent."""
    inner = fields.child(key, _AFFINITY)
    if inner is None:
        return {}
    for kind in _AFFINITY:
        inner.mapping(kind)
    return fields.mapping(key)
