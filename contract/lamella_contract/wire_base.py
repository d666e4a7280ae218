"""The envelope that every frame begins with, fencing by it, and the primitives of packing.

Knows no message's fields: `wire_step`, `wire_gateway` and `wire_control` do. All numbers are
little-endian and unaligned; every count is checked against the bytes that are there before
anything of its size is made; whatever is wrong leaves as `WireError`. docs/wire.md has the bytes.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from lamella_contract.errors import WireError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"LMLA"
VERSION = 3
NO_INCARNATION = bytes(16)  # sent by who has not met the scheduler yet

# magic, version, kind, reserved (0), config hash, incarnation, epoch, sequence, body bytes
ENVELOPE = struct.Struct("<4sHBB16s16sIQI")
# what packing raises when a value is out of its range or of another type
PACK_ERRORS = (struct.error, TypeError, ValueError, OverflowError)


class Kind(enum.IntEnum):
    """What a frame is; the number is its byte on the wire."""

    STEP = 1
    STEP_DONE = 2
    HELLO = 16
    SUBMIT = 17
    CANCEL = 18
    REPLAY = 19
    EVENTS = 20
    PIPELINE_STATUS = 21
    JOIN = 32
    HEARTBEAT = 33
    MEMBERS = 34
    MEMBERS_ACK = 35
    REJECT = 36
    GOODBYE = 37


_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What fences a frame.

    ``config_hash`` and ``incarnation`` are 16 bytes; ``epoch`` (u32) counts the incarnation's
    changes of membership; ``sequence`` (u64) counts the frames of one link from 0. Encoders write
    their message's own kind whatever ``kind`` says, so one envelope serves a whole link.
    """

    kind: int
    config_hash: bytes
    incarnation: bytes
    epoch: int
    sequence: int


class Verdict(enum.Enum):
    """What to do with a frame."""

    ACCEPT = "accept"  # take it
    STALE = "stale"  # drop it and count: an earlier membership or a frame seen before
    GAP = "gap"  # frames or a change of membership were missed: resynchronise
    FOREIGN = "foreign"  # the peer was configured otherwise: refuse it


@dataclass(frozen=True, slots=True)
class Expected:
    """What the next frame of a link must carry; ``sequence`` is that frame's own number."""

    config_hash: bytes
    incarnation: bytes
    epoch: int
    sequence: int = 0

    def after(self, envelope: Envelope) -> Expected:
        """What to expect once ``envelope`` was accepted."""
        return Expected(self.config_hash, self.incarnation, self.epoch, envelope.sequence + 1)


def check_envelope(envelope: Envelope, expected: Expected) -> Verdict:
    """Judge a frame by its envelope; pure, so both ends and the tests share it.

    Incarnations are random and have no order, so another one is stale by definition: a new
    scheduler is learnt from `Members` on the control link, never from a data frame.
    """
    membership = check_membership(envelope, expected)
    if membership is not Verdict.ACCEPT or envelope.sequence == expected.sequence:
        return membership
    return Verdict.STALE if envelope.sequence < expected.sequence else Verdict.GAP


def check_membership(envelope: Envelope, expected: Expected) -> Verdict:
    """As `check_envelope` but blind to the sequence, for links that may begin anywhere."""
    if envelope.config_hash != expected.config_hash:
        return Verdict.FOREIGN
    if envelope.incarnation != expected.incarnation or envelope.epoch < expected.epoch:
        return Verdict.STALE
    return Verdict.GAP if envelope.epoch > expected.epoch else Verdict.ACCEPT


def seal(envelope: Envelope, kind: Kind, body: bytes) -> bytes:
    """A whole frame: the envelope under ``kind``, then ``body``."""
    if len(envelope.config_hash) != 16 or len(envelope.incarnation) != 16:
        raise WireError("config_hash and incarnation: want 16 bytes each")  # '16s' would pad
    try:
        head = ENVELOPE.pack(
            MAGIC,
            VERSION,
            kind,
            0,
            envelope.config_hash,
            envelope.incarnation,
            envelope.epoch,
            envelope.sequence,
            len(body),
        )
    except PACK_ERRORS as reason:
        raise WireError(f"envelope cannot be packed: {reason}") from reason
    return head + body


def decode_envelope(buf: Buffer) -> Envelope:
    """The envelope alone, checked; use it to dispatch on ``kind`` and to fence.

    Raises `WireError` for another magic, version or kind, and for a body of another length than
    the envelope says.
    """
    if len(buf) < ENVELOPE.size:
        raise WireError(f"frame: got {len(buf)} bytes, want at least {ENVELOPE.size}")
    magic, version, kind, reserved, config_hash, incarnation, epoch, sequence, size = (
        ENVELOPE.unpack_from(buf)
    )
    if magic != MAGIC:
        raise WireError(f"magic: got {magic!r}, want {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"version: got {version}, want {VERSION}; update the older side")
    known = _KINDS.get(kind)
    if known is None or reserved:
        raise WireError(f"kind: got {kind} with reserved byte {reserved}, want a known kind and 0")
    if size != len(buf) - ENVELOPE.size:
        raise WireError(f"body: got {len(buf) - ENVELOPE.size} bytes, envelope says {size}")
    return Envelope(known, config_hash, incarnation, epoch, sequence)


def open_as(buf: Buffer, *kinds: Kind) -> tuple[Envelope, Kind, Reader]:
    """Envelope, kind and a reader at the body, of a frame that must be of one of ``kinds``."""
    envelope = decode_envelope(buf)
    kind = _KINDS[envelope.kind]
    if kind not in kinds:
        wanted = " or ".join(k.name for k in kinds)
        raise WireError(f"kind: got {kind.name}, want {wanted}")
    return envelope, kind, Reader(buf, ENVELOPE.size)


class Reader:
    """A cursor over a frame that never reads past its end."""

    __slots__ = ("_buf", "_end", "_offset")

    def __init__(self, buf: Buffer, offset: int) -> None:
        self._buf = memoryview(buf)
        self._offset = offset
        self._end = len(buf)

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The next ``layout``."""
        return layout.unpack_from(self._buf, self._take(layout.size))

    def records(self, layout: struct.Struct, count: int) -> list[tuple[Any, ...]]:
        """The next ``count`` of ``layout``."""
        if not count:
            return []
        start = self._take(layout.size * count)
        return list(layout.iter_unpack(self._buf[start : self._offset]))

    def u32s(self, count: int) -> tuple[int, ...]:
        """The next ``count`` unsigned 32-bit numbers."""
        if not count:
            return ()
        start = self._take(4 * count)
        return struct.unpack_from(f"<{count}I", self._buf, start)

    def raw(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        start = self._take(size)
        return bytes(self._buf[start : self._offset])

    def text(self, size: int, limit: int = 255) -> str:
        """The next ``size`` bytes, at most ``limit``, as UTF-8."""
        if not size:
            return ""
        if size > limit:
            raise WireError(f"text: got {size} bytes, want at most {limit}")
        try:
            return self.raw(size).decode()
        except UnicodeDecodeError as reason:
            raise WireError(f"text is not UTF-8: {reason}") from reason

    def rest(self) -> bytes:
        """All that is left."""
        return self.raw(self._end - self._offset)

    def finish(self) -> None:
        """Raise if bytes are left over: a frame says exactly what it holds."""
        if self._offset != self._end:
            raise WireError(f"frame: {self._end - self._offset} bytes are left over")

    def _take(self, size: int) -> int:
        start = self._offset
        if size > self._end - start:
            raise WireError(f"frame: {self._end - start} bytes are left, want {size}")
        self._offset = start + size
        return start


def pack_u32s(values: tuple[int, ...] | list[int]) -> bytes:
    """Unsigned 32-bit numbers, one after the other, without their count."""
    return struct.pack(f"<{len(values)}I", *values) if values else b""


def pack_text(text: str, limit: int) -> bytes:
    """UTF-8 of ``text``, cut at ``limit`` bytes (never inside a character)."""
    raw = text.encode(errors="replace")
    return raw if len(raw) <= limit else raw[:limit].decode(errors="ignore").encode()


def cannot_pack(what: str, reason: Exception) -> NoReturn:
    """Turn a packing failure (a number out of range) into the one error of the wire."""
    raise WireError(f"{what} cannot be packed: {reason}") from reason
