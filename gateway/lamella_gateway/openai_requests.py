"""OpenAI's request bodies, parsed once into frozen values; what is not supported is refused.

Knows JSON and the fields of two endpoints; no tokens, no model, no sockets. A field is supported,
or accepted at the values that change nothing (clients send many defaults), or refused by name:
none is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .errors import ApiError, invalid
from .fields import Fields, entries, items, whole_numbers

ROLES = ("system", "user", "assistant")
MAX_STOPS = 4  # OpenAI's own limit
_MAX_STOP_CHARACTERS = 1024
_MAX_SALT_CHARACTERS = 1024
_MAX_TOP_K = 2**31 - 1
_MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; parts of content are joined, for only text parts are taken."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What both endpoints take. ``max_tokens`` and ``seed`` None: the server decides.

    ``top_k`` 0 is off. ``seed`` is reduced to 64 bits. ``ignore_eos`` is our extension: the
    answer ends at ``max_tokens`` only, as benchmarks want it. No request begins with what was
    computed for one of another ``cache_salt``.
    """

    stream: bool
    include_usage: bool
    stop: tuple[str, ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    ignore_eos: bool
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str | None
    messages: tuple[Message, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """``prompt`` is a text or the token ids themselves."""

    model: str | None
    prompt: str | tuple[int, ...]
    options: Options


def decode_json(body: bytes) -> object:
    """The JSON value in ``body``; `ApiError` 400 when it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as reason:
        raise invalid(None, f"The request body is not valid JSON: {reason}") from reason


def parse_chat(document: object) -> ChatRequest:
    """The body of POST /v1/chat/completions; `ApiError` 400 names what is wrong."""
    fields = Fields(document)
    model = fields.text("model")
    messages = _messages(fields)
    limit = _max_tokens(fields, "max_tokens", "max_completion_tokens")
    fields.off("logprobs", False)
    fields.off("top_logprobs", 0)
    fields.off("response_format", {"type": "text"})
    fields.off("tools", [])
    fields.off("tool_choice", "none")
    fields.off("functions", [])
    fields.off("function_call", "none")
    fields.flag("parallel_tool_calls")  # says nothing while there are no tools
    fields.off("modalities", ["text"])
    fields.off("reasoning_effort", "none")
    for name in ("audio", "prediction", "web_search_options", "verbosity"):
        fields.off(name)
    return ChatRequest(model, messages, _options(fields, limit))


def parse_completion(document: object) -> CompletionRequest:
    """The body of POST /v1/completions; `ApiError` 400 names what is wrong."""
    fields = Fields(document)
    model = fields.text("model")
    prompt = _prompt(fields)
    limit = _max_tokens(fields, "max_tokens")
    fields.off("logprobs", hint=" Token probabilities are not returned.")
    fields.off("echo", False)
    fields.off("suffix", "")
    fields.off("best_of", 1)
    return CompletionRequest(model, prompt, _options(fields, limit))


def _options(fields: Fields, max_tokens: int | None) -> Options:
    stream = fields.flag("stream")
    options = Options(
        stream=stream,
        include_usage=_include_usage(fields, stream),
        stop=_stop(fields),
        max_tokens=max_tokens,
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=_top_p(fields),
        top_k=max(0, fields.integer("top_k", -1, _MAX_TOP_K) or 0),  # -1 is a common "off"
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        seed=_seed(fields),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=_repetition_penalty(fields),
        ignore_eos=fields.flag("ignore_eos"),
        cache_salt=_cache_salt(fields),
    )
    fields.off("n", 1)
    fields.off("logit_bias", {})
    fields.off("store", False)
    fields.off("metadata", {})
    fields.off("service_tier", "auto", "default")
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        fields.text(name)  # labels of the client's own; nothing here depends on them
    fields.done()
    return options


def _messages(fields: Fields) -> tuple[Message, ...]:
    listed = items(fields.required("messages"))
    if not listed:
        raise invalid("messages", "Invalid value for 'messages': want a list of at least one.")
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(listed))


def _message(item: object, path: str) -> Message:
    fields = Fields(item, f"{path}.", f"'{path}'")
    role = fields.required("role")
    if not isinstance(role, str) or role not in ROLES:
        raise fields.wrong("role", role, f"one of {', '.join(ROLES)}")
    content = _content(fields, path)
    name = fields.text("name")
    # what the official client's own message objects carry when they are sent back
    for unused in ("refusal", "audio", "function_call", "reasoning_content", "reasoning"):
        fields.off(unused)
    fields.off("tool_calls", [])
    fields.off("annotations", [])
    fields.done()
    return Message(role, content, name)


def _content(fields: Fields, path: str) -> str:
    content = fields.required("content")
    if isinstance(content, str):
        return content
    parts = items(content)
    if parts is None:
        raise fields.wrong("content", content, "a string or a list of text parts")
    return "".join(_text_part(part, f"{path}.content[{i}]") for i, part in enumerate(parts))


def _text_part(item: object, path: str) -> str:
    part = Fields(item, f"{path}.", f"'{path}'")
    kind = part.required("type")
    if kind != "text":
        raise part.wrong("type", kind, "'text': this model reads text only")
    text = part.required("text")
    if not isinstance(text, str):
        raise part.wrong("text", text, "a string")
    part.done()
    return text


def _prompt(fields: Fields) -> str | tuple[int, ...]:
    prompt = fields.required("prompt")
    if isinstance(prompt, str):
        return prompt
    listed = items(prompt)
    if listed is not None and len(listed) == 1 and not isinstance(listed[0], int):
        only = listed[0]
        if isinstance(only, str):
            return only
        listed = items(only)
    ids = None if not listed else whole_numbers(listed)
    if ids is None:
        raise fields.wrong("prompt", prompt, "a string, a list of one string, or token ids")
    return ids


def _stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.any("stop")
    if stop is None:
        return ()
    listed = [stop] if isinstance(stop, str) else items(stop)
    if listed is None or len(listed) > MAX_STOPS:
        raise fields.wrong("stop", stop, f"a string or a list of at most {MAX_STOPS} strings")
    found = tuple(text for text in listed if isinstance(text, str) and text)
    if len(found) != len(listed) or any(len(text) > _MAX_STOP_CHARACTERS for text in found):
        raise fields.wrong("stop", stop, f"strings of 1 to {_MAX_STOP_CHARACTERS} characters")
    return found


def _max_tokens(fields: Fields, *names: str) -> int | None:
    given = [(name, fields.integer(name, 1)) for name in names]
    values = {value for _, value in given if value is not None}
    if len(values) > 1:
        raise invalid(names[0], f"Set only one of {' and '.join(repr(name) for name in names)}.")
    return next(iter(values), None)


def _include_usage(fields: Fields, stream: bool) -> bool:
    value = fields.any("stream_options")
    if value is None:
        return False
    if not stream:
        raise invalid("stream_options", "'stream_options' is only allowed when 'stream' is true.")
    inner = Fields(entries(value), "stream_options.", "'stream_options'")
    include = inner.flag("include_usage")
    inner.off("include_obfuscation", False)
    inner.done()
    return include


def _top_p(fields: Fields) -> float:
    value = fields.number("top_p", 1.0, 0.0, 1.0)
    if value == 0.0:
        raise fields.wrong("top_p", 0, "a number above 0 and at most 1")
    return value


def _repetition_penalty(fields: Fields) -> float:
    value = fields.number("repetition_penalty", 1.0, 0.0, 100.0)
    if value == 0.0:
        raise fields.wrong("repetition_penalty", 0, "a number above 0; 1 is off")
    return value


def _cache_salt(fields: Fields) -> str | None:
    salt = fields.text("cache_salt")
    if salt is not None and not 0 < len(salt) <= _MAX_SALT_CHARACTERS:
        raise fields.wrong("cache_salt", salt, f"1 to {_MAX_SALT_CHARACTERS} characters")
    return salt


def _seed(fields: Fields) -> int | None:
    value = fields.integer("seed", -(2**63), _MAX_SEED)
    return None if value is None else value & _MAX_SEED


__all__ = [
    "ApiError",
    "ChatRequest",
    "CompletionRequest",
    "Message",
    "Options",
    "decode_json",
    "parse_chat",
    "parse_completion",
]
