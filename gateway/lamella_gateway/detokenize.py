"""Token ids to text, piece by piece, such that the pieces joined are the text of all ids.

Knows the tokenizers library, not requests. Decoding each id alone is wrong (a character may lie
across tokens, a leading space depends on the neighbour) and decoding all ids again for each token
costs quadratic time. So the decoder of the model is recognised once:

- byte-level (GPT-2, Llama 3, Qwen): each token is some bytes, and UTF-8 is decoded incrementally;
- sentencepiece-like (Llama 2, Gemma, Mistral): each token is a text that does not depend on its
  neighbours, except tokens <0xNN>, which are one byte each;
- anything else: a window of the last few tokens is decoded again with each new one.

A run of <0xNN> that is not UTF-8 is where the second differs from the library on purpose: the
library turns the whole run into replacement characters, also those that were whole and have been
sent. Here only the bytes that belong to no character do.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"
_WINDOW_TOKENS = 8  # context that a neighbour-dependent decoder may look at
_PENDING_TOKENS = 16  # no character takes more tokens; more that end in U+FFFD are real ones

Piece = str | bytes


class Detokenizer(Protocol):
    """One answer's decoder."""

    def feed(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` add; characters not yet whole are held back."""

    def finish(self) -> str:
        """What was held back, with U+FFFD for bytes that never became a character."""


class Pieces:
    """What each id of a vocabulary adds to a text: text, or raw bytes. Filled as ids occur."""

    def __init__(self, find: Callable[[int], Piece]) -> None:
        self._find = find
        self._known: dict[int, Piece] = {}

    def __call__(self, token_id: int) -> Piece:
        piece = self._known.get(token_id)
        if piece is None:
            piece = self._known[token_id] = self._find(token_id)
        return piece


class PieceDetokenizer:
    """For vocabularies whose pieces do not depend on their neighbours."""

    __slots__ = ("_decode", "_decoder", "_first", "_pending", "_pieces", "_strip")

    def __init__(
        self, pieces: Pieces, *, strip: bool = False, first: Callable[[int], str] | None = None
    ) -> None:
        self._pieces = pieces
        self._strip = strip  # the text's first character is dropped if it is a space
        self._first = first  # the text of an id that begins a text, where that differs
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = self._decoder.decode
        self._pending = False  # bytes of an unfinished character are in the decoder

    def feed(self, ids: Iterable[int]) -> str:
        text = ""
        for token_id in ids:
            piece = self._pieces(token_id)
            if self._first is not None and piece:
                piece, self._first = self._first(token_id), None
            if isinstance(piece, bytes):
                text += self._decode(piece)
                self._pending = True
            elif piece:
                if self._pending:
                    text += self._flush()
                text += piece
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        return text

    def finish(self) -> str:
        return self._flush()

    def _flush(self) -> str:
        self._pending = False
        text = self._decode(b"", True)
        self._decoder.reset()
        return text


class WindowDetokenizer:
    """For any decoder: the text of a window of ids, with and without the newest, is compared."""

    __slots__ = ("_begin", "_decode", "_ids", "_shown")

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context[-_WINDOW_TOKENS:])
        self._begin = 0
        self._shown = len(self._ids)  # ids whose text has been given out

    def feed(self, ids: Iterable[int]) -> str:
        self._ids.extend(ids)
        return self._new_text(final=False)

    def finish(self) -> str:
        return self._new_text(final=True)

    def _new_text(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._begin : self._shown])
        text = self._decode(self._ids[self._begin :])
        pending = len(self._ids) - self._shown
        if text.endswith(_REPLACEMENT) and pending < _PENDING_TOKENS and not final:
            return ""
        self._shown = len(self._ids)
        if self._shown - self._begin > 2 * _WINDOW_TOKENS:
            self._begin = self._shown - _WINDOW_TOKENS
        if self._begin > 4096:
            del self._ids[: self._begin]
            self._shown -= self._begin
            self._begin = 0
        return text[len(before) :]


def detokenizers(
    backend: Any, *, skip: frozenset[int], decode: Callable[[Sequence[int]], str]
) -> Callable[[Sequence[int]], Detokenizer]:
    """A factory of detokenizers, given the ids before the answer (the prompt).

    ``backend`` is a ``tokenizers.Tokenizer`` or None for a tokenizer written in Python; ids in
    ``skip`` add no text; ``decode`` is the whole decoder, for vocabularies of no known kind.
    """
    kinds = [] if backend is None else _decoder_kinds(backend)
    if kinds == ["ByteLevel"]:
        pieces = Pieces(_byte_level(backend, skip))
        return lambda context: PieceDetokenizer(pieces)
    if _is_piecewise(kinds):
        pieces = Pieces(_piecewise(backend, skip, byte_tokens="ByteFallback" in kinds))
        strips = "Strip" in kinds
        first = _alone(backend) if kinds == ["Metaspace"] else None

        def make(context: Sequence[int]) -> Detokenizer:
            # the leading space belongs to the text only when a text stands before the answer
            if all(token_id in skip for token_id in context):
                return PieceDetokenizer(pieces, strip=strips, first=first)
            return PieceDetokenizer(pieces)

        return make
    return lambda context: WindowDetokenizer(decode, context)


def _decoder_kinds(backend: Any) -> list[str]:
    """Names of the decoder's parts in order; [] when there is none."""
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    parts = state["decoders"] if state["type"] == "Sequence" else [state]
    for part in parts:
        if part["type"] == "Replace" and len(part["pattern"].get("String", "")) != 1:
            return ["Unknown"]  # a pattern may match across tokens
        if part["type"] == "Strip" and (part["stop"], part["content"]) != (0, " "):
            return ["Unknown"]
        if part["type"] == "Strip" and part["start"] > 1:
            return ["Unknown"]
        if part["type"] == "Metaspace" and part["prepend_scheme"] == "never":
            return ["Unknown"]
    return [str(part["type"]) for part in parts if part["type"] != "Fuse"]


def _is_piecewise(kinds: Sequence[str]) -> bool:
    return bool(kinds) and (
        kinds == ["Metaspace"]
        or (set(kinds) <= {"Replace", "ByteFallback", "Strip"} and "Strip" not in kinds[:-1])
    )


def _byte_level(backend: Any, skip: frozenset[int]) -> Callable[[int], bytes]:
    table = _byte_of_character()

    def find(token_id: int) -> bytes:
        token = None if token_id in skip else backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(table[character] for character in token)
        except KeyError:
            return str(token).encode()  # an added token, which stands for itself

    return find


def _piecewise(backend: Any, skip: frozenset[int], *, byte_tokens: bool) -> Callable[[int], Piece]:
    anchor = _anchor(backend, skip)
    before = backend.decode([anchor], skip_special_tokens=False)

    def find(token_id: int) -> Piece:
        token = None if token_id in skip else backend.id_to_token(token_id)
        if token is None:
            return ""
        match = _BYTE_TOKEN.fullmatch(token) if byte_tokens else None
        if match is not None:
            return bytes([int(match[1], 16)])
        text = backend.decode([anchor, token_id], skip_special_tokens=False)
        return str(text[len(before) :])

    return find


def _alone(backend: Any) -> Callable[[int], str]:
    return lambda token_id: str(backend.decode([token_id], skip_special_tokens=False))


def _anchor(backend: Any, skip: frozenset[int]) -> int:
    """An id with a text of its own, to stand before the id that is asked about."""
    for token_id in range(backend.get_vocab_size()):
        token = None if token_id in skip else backend.id_to_token(token_id)
        if token is not None and token.isascii() and token.isalnum():
            return token_id
    return 0


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table
