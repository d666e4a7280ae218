"""The message of an inspector pod: what fits, what comes back, and what is refused.

``pytest tests/contract/test_profile_message.py``
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella_contract import errors
from lamella_contract.errors import InvalidConfig, LamellaError, ModelError
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_contract.profile_message import (
    MAX_BYTES,
    MAX_LAYERS,
    Failure,
    pack,
    pack_failure,
    read,
    unpack,
)

FULL = LayerProfile(1_711_300_608, 4096, 0, "full_attention")


def profile(layers: tuple[LayerProfile, ...], **more: object) -> ModelProfile:
    plain = ModelProfile(
        uri="hf://meta-llama/Llama-3.1-405B-Instruct",
        commit="f0b3e2d5c5a1f0b3e2d5c5a1f0b3e2d5c5a1abcd",
        family="llama",
        dtype="bfloat16",
        hidden_size=16384,
        vocab_size=128256,
        max_model_len=131072,
        layers=layers,
        embedding_bytes=4_202_692_608,
        head_bytes=4_202_692_608,
        final_bytes=32768,
        tied=False,
        boundary_bytes_per_token=32768,
        allowed_cuts=tuple(range(1, len(layers))),
        eos_token_ids=(128001, 128008, 128009),
    )
    return dataclasses.replace(plain, **more)


def mixed(count: int, kinds: int) -> tuple[LayerProfile, ...]:
    """Layers of ``kinds`` kinds in an order without any pattern."""
    chance = random.Random(7)
    known = [
        LayerProfile(chance.randrange(10**9), 64 * kind, 4096 * kind, f"kind_{kind % 4}")
        for kind in range(kinds)
    ]
    return tuple(chance.choices(known, k=count))


FITTING = {
    "126 equal layers": (profile((FULL,) * 126), "json", 1000),
    "400 layers of two kinds": (profile(mixed(400, 2)), "json", MAX_BYTES),
    "400 layers of 60 kinds": (profile(mixed(400, 60)), "deflate", MAX_BYTES),
    "64 layers, each another": (profile(mixed(400, 400)[:64]), "deflate", MAX_BYTES),
    "one layer": (profile((FULL,)), "json", 1000),
    "cuts with holes": (
        profile((FULL,) * 60, allowed_cuts=(0, 1, 2, 7, 30, 31), cut_reason="shared caches"),
        "json",
        1100,
    ),
}


@pytest.mark.parametrize(("whole", "encoding", "most"), FITTING.values(), ids=FITTING)
def test_profiles_come_back(whole: ModelProfile, encoding: str, most: int) -> None:
    message = pack(whole)
    assert message.isascii()
    assert message.split(" ")[:2] == ["lamella-profile", "1"]
    assert message.split(" ")[3] == encoding
    assert len(message) <= most <= MAX_BYTES
    assert read(message) == unpack(message) == unpack(f"\n{message}\n") == whole


TOO_LARGE = {
    "400 layers, each another": profile(mixed(2000, 400)[:400]),
    "a long text": profile((FULL,), cut_reason=random.Random(1).randbytes(6000).hex()),
    "too many layers": profile((FULL,) * (MAX_LAYERS + 1)),
    "a text that deflate makes small": profile((FULL,), cut_reason="x" * (1 << 21)),
}


@pytest.mark.parametrize("whole", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_does_not_fit_is_refused_with_a_sentence(whole: ModelProfile) -> None:
    with pytest.raises(InvalidConfig) as refused:
        pack(whole)
    assert f"want at most {MAX_BYTES} bytes and {MAX_LAYERS} layers" in str(refused.value)


MESSAGES = {"json": pack(profile((FULL,) * 126)), "deflate": pack(profile(mixed(400, 60)))}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_no_part_of_a_message_is_taken_for_a_whole(message: str) -> None:
    for length in range(len(message)):
        with pytest.raises(InvalidConfig, match=r"^profile message: "):
            read(message[:length])


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@given(data=st.data())
def test_no_changed_message_is_taken_for_a_whole(message: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(message) - 1))
    sign = data.draw(st.characters(codec="utf-8").filter(lambda sign: sign != message[at]))
    changed = message[:at] + sign + message[at + 1 :]
    if changed.strip() == message:
        return
    with pytest.raises(InvalidConfig):
        unpack(changed)


def sealed(payload: str, encoding: str = "json", version: str = "1") -> str:
    """A message whose checksum is right."""
    checksum = hashlib.sha256(payload.encode()).hexdigest()[:16]
    return f"lamella-profile {version} {checksum} {encoding} {payload}"


def forged(**layers: object) -> str:
    document = json.loads(MESSAGES["json"].split(" ", 4)[4])
    document["layers"].update(layers)
    return sealed(json.dumps(document))


def bomb() -> str:
    return base64.b64encode(zlib.compress(b" " * (1 << 24))).decode()


REFUSALS = {
    "empty": ("", "got 'nothing', want what an inspector writes"),
    "a log instead": ("Traceback (most recent call last):", "want what an inspector writes"),
    "of a newer version": (
        sealed("{}", version="2"),
        "got version '2', want 1: the inspector's image is of another version",
    ),
    "cut off": (MESSAGES["deflate"][:-1], "the message was cut off or changed"),
    "no JSON": (sealed("{"), "not valid JSON"),
    "no object": (sealed("[]"), "want an object with profile and layers"),
    "no layers": (sealed('{"profile":{}}'), "layers: got nothing, want an object"),
    "a field too many": (forged(more=1), "layers.more: unknown field"),
    "a kind that is not there": (
        forged(runs=[[1, 2]]),
        "a run names a kind of layer that is not there",
    ),
    "layers without end": (forged(runs=[[0, 10**12]]), "want at most 4096 layers"),
    "cuts without end": (forged(cuts=[[0, 10**12]]), "want at most 4096 layers"),
    "fewer than no layers": (forged(runs=[[0, -1]]), "want at most 4096 layers"),
    "no layer at all": (forged(runs=[], cuts=[]), "layers: got none, want at least one"),
    "no base64": (sealed("%%%", "deflate"), "not deflate in base64"),
    "no deflate": (sealed("AAAA", "deflate"), "not deflate in base64"),
    "half of a deflate": (
        sealed(base64.b64encode(zlib.compress(b"{}" * 99)[:9]).decode(), "deflate"),
        "want at most 1048576 bytes of JSON",
    ),
    "a bomb": (sealed(bomb(), "deflate"), "want at most 1048576 bytes of JSON"),
    "a failure": (pack_failure(errors.GatedModel("no")), "got a failure (gated_model)"),
}


@pytest.mark.parametrize(("message", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(message: str, words: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        unpack(message)
    assert words in str(refused.value)


def kinds_of(root: type[LamellaError]) -> list[type[LamellaError]]:
    ours = [kind for kind in root.__subclasses__() if kind.__module__ == root.__module__]
    return [root, *(kind for child in ours for kind in kinds_of(child))]


@pytest.mark.parametrize("cls", [*kinds_of(ModelError), InvalidConfig], ids=lambda cls: cls.kind)
def test_failures_come_back_as_what_they_were(cls: type[LamellaError]) -> None:
    found = read(pack_failure(cls("hf://org/name: the hub answered 401")))
    assert found == Failure(cls.kind, "hf://org/name: the hub answered 401")
    assert isinstance(found, Failure)
    assert type(found.error()) is cls
    assert str(found.error()) == "hf://org/name: the hub answered 401"


TEXTS = {
    "something unforeseen": (ZeroDivisionError("division by zero"), "error", "division by zero"),
    "nothing said": (TimeoutError(), "error", "TimeoutError"),
    "a line end": (errors.HubUnreachable("a\nb\x1b[1m"), "hub_unreachable", "a\nb [1m"),
    "an address": (errors.InvalidSpec("a", 1, "b"), "invalid_spec", "a: got 1, want b"),
}


@pytest.mark.parametrize(("error", "kind", "text"), TEXTS.values(), ids=TEXTS)
def test_what_failures_say(error: Exception, kind: str, text: str) -> None:
    assert read(pack_failure(error)) == Failure(kind, text)


LONG = {"words": "word " * 2000, "quotes": '"' * 5000, "wide": "模" * 3000, "lone": "\ud800" * 4000}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_failures_are_cut(text: str) -> None:
    message = pack_failure(errors.CorruptModel(text))
    assert len(message.encode()) <= MAX_BYTES
    found = read(message)
    assert isinstance(found, Failure)
    assert found.message.endswith("…")
    assert len(found.message.encode()) >= 1000


@given(st.text(max_size=300))
def test_any_failure_can_be_read(text: str) -> None:
    message = pack_failure(errors.CorruptModel(text))
    assert len(message.encode()) <= MAX_BYTES
    found = read(message)
    assert isinstance(found, Failure)
    assert found.kind == "corrupt_model"


SIZES = st.integers(0, 1 << 40)
LAYERS = st.builds(
    LayerProfile,
    SIZES,
    SIZES,
    SIZES,
    st.sampled_from(["full_attention", "sliding_attention", "linear_attention"]),
)


@st.composite
def profiles(draw: st.DrawFn) -> ModelProfile:
    kinds = draw(st.lists(LAYERS, min_size=1, max_size=5))
    layers = tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=100)))
    return ModelProfile(
        uri=draw(st.text(max_size=40)),
        commit=draw(st.text(max_size=40)),
        family=draw(st.text(max_size=10)),
        dtype=draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        hidden_size=draw(st.integers(1, 1 << 20)),
        vocab_size=draw(st.integers(1, 1 << 20)),
        max_model_len=draw(st.integers(1, 1 << 20)),
        layers=layers,
        embedding_bytes=draw(SIZES),
        head_bytes=draw(SIZES),
        final_bytes=draw(SIZES),
        tied=draw(st.booleans()),
        boundary_bytes_per_token=draw(SIZES),
        allowed_cuts=tuple(draw(st.lists(st.integers(0, len(layers) - 1), max_size=50))),
        cut_reason=draw(st.text(max_size=40)),
        eos_token_ids=tuple(draw(st.lists(st.integers(0, 1 << 20), max_size=5))),
    )


@given(profiles())
def test_any_profile_comes_back_or_is_refused(whole: ModelProfile) -> None:
    try:
        message = pack(whole)
    except InvalidConfig:
        return
    assert len(message) <= MAX_BYTES
    assert unpack(message) == whole


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(InvalidConfig):
        read(text)
