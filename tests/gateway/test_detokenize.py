"""Detokenizing piece by piece gives the text of all ids, for each kind of decoder."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from lamella_gateway.detokenize import (
    PieceDetokenizer,
    WindowDetokenizer,
    detokenizers,
)

BYTES = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
WORDS = ["▁the", "▁", "the", "▁▁", "é", "日本", "<0xZZ>", "s", "▁fox", "\n", "🦊"]


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "Ġthe", "ðŁ", "ĵļ", "Ã©", "日"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("日本 x", special=False), AddedToken("<tool>")])
    return tokenizer


def sentencepiece(*, strip: bool) -> Tokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | BYTES
    for word in WORDS:
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), *((word, -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 0, False))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def wordpiece() -> Tokenizer:
    words = ["[UNK]", "the", "fox", "##es", ".", "##é", "日"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


KINDS = {
    "byte-level": (byte_level(), PieceDetokenizer),
    "sentencepiece": (sentencepiece(strip=False), PieceDetokenizer),
    "sentencepiece-strip": (sentencepiece(strip=True), PieceDetokenizer),
    "metaspace": (metaspace(), PieceDetokenizer),
    "wordpiece": (wordpiece(), WindowDetokenizer),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def special(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special)


def increments(tokenizer: Tokenizer, batches: Sequence[Sequence[int]]) -> tuple[list[str], object]:
    skip = special(tokenizer)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([i for i in ids if i not in skip], skip_special_tokens=False)

    detokenizer = detokenizers(tokenizer, skip=skip, decode=decode)(())
    return [*(detokenizer.feed(ids) for ids in batches), detokenizer.finish()], detokenizer


def whole_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """All ids at once. Only bytes that belong to no character become U+FFFD, where the library
    gives up a whole run of <0xNN> (see the module)."""
    if "ByteFallback" not in str(tokenizer.decoder):
        return tokenizer.decode(list(ids), skip_special_tokens=True)
    skip = special(tokenizer)
    tokens = [tokenizer.id_to_token(i) for i in ids if i not in skip]
    raw = b"".join(
        bytes([int(token[3:5], 16)])
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token)
        # a mark that no byte run can swallow, for a run ends at the next piece
        else b"\x00" + token.replace("▁", " ").encode() + b"\x00"
        for token in tokens
        if token is not None
    )
    text = raw.decode("utf-8", "replace").replace("\x00", "")
    return text.removeprefix(" ") if "Strip" in str(tokenizer.decoder) else text


@kinds
def test_the_kind_is_recognised(kind: str) -> None:
    tokenizer, expected = KINDS[kind]
    assert type(increments(tokenizer, [])[1]) is expected


@kinds
@settings(deadline=None)  # a busy machine is no failure
@given(data=st.data())
def test_increments_joined_are_the_whole_text(kind: str, data: st.DataObject) -> None:
    tokenizer, _ = KINDS[kind]
    ids = st.integers(0, tokenizer.get_vocab_size() + 2)
    zero = tokenizer.token_to_id("<0x00>")
    ids = ids.filter(lambda i: i != zero or zero is None)
    batches = data.draw(st.lists(st.lists(ids, max_size=4), max_size=12))
    flat = [token_id for batch in batches for token_id in batch]
    assert "".join(increments(tokenizer, batches)[0]) == whole_text(tokenizer, flat)


@kinds
@settings(deadline=None)  # a busy machine is no failure
@given(text=st.text("thefox é日本🦊\n", max_size=40))
def test_a_text_of_whole_characters_equals_the_library(kind: str, text: str) -> None:
    tokenizer, _ = KINDS[kind]
    ids = tokenizer.encode(text).ids
    pieces = increments(tokenizer, [[i] for i in ids])[0]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_a_character_is_shown_when_its_last_byte_is_there(kind: str) -> None:
    tokenizer, _ = KINDS[kind]
    if kind == "byte-level":
        byte_characters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("📚")
        ids = [tokenizer.token_to_id(character) for character in byte_characters[0][0]]
    else:
        ids = [BYTES[f"<0x{byte:02X}>"] for byte in "📚".encode()]
    assert increments(tokenizer, [[i] for i in ids])[0] == ["", "", "", "📚", ""]
    assert increments(tokenizer, [[i] for i in ids[:2]])[0] == ["", "", "\ufffd"]


def test_a_space_belongs_to_the_prompt_before_it() -> None:
    tokenizer = KINDS["sentencepiece-strip"][0]
    the = tokenizer.token_to_id("▁the")
    make = detokenizers(tokenizer, skip=special(tokenizer), decode=tokenizer.decode)
    assert make(()).feed([the]) == "the"
    assert make((1,)).feed([the]) == "the"  # only <s> before it: the text begins here
    assert make((1, the)).feed([the]) == " the"


def test_a_window_forgets_what_it_need_not_know() -> None:
    tokenizer = KINDS["wordpiece"][0]
    seen = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return tokenizer.decode(list(ids))

    detokenizer = WindowDetokenizer(decode)
    ids = [1, 2, 3] * 3000
    text = "".join(detokenizer.feed([i]) for i in ids) + detokenizer.finish()
    assert text == tokenizer.decode(ids)
    assert max(seen) < 32
