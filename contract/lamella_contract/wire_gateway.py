"""Frames between a gateway and stage 0's scheduler: requests down, token events up.

Knows no HTTP and no text: a request is ids and sampling, an answer is ids and why it ended. The
gateway fences by ``attempt`` (raised each time it submits a request again) and ``position``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from lamella_contract.errors import WireError
from lamella_contract.wire_base import (
    PACK_ERRORS,
    Buffer,
    Envelope,
    Kind,
    Reader,
    cannot_pack,
    open_as,
    pack_text,
    pack_u32s,
    seal,
)
from lamella_contract.wire_json import read_json, write_json
from lamella_contract.wire_step import (
    MAX_TEXT,
    Sampling,
    new_record,
    pack_sampling,
    read_sampling,
)

REQUEST_ID_BYTES = 16
NO_SALT = bytes(16)

SUBMIT = struct.Struct("<16sIII16s")  # request id, attempt, prompt length, ids, salt
CANCEL = struct.Struct("<16sI")  # request id, attempt
REPLAY = struct.Struct("<16sII")  # request id, attempt, position
EVENTS = struct.Struct("<I")  # events
# request id, attempt, position, ids, cached, finish, has error (0/1)
EVENT = struct.Struct("<16sIIIIBB")
EVENT_ERROR = struct.Struct("<dBH")  # retry after s, kind bytes, message bytes

FINISHES = ("", "stop", "length", "error", "cancelled")  # the byte is the place in this list
_FINISH_CODES = {name: code for code, name in enumerate(FINISHES)}


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of a gateway to a stage 0, and again after silence.

    Stage 0 answers with `PipelineStatus`. ``role`` is ``gateway-<k>``.
    """

    role: str
    pid: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Submit:
    """Serve this request: all known ids, prompt first (more than the prompt when resuming).

    ``sampling.max_tokens`` counts output tokens from the prompt's end, known ones included.
    Keys and values of a prompt's beginning are shared among requests of equal ``salt`` only.
    """

    request_id: bytes
    attempt: int
    prompt_len: int
    ids: tuple[int, ...]
    sampling: Sampling
    salt: bytes = NO_SALT


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this attempt any more: free what it holds."""

    request_id: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Events were missed: send this attempt's events again from output position ``position``."""

    request_id: bytes
    attempt: int
    position: int


class TokenEvent(NamedTuple):
    """News of one request: ``ids`` are the output tokens from ``position`` (0 the first) on.

    ``finish`` is one of `FINISHES`, "" while it goes on. An error names its class by
    ``error_kind`` (`errors.from_kind`); ``retry_after_s`` belongs to `Overloaded`. ``cached``
    tokens of the prompt were there from other requests; only the event with position 0 says it.
    """

    request_id: bytes
    attempt: int
    position: int
    ids: tuple[int, ...]
    finish: str = ""
    error: str = ""
    error_kind: str = ""
    retry_after_s: float = 0.0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Events:
    """What one step brought for one gateway."""

    items: tuple[TokenEvent, ...]


@dataclass(frozen=True, slots=True)
class StageReport:
    """How one stage of the pipeline is: ``silent`` for a member that is not heard."""

    stage: int
    state: str
    layers: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Tokens per second that the stages' own step times allow when so many requests decode."""

    requests: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """How a pipeline is, on Hello and on every change; ``reason`` says why it is not ready."""

    ready: bool
    reason: str
    kv_tokens: int
    kv_tokens_free: int
    queued_tokens: int
    running: int
    waiting: int
    stages: tuple[StageReport, ...] = ()
    roofline: tuple[Ceiling, ...] = ()


GatewayMessage: TypeAlias = Hello | Submit | Cancel | Replay | Events | PipelineStatus
GATEWAY_KINDS: dict[Kind, type[GatewayMessage]] = {
    Kind.HELLO: Hello,
    Kind.SUBMIT: Submit,
    Kind.CANCEL: Cancel,
    Kind.REPLAY: Replay,
    Kind.EVENTS: Events,
    Kind.PIPELINE_STATUS: PipelineStatus,
}


def encode_gateway(envelope: Envelope, message: GatewayMessage) -> bytes:
    """One frame; `WireError` if a number is out of its range."""
    try:
        match message:
            case Events():
                return seal(envelope, Kind.EVENTS, _pack_events(message))
            case Submit(request_id, attempt, prompt_len, ids, sampling, salt):
                head = SUBMIT.pack(_id(request_id), attempt, prompt_len, len(ids), _id(salt))
                body = head + pack_u32s(ids) + pack_sampling(sampling)
                return seal(envelope, Kind.SUBMIT, body)
            case Cancel(request_id, attempt):
                return seal(envelope, Kind.CANCEL, CANCEL.pack(_id(request_id), attempt))
            case Replay(request_id, attempt, position):
                body = REPLAY.pack(_id(request_id), attempt, position)
                return seal(envelope, Kind.REPLAY, body)
            case Hello():
                return seal(envelope, Kind.HELLO, write_json(message))
            case PipelineStatus():
                return seal(envelope, Kind.PIPELINE_STATUS, write_json(message))
    except PACK_ERRORS as reason:
        cannot_pack(type(message).__name__, reason)


def decode_gateway(buf: Buffer) -> tuple[Envelope, GatewayMessage]:
    """Undo `encode_gateway`; raises `WireError` and nothing else."""
    envelope, kind, reader = open_as(buf, *GATEWAY_KINDS)
    message: GatewayMessage
    match kind:
        case Kind.EVENTS:
            message = _read_events(reader)
        case Kind.SUBMIT:
            message = _read_submit(reader)
        case Kind.CANCEL:
            message = Cancel(*reader.unpack(CANCEL))
        case Kind.REPLAY:
            message = Replay(*reader.unpack(REPLAY))
        case _:
            message = read_json(GATEWAY_KINDS[kind], reader)
    reader.finish()
    return envelope, message


def _read_submit(reader: Reader) -> Submit:
    request_id, attempt, prompt_len, n_ids, salt = reader.unpack(SUBMIT)
    if prompt_len > n_ids:
        raise WireError(f"submit: prompt of {prompt_len} in {n_ids} ids, want at most all of them")
    ids = reader.u32s(n_ids)
    return Submit(request_id, attempt, prompt_len, ids, read_sampling(reader), salt)


def _pack_events(events: Events) -> bytes:
    """`EVENTS`, a column of `EVENT`, a column of ids, then the errors of those that have one."""
    parts = [EVENTS.pack(len(events.items))]
    ids: list[int] = []
    errors: list[bytes] = []
    for (
        request_id,
        attempt,
        position,
        new,
        finish,
        error,
        error_kind,
        retry_after_s,
        cached,
    ) in events.items:
        code = _FINISH_CODES.get(finish)
        if code is None:
            raise WireError(f"event: finish is {finish!r}, want one of {FINISHES}")
        has_error = bool(error or error_kind or retry_after_s)
        parts.append(
            EVENT.pack(_id(request_id), attempt, position, len(new), cached, code, has_error)
        )
        ids += new
        if has_error:
            text, kind = pack_text(error, MAX_TEXT), error_kind.encode()
            errors += (EVENT_ERROR.pack(retry_after_s, len(kind), len(text)), kind, text)
    return b"".join((*parts, pack_u32s(ids), *errors))


def _read_events(reader: Reader) -> Events:
    (count,) = reader.unpack(EVENTS)
    records = reader.records(EVENT, count)
    ids = reader.u32s(sum([record[3] for record in records]))
    items = []
    taken = 0
    for request_id, attempt, position, n_ids, cached, code, has_error in records:
        if code >= len(FINISHES) or has_error > 1:
            raise WireError(f"event: finish code {code}, error flag {has_error}: unknown")
        new = ids[taken : taken + n_ids]
        taken += n_ids
        error, kind, retry_after_s = _read_error(reader) if has_error else ("", "", 0.0)
        finish = FINISHES[code]
        values = (request_id, attempt, position, new, finish, error, kind, retry_after_s, cached)
        items.append(new_record(TokenEvent, values))
    return Events(tuple(items))


def _read_error(reader: Reader) -> tuple[str, str, float]:
    retry_after_s, kind_bytes, text_bytes = reader.unpack(EVENT_ERROR)
    if not math.isfinite(retry_after_s):
        raise WireError(f"event: retry_after_s is {retry_after_s}, want a finite number")
    if not (kind_bytes or text_bytes or retry_after_s):
        raise WireError("event: its error is flagged and empty")
    kind = reader.text(kind_bytes)
    return reader.text(text_bytes, MAX_TEXT), kind, retry_after_s


def _id(name: bytes) -> bytes:
    if len(name) != REQUEST_ID_BYTES:  # '16s' would pad or cut in silence
        raise WireError(f"request_id or salt: got {len(name)} bytes, want {REQUEST_ID_BYTES}")
    return name
