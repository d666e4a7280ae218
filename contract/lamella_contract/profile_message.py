"""What an inspector pod says as it ends: a model's profile, or why there is none, in 3,500 bytes.

Kubernetes cuts a termination message silently at 4,096 bytes, so the message is short, says which
version it is of and carries a checksum: one that was cut off, or that something else wrote, is
never taken for a profile. Knows nothing of pods.

::

    lamella-profile 1 <checksum> json {"layers": {"kinds": [...], "runs": [[0, 126]], ...}, ...}
    lamella-profile 1 <checksum> deflate <base64>         where JSON alone would be too long
    lamella-failure 1 <checksum> json {"kind": "auth_required", "message": "..."}

A layer is written once per kind and then counted, ``allowed_cuts`` are written as ranges.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lamella_contract import forms
from lamella_contract.errors import InvalidConfig, LamellaError, from_kind
from lamella_contract.profile import LayerProfile, ModelProfile

VERSION = 1
MAX_BYTES = 3500  # of a whole message; Kubernetes keeps 4,096
MAX_FAILURE_BYTES = 2048  # of a failure's text; a status has room for no more
MAX_LAYERS = 4096  # more than any model has; bounds what a forged message can unfold to

_PROFILE, _FAILURE = "lamella-profile", "lamella-failure"
_JSON, _DEFLATE = "json", "deflate"
_MAX_INFLATED = 1 << 20


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an inspector found no profile; ``kind`` as in `lamella_contract.errors`."""

    kind: str
    message: str

    def error(self) -> LamellaError:
        """The error that the inspector met."""
        return from_kind(self.kind, self.message)


def pack(profile: ModelProfile) -> str:
    """A message of at most `MAX_BYTES` bytes; `InvalidConfig` where there is no such message."""
    plain = _written(profile)
    message = _sealed(_PROFILE, _JSON, plain)
    if len(message) > MAX_BYTES:
        deflated = base64.b64encode(zlib.compress(plain.encode(), 9)).decode()
        message = _sealed(_PROFILE, _DEFLATE, deflated)
    if len(message) > MAX_BYTES or len(plain) > _MAX_INFLATED or profile.num_layers > MAX_LAYERS:
        raise InvalidConfig(
            f"profile message: got {len(message)} bytes for {profile.num_layers} layers of "
            f"{len(set(profile.layers))} kinds, want at most {MAX_BYTES} bytes and {MAX_LAYERS} "
            "layers: a pod's termination message holds no more"
        )
    return message


def unpack(message: str) -> ModelProfile:
    """The profile in a message; `InvalidConfig` for anything but a whole one of this version."""
    found = read(message)
    if isinstance(found, Failure):
        raise InvalidConfig(f"profile message: got a failure ({found.kind}), want a profile")
    return found


def pack_failure(error: Exception) -> str:
    """A message that says why there is no profile; the error's text is cut where it is long."""
    kind = error.kind if isinstance(error, LamellaError) else LamellaError.kind
    said = str(error) or type(error).__name__
    text = "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in said)
    message = _failure(kind, text, MAX_FAILURE_BYTES)
    if len(message.encode()) > MAX_BYTES:  # quotes and backslashes are two bytes each in JSON
        message = _failure(kind, text, MAX_FAILURE_BYTES // 2)
    return message


def read(message: str) -> ModelProfile | Failure:
    """What an inspector said; `InvalidConfig` where nothing of this version stands there whole."""
    what, version, checksum, encoding, payload = _parts(message)
    if version != str(VERSION):
        raise InvalidConfig(
            f"profile message: got version {version!r}, want {VERSION}: the inspector's image is "
            "of another version than this program"
        )
    if checksum != _checksum(payload):
        raise InvalidConfig(
            f"profile message: got {len(message.encode(errors='replace'))} bytes whose checksum "
            "is wrong, want all that the inspector wrote: the message was cut off or changed"
        )
    if what == _FAILURE:
        return forms.from_json(Failure, payload, InvalidConfig)
    return _expanded(_inflate(payload) if encoding == _DEFLATE else payload)


# -- the envelope ------------------------------------------------------------------------------


def _sealed(what: str, encoding: str, payload: str) -> str:
    return f"{what} {VERSION} {_checksum(payload)} {encoding} {payload}"


def _failure(kind: str, text: str, most: int) -> str:
    if len(text.encode()) > most:
        text = text.encode()[: most - 3].decode(errors="ignore") + "…"
    return _sealed(_FAILURE, _JSON, json.dumps({"kind": kind, "message": text}, ensure_ascii=False))


def _checksum(payload: str) -> str:
    return hashlib.sha256(payload.encode(errors="replace")).hexdigest()[:16]


def _parts(message: str) -> list[str]:
    parts = message.strip().split(" ", 4)
    known = len(parts) == 5 and parts[0] in (_PROFILE, _FAILURE) and parts[3] in (_JSON, _DEFLATE)
    if not known:
        shown = message.strip()[-200:] or "nothing"
        raise InvalidConfig(f"profile message: got {shown!r}, want what an inspector writes")
    return parts


def _inflate(payload: str) -> str:
    try:
        stream = zlib.decompressobj()
        plain = stream.decompress(base64.b64decode(payload, validate=True), _MAX_INFLATED)
        if not stream.eof:
            raise InvalidConfig(f"profile message: want at most {_MAX_INFLATED} bytes of JSON")
        return plain.decode()
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InvalidConfig(f"profile message: not deflate in base64: {error}") from error


# -- the profile -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layers:
    """A profile's long parts, written short: ``runs`` are [index in kinds, count] in layer order,
    ``cuts`` are ranges [first, last) in the order of ``allowed_cuts``."""

    kinds: tuple[LayerProfile, ...]
    runs: tuple[tuple[int, int], ...]
    cuts: tuple[tuple[int, int], ...]


def _written(profile: ModelProfile) -> str:
    kinds = tuple(dict.fromkeys(profile.layers))
    index = {kind: number for number, kind in enumerate(kinds)}
    grouped = itertools.groupby(index[layer] for layer in profile.layers)
    runs = tuple((number, len(list(same))) for number, same in grouped)
    layers = _Layers(kinds, runs, tuple(_ranges(profile.allowed_cuts)))
    rest = {key: getattr(profile, key) for key in _REST}
    plain = {"layers": forms.to_plain(layers), "profile": rest}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def _expanded(payload: str) -> ModelProfile:
    plain = forms.parse_json(payload, InvalidConfig)
    if not isinstance(plain, Mapping) or not isinstance(plain.get("profile"), Mapping):
        raise InvalidConfig("profile message: want an object with profile and layers")
    layers = forms.from_plain(_Layers, plain.get("layers"), InvalidConfig, "layers")
    counts = [count for _, count in layers.runs] + [last - first for first, last in layers.cuts]
    if min(counts, default=0) < 0 or sum(counts) > 2 * MAX_LAYERS:
        raise InvalidConfig(f"profile message: want at most {MAX_LAYERS} layers")
    if not all(0 <= number < len(layers.kinds) for number, _ in layers.runs):
        raise InvalidConfig("profile message: a run names a kind of layer that is not there")
    each = [layers.kinds[number] for number, count in layers.runs for _ in range(count)]
    cuts = [cut for first, last in layers.cuts for cut in range(first, last)]
    document = {
        **plain["profile"],
        "layers": [forms.to_plain(layer) for layer in each],
        "allowed_cuts": cuts,
    }
    return forms.from_plain(ModelProfile, document, InvalidConfig, "profile")


def _ranges(numbers: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """``(1, 2, 3, 7)`` as ``(1, 4), (7, 8)``; the order is kept."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        each = [number for _, number in run]
        yield each[0], each[-1] + 1


_REST = tuple(
    field.name
    for field in dataclasses.fields(ModelProfile)
    if field.name not in ("layers", "allowed_cuts")
)
