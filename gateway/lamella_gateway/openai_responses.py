"""OpenAI's answers as bytes: whole documents, and the chunks of a stream.

Knows JSON and two shapes (chat and text completion); no tokens, no sockets. Everything in a chunk
but the new text is the same from chunk to chunk, so it is encoded once per answer and a chunk is
three pieces of bytes joined.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import Any, Literal

import msgspec

from .answer import Usage
from .errors import ApiError

Shape = Literal["chat", "text"]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": the answer goes on\n\n"  # a comment, which clients of event streams skip


class ResponseWriter:
    """Encodes one answer. ``created_s`` is Unix time in whole seconds."""

    def __init__(
        self,
        shape: Shape,
        *,
        request_id: str,
        model: str,
        created_s: int,
        include_usage: bool = False,
    ) -> None:
        self._shape = shape
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if shape == 'chat' else 'cmpl'}-{request_id}",
            "object": "chat.completion.chunk" if shape == "chat" else "text_completion",
            "created": created_s,
            "model": model,
        }
        self._usage_null = {"usage": None} if include_usage else {}
        self._include_usage = include_usage
        # Ends of lines other than \n mean something to some clients' line readers, so all but
        # ASCII is escaped.
        self._before, self._after = self._template()

    def begin(self) -> bytes:
        """The chunk that names the speaker; text completions have none."""
        if self._shape == "text":
            return b""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([self._choice(delta=delta)])

    def text(self, text: str) -> bytes:
        """The chunk with new text; the only one written once per token."""
        return self._before + encode_basestring_ascii(text).encode("ascii") + self._after

    def end(self, finish_reason: str | None, usage: Usage) -> bytes:
        """The last chunks: why it ended, the usage if it was asked for, and [DONE]."""
        if self._shape == "chat":
            last = self._chunk([self._choice(delta={}, finish_reason=finish_reason)])
        else:
            last = self._chunk([self._choice(text="", finish_reason=finish_reason)])
        if self._include_usage:
            last += _event(self._head | {"choices": [], "usage": usage.fields()})
        return last + DONE

    def whole(self, text: str, finish_reason: str | None, usage: Usage) -> bytes:
        """The document of an answer that is not streamed."""
        if self._shape == "chat":
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = self._choice(message=message, finish_reason=finish_reason)
        else:
            choice = self._choice(text=text, finish_reason=finish_reason)
        kind = "chat.completion" if self._shape == "chat" else "text_completion"
        document = self._head | {"object": kind, "choices": [choice], "usage": usage.fields()}
        return msgspec.json.encode(document)

    def _choice(self, *, finish_reason: str | None = None, **content: object) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        return _event(self._head | {"choices": choices} | self._usage_null)

    def _template(self) -> tuple[bytes, bytes]:
        mark = "\x00"  # encoded as \u0000, which nothing else in the chunk can hold
        content: dict[str, Any] = (
            {"delta": {"content": mark}} if self._shape == "chat" else {"text": mark}
        )
        before, after = self._chunk([self._choice(**content)]).split(b'"\\u0000"')
        return before, after


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which failed in the middle."""
    return b"data: " + error.body() + b"\n\n"


def model_fields(served_name: str, created_s: int, max_model_len: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {
        "id": served_name,
        "object": "model",
        "created": created_s,
        "owned_by": "lamella",
        "max_model_len": max_model_len,
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
