"""Byte ranges of one remote file, kept on disk in a sparse file with an index of what is there.

Knows bytes and hashes, no hub and no tensors. The data file has the remote file's size, and holes
where nothing was fetched yet; the index gets one line per finished extent, with its SHA-256, after
the data was written, so a crash loses at most the extents in flight. A process checks the hash of
an extent when it first reads it; a damaged one is dropped and fetched again. Processes share a
cache: they append to the index and see what others appended.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
from bisect import bisect_right, insort
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from lamella_checkpoint.errors import DiskFull

log = logging.getLogger(__name__)

EXTENT_BYTES = 8 << 20  # longest extent: what is read and hashed at once, and lost in a crash
_LINE = re.compile(rb"(\d{1,20}) (\d{1,20}) ([0-9a-f]{64})\n")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Bytes ``[start, end)`` that are in the cache, and their SHA-256 in hex."""

    start: int
    end: int
    sha256: str


class RangeCache:
    """The cached ranges of the remote file ``name`` of ``size`` bytes, under ``folder``.

    Safe for threads and processes. Raises `DiskFull` when the disk has no room.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._folder = folder
        self._lock = threading.Lock()
        self._extents: list[Extent] = []  # sorted; may overlap when two processes fetched at once
        self._trusted: set[Extent] = set()  # checked, or written by this process
        self._dropped: set[Extent] = set()
        base = quote(name, safe="")
        with room(folder, size):
            folder.mkdir(parents=True, exist_ok=True)
            self._data = _open(folder / f"{base}.part", os.O_RDWR)
            if os.fstat(self._data).st_size != size:
                os.ftruncate(self._data, size)
            self._index = _open(folder / f"{base}.extents", os.O_RDWR | os.O_APPEND)
        self._index_read = 0
        self.refresh()

    def refresh(self) -> None:
        """Learn the extents that any process has added since the last look."""
        with self._lock:
            end = os.fstat(self._index).st_size
            if end <= self._index_read:
                return
            tail = os.pread(self._index, end - self._index_read, self._index_read)
            complete = tail.rfind(b"\n") + 1
            for line in tail[:complete].splitlines(keepends=True):
                self._learn(line)
            self._index_read += complete

    def _learn(self, line: bytes) -> None:
        """Add the extent that one line of the index names; damaged lines are passed over."""
        match = _LINE.fullmatch(line)
        if match is None:
            log.warning("damaged line in a cache index", extra={"file": self.name})
            return
        extent = Extent(int(match[1]), int(match[2]), match[3].decode())
        sound = 0 <= extent.start < extent.end <= self.size
        sound &= extent.end - extent.start <= EXTENT_BYTES
        if sound and extent not in self._dropped and not self._has(extent):
            insort(self._extents, extent)

    def _has(self, extent: Extent) -> bool:
        place = bisect_right(self._extents, extent)
        return place > 0 and self._extents[place - 1] == extent

    def find(self, position: int) -> Extent | None:
        """An extent that holds the byte at ``position``; the one that reaches furthest."""
        with self._lock:
            place = bisect_right(self._extents, position, key=lambda extent: extent.start) - 1
            best: Extent | None = None
            while place >= 0 and self._extents[place].start > position - EXTENT_BYTES:
                extent = self._extents[place]
                if extent.end > position and (best is None or extent.end > best.end):
                    best = extent
                place -= 1
            return best

    def next_start(self, position: int) -> int:
        """Where the first extent after ``position`` begins; the file's size when none does."""
        with self._lock:
            place = bisect_right(self._extents, position, key=lambda extent: extent.start)
            return self._extents[place].start if place < len(self._extents) else self.size

    def read(self, extent: Extent, start: int, end: int) -> memoryview | None:
        """Bytes ``[start, end)`` of an extent; None when it turned out to be damaged.

        A damaged extent is forgotten, so that the caller fetches it again.
        """
        assert extent.start <= start <= end <= extent.end, (extent, start, end)
        with self._lock:
            trusted = extent in self._trusted
        if trusted:
            return memoryview(_pread(self._data, end - start, start))
        data = _pread(self._data, extent.end - extent.start, extent.start)
        if hashlib.sha256(data).hexdigest() != extent.sha256:
            log.warning(
                "a cached range is damaged and will be fetched again",
                extra={"file": self.name, "start": extent.start, "end": extent.end},
            )
            self.drop(extent)
            return None
        with self._lock:
            self._trusted.add(extent)
        return memoryview(data)[start - extent.start : end - extent.start]

    def drop(self, extent: Extent) -> None:
        """Forget an extent."""
        with self._lock:
            self._dropped.add(extent)
            self._trusted.discard(extent)
            if extent in self._extents:
                self._extents.remove(extent)

    def drop_all(self) -> None:
        """Forget everything: the whole file's checksum did not hold."""
        with self._lock:
            self._dropped.update(self._extents)
            self._trusted.clear()
            self._extents.clear()

    def write(self, position: int, data: bytes | memoryview) -> None:
        """Put bytes into the data file; they count once `commit` has been called for them."""
        with room(self._folder, len(data)):
            view = memoryview(data)
            while view:
                written = os.pwrite(self._data, view, position)
                position += written
                view = view[written:]

    def commit(self, start: int, end: int, sha256: str) -> None:
        """``[start, end)`` has been written and has that hash."""
        extent = Extent(start, end, sha256)
        with self._lock:
            self._dropped.discard(extent)
            self._trusted.add(extent)
            if not self._has(extent):
                insort(self._extents, extent)
        with room(self._folder, 0):
            # One short append: no other process's line can come in between.
            os.write(self._index, f"{start} {end} {sha256}\n".encode())

    def close(self) -> None:
        """Close the files; the cache is not used again."""
        with self._lock:
            for descriptor in (self._data, self._index):
                if descriptor >= 0:
                    os.close(descriptor)
            self._data = self._index = -1


class ExtentWriter:
    """Takes a file's bytes in order from ``start`` on and commits them extent by extent.

    `close` commits what came of the last one, so that a broken transfer keeps all it brought.
    """

    def __init__(self, cache: RangeCache, start: int) -> None:
        self._cache = cache
        self._start = self.position = start
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = view[: self._start + EXTENT_BYTES - self.position]
            self._cache.write(self.position, part)
            self._digest.update(part)
            self.position += len(part)
            view = view[len(part) :]
            if self.position - self._start == EXTENT_BYTES:
                self.close()

    def close(self) -> None:
        if self.position > self._start:
            self._cache.commit(self._start, self.position, self._digest.hexdigest())
        self._start, self._digest = self.position, hashlib.sha256()


@contextmanager
def room(folder: Path, nbytes: int) -> Iterator[None]:
    """Turns the errors of a full disk (or quota) inside the block into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFull(no_room(folder, nbytes)) from error


def no_room(folder: Path, nbytes: int) -> str:
    """The message of a `DiskFull`: how much is free where, and how much was wanted."""
    known = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(known).free
    return (
        f"no room for the model's files under {folder} ({free} bytes free, {nbytes} more wanted): "
        "free some, or choose another cache folder"
    )


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    """Exactly ``count`` bytes, zeros where the file ends early (the hash will tell)."""
    parts = []
    while count:
        part = os.pread(descriptor, count, offset)
        if not part:
            parts.append(bytes(count))
            break
        parts.append(part)
        count -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
