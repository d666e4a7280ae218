"""The stages' CURVE keys: derived from one secret of the install, so that none is ever lost.

The same (model UID, role, generation) always gives the same pair: HKDF-SHA256 (RFC 5869) of the
root Secret. A model's Secret that somebody deleted is made again identically, and nothing of keys
needs to be remembered. Secrets are made by POST, are immutable, and are never listed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from zmq.utils import z85

from lamella_contract import names
from lamella_contract.errors import InvalidConfig
from lamella_operator import reasons
from lamella_operator.desired import labels, object_names
from lamella_operator.reconciling.client import Client, Document
from lamella_operator.reconciling.failures import Conflict, NotFound
from lamella_operator.reconciling.kinds import SECRET
from lamella_operator.views import ModelView, Refusal

log = logging.getLogger(__name__)

ROOT_BYTES = 32
ROOT_KEY = "root"  # key in the root Secret
PAIR_KEY = "key.json"  # key in a model's Secret
LOOK_AGAIN_S = 1.0  # within which one round may ask twice; later, somebody may have deleted it


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE pair, each as 40 characters of z85."""

    public: str
    secret: str = field(repr=False)


def hkdf(root: bytes, info: bytes, length: int = 32, salt: bytes | None = None) -> bytes:
    """RFC 5869 with SHA-256."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(root)


def derive(root: bytes, model_uid: str, role: str, generation: int) -> KeyPair:
    """The pair of ``role`` (``stage-0``) of one model; always the same for the same arguments."""
    info = f"{names.GROUP}/curve/{model_uid}/{role}/{generation}".encode()
    secret = z85.encode(hkdf(root, info))
    return KeyPair(zmq.curve_public(secret).decode(), secret.decode())


class Keys:
    """Mints keys, and sees to it that a model's Secrets are there."""

    def __init__(
        self, client: Client, namespace: str, root_name: str, now_s: Callable[[], float]
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._root_name = root_name
        self._now_s = now_s
        self._root = b""
        self._seen: dict[tuple[str, str, int], float] = {}

    async def load(self) -> None:
        """Read the root Secret, or make it when this is the first start. Raises `ApiError`."""
        try:
            document = await self._client.get(SECRET, self._namespace, self._root_name)
        except NotFound:
            document = await self._make_root()
        try:
            self._root = base64.b64decode(document["data"][ROOT_KEY], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidConfig(f"Secret {self._root_name}: no {ROOT_KEY!r} in it") from error
        if len(self._root) < ROOT_BYTES:
            raise InvalidConfig(f"Secret {self._root_name}: {ROOT_KEY!r} is shorter than 32 bytes")

    def public_key(self, model_uid: str, role: str, generation: int) -> str:
        """The public key that everybody who talks to ``role`` is told."""
        return derive(self._root, model_uid, role, generation).public

    async def ensure(
        self, model: ModelView, roles: tuple[str, ...], generation: int, *, new: bool = False
    ) -> Refusal | None:
        """A Secret for each role exists; why not, when one holds another key. Raises `ApiError`.

        ``new``: they are probably not there yet, so they are not looked for first.
        """
        found = await asyncio.gather(
            *(self._ensure(model, role, generation, new) for role in roles)
        )
        return next((refusal for refusal in found if refusal is not None), None)

    def forget(self, model_uid: str) -> None:
        """The model is gone."""
        self._seen = {key: at for key, at in self._seen.items() if key[0] != model_uid}

    async def _ensure(
        self, model: ModelView, role: str, generation: int, new: bool
    ) -> Refusal | None:
        key = (model.uid, role, generation)
        seen = self._seen.get(key)
        if seen is not None and self._now_s() - seen < LOOK_AGAIN_S:
            return None
        pair = derive(self._root, model.uid, role, generation)
        name = object_names.secret_name(model.name, role, model.uid, generation)
        document = None if new else await self._found(model, name)
        if document is None:
            try:
                wanted = _secret(model, name, pair)
                document = await self._client.create(SECRET, model.namespace, wanted)
            except Conflict:
                document = await self._client.get(SECRET, model.namespace, name)
        if _public(document) != pair.public:
            return Refusal(
                reasons.NAME_CONFLICT,
                f"Secret {name} holds another key than the one that belongs there: the operator's "
                f"root Secret {self._namespace}/{self._root_name} was replaced. Put the old one "
                f"back, or delete the model's Secrets and pods",
            )
        self._seen[key] = self._now_s()
        return None

    async def _found(self, model: ModelView, name: str) -> Document | None:
        try:
            return await self._client.get(SECRET, model.namespace, name)
        except NotFound:
            return None

    async def _make_root(self) -> Document:
        text = base64.b64encode(secrets.token_bytes(ROOT_BYTES)).decode()
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._root_name,
                "namespace": self._namespace,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGER},
            },
            "immutable": True,
            "data": {ROOT_KEY: text},
        }
        try:
            made = await self._client.create(SECRET, self._namespace, manifest)
            log.info("the root Secret is made", extra={"secret": self._root_name})
            return made
        except Conflict:  # the other operator was quicker
            return await self._client.get(SECRET, self._namespace, self._root_name)


def _secret(model: ModelView, name: str, pair: KeyPair) -> Document:
    text = json.dumps({"public": pair.public, "secret": pair.secret})
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": labels.metadata(model, name, labels.labels(model)),
        "immutable": True,
        "data": {PAIR_KEY: base64.b64encode(text.encode()).decode()},
    }


def _public(document: Any) -> str:
    """The public key in a Secret; "" for one that is not ours."""
    try:
        text = base64.b64decode(document["data"][PAIR_KEY])
        return str(json.loads(text)["public"])
    except (KeyError, TypeError, ValueError):
        return ""
