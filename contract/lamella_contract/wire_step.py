"""Frames between stages: `StepHeader` down the line, `StepDone` from the last stage to stage 0.

Knows no tensor: a header names the tensors whose raw bytes follow it as further parts of the
message. One of each is made and read per step, so records that come by the dozen are named tuples
(a frozen dataclass takes four times as long to make) and equal records are packed by one call.

Each kind of thing is packed as a column of fixed records; what varies in length (block ids,
tokens, text) follows in columns of its own. docs/wire.md draws both frames.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

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

MAX_TEXT = 4096  # bytes of an error's message; longer ones are cut

EVERY_STAGE = 0xFFFF
"""`StepHeader.through` of a step that all stages compute."""

# step, through, failed text bytes, then the counts of frees, segments, trace, tensors, adopts
STEP = struct.Struct("<QHH5I")
FREE = struct.Struct("<II")  # slot, generation
SEGMENT = struct.Struct("<IIIIIB")  # slot, generation, start, count, new blocks, sample (0/1)
TRACE = struct.Struct("<QQ")  # compute ns, idle ns
TENSOR = struct.Struct("<BBBI")  # name bytes, dtype bytes, dimensions, parts
ADOPT = struct.Struct("<7I")  # slot, generation, prompt length, ids, held, blocks, sources
# temperature, top_p, min_p, presence, frequency, repetition, top_k, seed, max tokens,
# stop token ids, ignore_eos (0/1)
SAMPLING = struct.Struct("<6dIQIIB")
# step, error text bytes, then the counts of rows and trace
DONE = struct.Struct("<QHII")
ROW = struct.Struct("<IIII")  # slot, generation, position, ids

# makes a named tuple without the Python frame of its own constructor: half the time per record
new_record = tuple.__new__


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are drawn; ``top_k`` 0 and ``min_p`` 0 are off, ``seed`` is a u64."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class Free(NamedTuple):
    """Slot ``slot`` of this generation is done: every stage drops what it keeps for it."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """A request takes a slot: all its known ids, prompt first, and how to sample it.

    ``held`` of its first positions need not be computed again: the stages kept them, in the first
    of ``blocks``, from an earlier epoch of this incarnation and under this generation; or other
    sequences left them in ``sources``: these blocks are copied into the first of ``blocks``, and
    all are read before any is written.
    """

    slot: int
    generation: int
    prompt_len: int
    ids: tuple[int, ...]
    sampling: Sampling
    held: int = 0
    blocks: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()


class SegmentHeader(NamedTuple):
    """Rows ``[start, start + count)`` of one sequence, in the order of the packed tensor.

    ``new_blocks`` are appended to the slot's block table; ``sample`` asks for a token after the
    last row.
    """

    slot: int
    generation: int
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    sample: bool
    new_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of the bundle; its bytes are the next ``parts`` parts of the message."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: int


class StageTime(NamedTuple):
    """What one stage did in this step, in the order of the stages."""

    compute_ns: int
    idle_ns: int


@dataclass(frozen=True, slots=True)
class StepHeader:
    """Everything that stage 0 decided for one step.

    ``failed`` non-empty: a stage upstream could not compute this step; pass it on, compute
    nothing. Frees are applied before adopts, adopts before segments. Stages after ``through`` hold
    the positions of all segments: they compute nothing and are sent no tensors.
    """

    step: int
    frees: tuple[Free, ...] = ()
    adopts: tuple[Adopt, ...] = ()
    segments: tuple[SegmentHeader, ...] = ()
    trace: tuple[StageTime, ...] = ()
    tensors: tuple[TensorHeader, ...] = ()
    failed: str = ""
    through: int = EVERY_STAGE


class RowResult(NamedTuple):
    """New tokens of one sampled segment; ``position`` is the first one's absolute position."""

    slot: int
    generation: int
    position: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step is over; every step ends in one. ``error`` non-empty: it was not computed."""

    step: int
    rows: tuple[RowResult, ...] = ()
    trace: tuple[StageTime, ...] = ()
    error: str = ""


def encode_step(envelope: Envelope, header: StepHeader) -> bytes:
    """The first part of a step's message; `WireError` if a number is out of its range."""
    failed = pack_text(header.failed, MAX_TEXT) if header.failed else b""
    segments = header.segments
    try:
        parts = [
            STEP.pack(
                header.step,
                header.through,
                len(failed),
                len(header.frees),
                len(segments),
                len(header.trace),
                len(header.tensors),
                len(header.adopts),
            )
        ]
        parts += [FREE.pack(*free) for free in header.frees]
        blocks: list[int] = []
        for slot, generation, start, count, sample, new_blocks in segments:
            parts.append(SEGMENT.pack(slot, generation, start, count, len(new_blocks), sample))
            blocks += new_blocks
        parts.append(pack_u32s(blocks))
        parts += [TRACE.pack(*time) for time in header.trace]
        parts += [_pack_tensor(tensor) for tensor in header.tensors]
        parts += [_pack_adopt(adopt) for adopt in header.adopts]
        parts.append(failed)
    except PACK_ERRORS as reason:
        cannot_pack("step header", reason)
    return seal(envelope, Kind.STEP, b"".join(parts))


def decode_step(buf: Buffer) -> tuple[Envelope, StepHeader]:
    """Undo `encode_step`; raises `WireError` and nothing else."""
    envelope, _, reader = open_as(buf, Kind.STEP)
    step, through, n_text, n_frees, n_segments, n_trace, n_tensors, n_adopts = reader.unpack(STEP)
    frees = tuple(map(Free._make, reader.records(FREE, n_frees)))
    segments = _read_segments(reader, n_segments)
    trace = tuple(map(StageTime._make, reader.records(TRACE, n_trace)))
    tensors = tuple([_read_tensor(reader) for _ in range(n_tensors)])
    adopts = tuple([_read_adopt(reader) for _ in range(n_adopts)])
    failed = reader.text(n_text, MAX_TEXT)
    reader.finish()
    return envelope, StepHeader(step, frees, adopts, segments, trace, tensors, failed, through)


def _read_segments(reader: Reader, count: int) -> tuple[SegmentHeader, ...]:
    records = reader.records(SEGMENT, count)
    blocks = reader.u32s(sum([record[4] for record in records]))
    segments = []
    taken = 0
    for slot, generation, start, rows, n_blocks, sample in records:
        if sample > 1:
            raise WireError(f"segment: sample is {sample}, want 0 or 1")
        mine = blocks[taken : taken + n_blocks] if n_blocks else ()
        taken += n_blocks
        values = (slot, generation, start, rows, sample == 1, mine)
        segments.append(new_record(SegmentHeader, values))
    return tuple(segments)


def encode_step_done(envelope: Envelope, done: StepDone) -> bytes:
    """One message of one part; `WireError` if a number is out of its range."""
    error = pack_text(done.error, MAX_TEXT) if done.error else b""
    try:
        parts = [DONE.pack(done.step, len(error), len(done.rows), len(done.trace))]
        ids: list[int] = []
        for slot, generation, position, new in done.rows:
            parts.append(ROW.pack(slot, generation, position, len(new)))
            ids += new
        parts.append(pack_u32s(ids))
        parts += [TRACE.pack(*time) for time in done.trace]
        parts.append(error)
    except PACK_ERRORS as reason:
        cannot_pack("step done", reason)
    return seal(envelope, Kind.STEP_DONE, b"".join(parts))


def decode_step_done(buf: Buffer) -> tuple[Envelope, StepDone]:
    """Undo `encode_step_done`; raises `WireError` and nothing else."""
    envelope, _, reader = open_as(buf, Kind.STEP_DONE)
    step, error_bytes, n_rows, n_trace = reader.unpack(DONE)
    records = reader.records(ROW, n_rows)
    ids = reader.u32s(sum([record[3] for record in records]))
    rows = []
    taken = 0
    for slot, generation, position, n_ids in records:
        values = (slot, generation, position, ids[taken : taken + n_ids])
        rows.append(new_record(RowResult, values))
        taken += n_ids
    trace = tuple(map(StageTime._make, reader.records(TRACE, n_trace)))
    error = reader.text(error_bytes, MAX_TEXT)
    reader.finish()
    return envelope, StepDone(step, tuple(rows), trace, error)


def pack_sampling(sampling: Sampling) -> bytes:
    """`SAMPLING`, then the stop token ids; raises `struct.error` out of range."""
    s = sampling
    head = SAMPLING.pack(
        s.temperature,
        s.top_p,
        s.min_p,
        s.presence_penalty,
        s.frequency_penalty,
        s.repetition_penalty,
        s.top_k,
        s.seed,
        s.max_tokens,
        len(s.stop_token_ids),
        s.ignore_eos,
    )
    return head + pack_u32s(s.stop_token_ids)


def read_sampling(reader: Reader) -> Sampling:
    """Undo `pack_sampling`; NaN and infinities are refused."""
    *floats, top_k, seed, max_tokens, n_stop, ignore_eos = reader.unpack(SAMPLING)
    if not all(map(math.isfinite, floats)) or ignore_eos > 1:
        raise WireError(f"sampling: got {floats} and ignore_eos {ignore_eos}, want finite and 0/1")
    temperature, top_p, min_p, presence, frequency, repetition = floats
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        seed=seed,
        max_tokens=max_tokens,
        stop_token_ids=reader.u32s(n_stop),
        ignore_eos=ignore_eos == 1,
    )


def _pack_adopt(adopt: Adopt) -> bytes:
    a = adopt
    counts = (len(a.ids), a.held, len(a.blocks), len(a.sources))
    head = ADOPT.pack(a.slot, a.generation, a.prompt_len, *counts)
    return head + pack_u32s((*a.ids, *a.blocks, *a.sources)) + pack_sampling(a.sampling)


def _read_adopt(reader: Reader) -> Adopt:
    slot, generation, prompt_len, n_ids, held, n_blocks, n_sources = reader.unpack(ADOPT)
    if prompt_len > n_ids or held > n_ids or n_sources > n_blocks:
        found = f"prompt of {prompt_len}, {held} held, in {n_ids} ids"
        raise WireError(f"adopt: {found}, {n_sources} sources for {n_blocks} blocks, want no more")
    ids, blocks, sources = reader.u32s(n_ids), reader.u32s(n_blocks), reader.u32s(n_sources)
    return Adopt(slot, generation, prompt_len, ids, read_sampling(reader), held, blocks, sources)


def _pack_tensor(tensor: TensorHeader) -> bytes:
    name, dtype = tensor.name.encode(), tensor.dtype.encode()
    head = TENSOR.pack(len(name), len(dtype), len(tensor.shape), tensor.parts)
    return head + pack_u32s(tensor.shape) + name + dtype


def _read_tensor(reader: Reader) -> TensorHeader:
    name_bytes, dtype_bytes, dims, parts = reader.unpack(TENSOR)
    shape = reader.u32s(dims)
    return TensorHeader(reader.text(name_bytes), reader.text(dtype_bytes), shape, parts)
