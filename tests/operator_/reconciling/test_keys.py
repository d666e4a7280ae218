"""Keys: derived as RFC 5869 says, the same for ever, in Secrets that are made once."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
import zmq
from operator_twin_api import Store, status

from lamella_contract.errors import InvalidConfig
from lamella_operator.reconciling.client import Client
from lamella_operator.reconciling.keys import LOOK_AGAIN_S, Keys, derive, hkdf
from lamella_operator.views import ModelView

MODEL = ModelView("tiny", "ai", "uid-m", 1)
ROLES = ("stage-0", "stage-1", "gateway-0")

RFC_5869 = {
    "1": (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "2": (
        "".join(f"{byte:02x}" for byte in range(0x50)),
        "".join(f"{byte:02x}" for byte in range(0x60, 0xB0)),
        "".join(f"{byte:02x}" for byte in range(0xB0, 0x100)),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    "3": (
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("key", "salt", "info", "wanted"), RFC_5869.values(), ids=RFC_5869.keys())
def test_the_vectors_of_rfc_5869(key: str, salt: str, info: str, wanted: str) -> None:
    found = hkdf(
        bytes.fromhex(key), bytes.fromhex(info), len(wanted) // 2, bytes.fromhex(salt) or None
    )
    assert found.hex() == wanted


def test_pairs_are_the_same_for_ever_and_different_for_everything_else() -> None:
    root = bytes(range(32))
    pair = derive(root, "uid", "stage-0", 1)
    assert pair == derive(root, "uid", "stage-0", 1)
    assert pair.public == "jm?*n-mNIwU^M[M(cka]Pe?r=g@*oP!:jhBbvkd9"
    others = [
        derive(root, "uid", "stage-1", 1),
        derive(root, "uid", "stage-0", 2),
        derive(root, "uid2", "stage-0", 1),
        derive(b"x" * 32, "uid", "stage-0", 1),
    ]
    assert len({pair.secret, *(one.secret for one in others)}) == 5
    assert zmq.curve_public(pair.secret.encode()).decode() == pair.public
    assert pair.secret not in repr(pair)


class Lab:
    """Keys over a twin of the API server, with a clock that the test moves."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.now_s = 0.0
        self.keys = Keys(Client(self.store), "system", "root", lambda: self.now_s)

    def load(self) -> None:
        asyncio.run(self.keys.load())

    def ensure(self) -> Any:
        return asyncio.run(self.keys.ensure(MODEL, ROLES, 1))

    def pair(self, role: str) -> dict[str, str]:
        name = next(one for one in self.store.named("Secret") if f"-{role}-" in one)
        document = self.store.objects[f"/api/v1/namespaces/ai/secrets/{name}"]
        found: dict[str, str] = json.loads(base64.b64decode(document["data"]["key.json"]))
        return found


def test_the_root_secret_is_made_once_and_read_ever_after() -> None:
    lab = Lab()
    lab.load()
    first = lab.keys.public_key("uid-m", "stage-0", 1)
    again = Lab(lab.store)
    again.load()
    assert again.keys.public_key("uid-m", "stage-0", 1) == first
    assert lab.store.writes == [("POST", "/api/v1/namespaces/system/secrets")]


def test_two_operators_that_make_the_root_secret_at_once_agree() -> None:
    store = Store()
    one, two = Lab(store), Lab(store)

    async def both() -> None:
        await asyncio.gather(one.keys.load(), two.keys.load())

    asyncio.run(both())
    assert one.keys.public_key("u", "stage-0", 1) == two.keys.public_key("u", "stage-0", 1)


@pytest.mark.parametrize(
    "data", [{}, {"root": "c2hvcnQ="}, {"root": "~"}], ids=["no", "short", "odd"]
)
def test_a_root_secret_that_is_none_is_refused(data: dict[str, str]) -> None:
    lab = Lab()
    lab.store.put_in(
        {"kind": "Secret", "metadata": {"name": "root", "namespace": "system"}, "data": data}
    )
    with pytest.raises(InvalidConfig, match="Secret root"):
        lab.load()


def test_a_models_secrets_hold_what_the_others_are_told() -> None:
    lab = Lab()
    lab.load()
    assert lab.ensure() is None
    for role in ROLES:
        assert lab.pair(role)["public"] == lab.keys.public_key("uid-m", role, 1)
    secrets = [one for path, one in lab.store.objects.items() if "/ai/" in path]
    assert len(secrets) == 3
    assert all(one["immutable"] for one in secrets)
    assert all(one["metadata"]["ownerReferences"][0]["uid"] == "uid-m" for one in secrets)


def test_they_are_not_looked_for_each_time_and_a_lost_one_is_made_again_identically() -> None:
    lab = Lab()
    lab.load()
    lab.ensure()
    before, asked = lab.pair("stage-1"), len(lab.store.asked)
    lab.ensure()
    assert len(lab.store.asked) == asked
    path = next(path for path in lab.store.objects if "-stage-1-" in path)
    del lab.store.objects[path]
    lab.now_s += LOOK_AGAIN_S
    lab.ensure()
    assert lab.pair("stage-1") == before
    writes = len(lab.store.writes)
    lab.now_s += LOOK_AGAIN_S
    lab.ensure()
    assert len(lab.store.writes) == writes


def test_another_key_than_ours_is_told_and_never_overwritten() -> None:
    lab = Lab()
    lab.load()
    lab.ensure()
    del lab.store.objects["/api/v1/namespaces/system/secrets/root"]
    other = Lab(lab.store)
    other.load()
    writes = len(lab.store.writes)
    refusal = other.ensure()
    assert refusal is not None
    assert "root Secret system/root was replaced" in refusal.message
    assert len(lab.store.writes) == writes


def test_secrets_are_never_listed() -> None:
    lab = Lab()
    lab.store.before = lambda method, path, body: (
        status(403, "Forbidden") if method == "GET" and path.endswith("/secrets") else None
    )
    lab.load()
    assert lab.ensure() is None
