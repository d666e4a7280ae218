"""A small ring of frames in memory that two neighbours on one host share.

Knows no steps and no sockets. It exists because a hop through a socket costs two wake-ups and cold
kernel code for each token; it is a short cut beside the encrypted link and never instead of it:
whatever does not fit, and whoever is on another host or has no core of its own, goes by ZeroMQ.

The memory is a memfd of the receiver's process, so it lies on no file system and ends with its
users; a pipe beside it is the bell that wakes a receiver which sleeps. Their address (process,
descriptors and a random token) reaches the sender over the encrypted control link, and only the
same user may open them. One writer, one reader, both on x86 or another
machine that keeps the order of stores; the writer publishes by raising a count after the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import platform
import secrets
import struct
from collections.abc import Sequence
from typing import NamedTuple

SLOTS = 16
SLOT_BYTES = 256 * 1024
_HEAD_BYTES = 4096
_SIZE = _HEAD_BYTES + SLOTS * SLOT_BYTES

# Each on a cache line of its own, for both sides write.
_TOKEN, _WRITTEN, _TAKEN, _ASLEEP, _BEGAN = 0, 64, 128, 192, 256
_COUNT = struct.Struct("<Q")
_PARTS = struct.Struct("<II")  # parts, bytes of all parts; 0 parts: the frame comes by socket
_PART = struct.Struct("<I")
_DIGEST_BYTES = 16

Buffer = bytes | memoryview


class ByRing(NamedTuple):
    """A frame that lay in the ring: its parts, copied out."""

    parts: list[memoryview]


class BySocket(NamedTuple):
    """A frame that was too large: it comes, or has come, by the socket, and its header digests
    to this."""

    digest: bytes


def usable() -> bool:
    """Whether this machine keeps the order of stores and has memfds."""
    return platform.machine() in {"x86_64", "AMD64"} and hasattr(os, "memfd_create")


def digest(header: Buffer) -> bytes:
    """Names a frame by its header, which no other frame of a link shares."""
    return hashlib.blake2b(header, digest_size=_DIGEST_BYTES).digest()


class SharedRing:
    """One end. `create` makes the receiver's, `open` the sender's."""

    def __init__(
        self, memory: mmap.mmap, token: bytes, *, descriptor: int = -1, bell: int = -1, rope: int
    ) -> None:
        self._memory = memory
        self._token = token
        self._descriptor = descriptor
        self._rope = rope  # what is written here is read at the bell
        self.bell = bell
        """The receiver's descriptor that can be read once the sender has rung; -1 at the sender."""

    @classmethod
    def create(cls) -> SharedRing:
        """A new, empty ring of this process."""
        descriptor = os.memfd_create("lamella-ring", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE)
        memory = mmap.mmap(descriptor, _SIZE)
        token = secrets.token_bytes(16)
        memory[_TOKEN : _TOKEN + 16] = token
        bell, rope = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return cls(memory, token, descriptor=descriptor, bell=bell, rope=rope)

    @classmethod
    def open(cls, address: str) -> SharedRing | None:
        """The ring at `address`; None when it is not to be reached from here."""
        try:
            pid, number, rope_number, token = address.split(":")
            descriptor = os.open(f"/proc/{int(pid)}/fd/{int(number)}", os.O_RDWR | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            memory = mmap.mmap(descriptor, _SIZE)
        except (OSError, ValueError):  # another file by now
            return None
        finally:
            os.close(descriptor)
        try:
            if memory[_TOKEN : _TOKEN + 16].hex() != token:
                raise ValueError("another ring")
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
            rope = os.open(f"/proc/{int(pid)}/fd/{int(rope_number)}", flags)
        except (OSError, ValueError):
            memory.close()
            return None
        return cls(memory, bytes.fromhex(token), rope=rope)

    @property
    def address(self) -> str:
        """Where the sender finds this ring."""
        return f"{os.getpid()}:{self._descriptor}:{self._rope}:{self._token.hex()}"

    def close(self) -> None:
        """Give the memory back; the other end keeps its own mapping."""
        self._memory.close()
        for descriptor in (self._descriptor, self.bell, self._rope):
            if descriptor >= 0:
                os.close(descriptor)

    # The sender's side

    def begin(self) -> None:
        """A link begins: what an earlier one left unread is void."""
        self._store(_BEGAN, self._load(_WRITTEN))

    def publish(self, parts: Sequence[Buffer]) -> bool:
        """Put a frame in; False when its reader is SLOTS frames behind."""
        body = sum(len(part) + _PART.size for part in parts)
        if not self.fits(parts):
            raise ValueError(f"a frame of {body} bytes does not fit {SLOT_BYTES}")
        return self._publish(_PARTS.pack(len(parts), body), parts)

    def announce(self, header: Buffer) -> bool:
        """Say that the next frame comes by the socket; False as `publish`."""
        return self._publish(_PARTS.pack(0, _DIGEST_BYTES) + digest(header), ())

    @staticmethod
    def fits(parts: Sequence[Buffer]) -> bool:
        """Whether a frame of these parts may be published."""
        return sum(len(part) + _PART.size for part in parts) + _PARTS.size <= SLOT_BYTES

    def wake(self) -> None:
        """Ring the bell if the reader sleeps."""
        if self._load(_ASLEEP):
            # A full pipe has rung already, and of a reader that is gone others tell.
            with contextlib.suppress(OSError):
                os.write(self._rope, b"!")

    def _publish(self, head: bytes, parts: Sequence[Buffer]) -> bool:
        written = self._load(_WRITTEN)
        if written - max(self._load(_TAKEN), self._load(_BEGAN)) >= SLOTS:
            return False
        memory = self._memory
        at = _HEAD_BYTES + written % SLOTS * SLOT_BYTES
        memory[at : at + len(head)] = head
        at += len(head)
        for part in parts:
            memory[at : at + _PART.size] = _PART.pack(len(part))
            at += _PART.size
            memory[at : at + len(part)] = bytes(part)
            at += len(part)
        self._store(_WRITTEN, written + 1)
        return True

    # The receiver's side

    @property
    def pending(self) -> bool:
        """Whether a frame can be taken."""
        return self._load(_WRITTEN) > self._load(_TAKEN)

    def sleeps(self, asleep: bool) -> None:
        """Say whether this reader waits for the bell or looks here."""
        self._store(_ASLEEP, int(asleep))

    def silence(self) -> None:
        """Take back what has rung."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.bell, 4096)

    def peek(self) -> ByRing | BySocket | None:
        """The next frame, which stays until `take`; None when there is none."""
        taken = max(self._load(_TAKEN), self._load(_BEGAN))
        if self._load(_WRITTEN) <= taken:
            return None
        self._store(_TAKEN, taken)
        memory, at = self._memory, _HEAD_BYTES + taken % SLOTS * SLOT_BYTES
        count, size = _PARTS.unpack_from(memory, at)
        at += _PARTS.size
        if count == 0:
            return BySocket(memory[at : at + _DIGEST_BYTES])
        if size > SLOT_BYTES - _PARTS.size:
            return ByRing([])  # nonsense: the frame's own checks refuse it
        frame, parts = memoryview(memory[at : at + size]), []
        at = 0
        for _ in range(count):
            (length,) = _PART.unpack_from(frame, at)
            at += _PART.size
            parts.append(frame[at : at + length])
            at += length
        return ByRing(parts)

    def take(self) -> None:
        """Free the frame that `peek` gave."""
        self._store(_TAKEN, self._load(_TAKEN) + 1)

    def _load(self, at: int) -> int:
        return int(_COUNT.unpack_from(self._memory, at)[0])

    def _store(self, at: int, value: int) -> None:
        _COUNT.pack_into(self._memory, at, value)
