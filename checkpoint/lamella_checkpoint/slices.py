"""Reads exactly some tensors' bytes, many at a time, into buffers of their own.

Knows byte ranges, no layers and no dtypes. Neighbouring tensors are read in one go; the bytes of an
unwanted tensor are read along only where it is so small that the whole read stays within
half a percent of what is needed. A stage's weights come through here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from lamella_checkpoint.headers import TensorInfo
from lamella_checkpoint.source import Source

Buffer = npt.NDArray[np.uint8]

RUN_BYTES = 64 << 20  # neighbours are merged up to here; a bigger tensor is a run of its own
PART_BYTES = 16 << 20  # one request; big enough to hide a round trip, small enough to spread
GAP_BYTES = 64 << 10  # an unwanted stretch longer than this is never read along
GAP_SHARE = 0.005  # of the needed bytes, all gaps together
AHEAD_BYTES = 256 << 20  # buffers that may be filled before the consumer takes them


@dataclass(slots=True)
class _Run:
    """Consecutive bytes of one file: wanted tensors, and gaps (None) between them."""

    file: str
    start: int
    end: int
    items: list[TensorInfo] = field(default_factory=list)


class SliceReader:
    """Reads ``infos`` from ``source`` with ``max_workers`` requests at a time.

    ``into`` may give a tensor's final place: a writable, contiguous uint8 array of exactly its
    bytes (a view of a fused weight); without one a new array is made. Iterate once, or call
    `read_all`. ``bytes_read`` counts what was asked of the source, ``bytes_needed`` the tensors'
    own bytes; their ratio is at most 1.005.
    """

    def __init__(
        self,
        source: Source,
        infos: Iterable[TensorInfo],
        *,
        max_workers: int = 8,
        into: Mapping[str, Buffer] | None = None,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self._source = source
        self._into = into or {}
        self._max_workers = max_workers
        self._ahead_bytes = ahead_bytes
        tensors = list(infos)
        for info in tensors:
            place = self._into.get(info.name)
            if place is not None and not _fits(place, info.nbytes):
                raise ValueError(
                    f"into[{info.name!r}]: got {place.nbytes} bytes of {place.dtype}, want "
                    f"{info.nbytes} writable, contiguous ones of uint8"
                )
        self.bytes_needed = sum(info.nbytes for info in tensors)
        self.bytes_read = 0
        self._runs = plan_runs(tensors, self.bytes_needed)

    @property
    def ratio(self) -> float:
        """``bytes_read / bytes_needed``; 1.0 when nothing is needed."""
        return self.bytes_read / self.bytes_needed if self.bytes_needed else 1.0

    def read_all(self) -> dict[str, Buffer]:
        """Every tensor's bytes by name."""
        return dict(self)

    def __iter__(self) -> Iterator[tuple[str, Buffer]]:
        """Name and bytes of each tensor, in the order in which they lie in the files.

        At most ``ahead_bytes`` (or one run) are held for a consumer that is slower than the source.
        Leaving the loop early ends the reading.
        """
        self._source.progress.expect(sum(run.end - run.start for run in self._runs))
        pool = ThreadPoolExecutor(self._max_workers, thread_name_prefix="slices")
        waiting: deque[tuple[_Run, list[Buffer], list[Future[None]]]] = deque()
        held_bytes = 0
        try:
            runs = deque(self._runs)
            while runs or waiting:
                while runs and (not waiting or held_bytes < self._ahead_bytes):
                    run = runs.popleft()
                    held_bytes += run.end - run.start
                    buffers = self._buffers(run)
                    waiting.append((run, buffers, self._submit(pool, run, buffers)))
                run, buffers, futures = waiting.popleft()
                for future in futures:
                    future.result()
                held_bytes -= run.end - run.start
                self.bytes_read += run.end - run.start
                yield from zip((info.name for info in run.items), buffers, strict=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _buffers(self, run: _Run) -> list[Buffer]:
        """One array of bytes per tensor of the run."""
        return [
            self._into[info.name] if info.name in self._into else np.empty(info.nbytes, np.uint8)
            for info in run.items
        ]

    def _submit(
        self, pool: ThreadPoolExecutor, run: _Run, buffers: list[Buffer]
    ) -> list[Future[None]]:
        """Start reading the run, in parts, straight into the buffers."""
        views: list[memoryview] = []
        position = run.start
        for info, buffer in zip(run.items, buffers, strict=True):
            if info.start > position:  # a gap: read along and forgotten
                views.append(memoryview(bytearray(info.start - position)))
            if info.nbytes:
                views.append(buffer.reshape(-1).data)
            position = max(position, info.end)
        futures = []
        for start, part in _parts(run.start, views):
            futures.append(pool.submit(self._source.read_scatter, run.file, start, part))
        return futures


def _fits(place: Buffer, nbytes: int) -> bool:
    flags = place.flags
    plain = place.dtype == np.uint8 and flags.c_contiguous and flags.writeable
    return plain and place.nbytes == nbytes


def plan_runs(infos: Iterable[TensorInfo], bytes_needed: int) -> list[_Run]:
    """Group the tensors into reads, in file order.

    The smallest gaps are closed first, as long as all of them together stay within `GAP_SHARE`.
    """
    ordered = sorted(infos, key=lambda info: (info.file, info.start, info.end))
    gaps = sorted(
        after.start - before.end
        for before, after in pairwise(ordered)
        if before.file == after.file and 0 < after.start - before.end <= GAP_BYTES
    )
    budget, closable = int(bytes_needed * GAP_SHARE), 0
    for gap in gaps:
        if gap > budget:
            break
        budget -= gap
        closable = gap
    # Gaps as long as the last affordable one may be more than the budget holds: close fewer.
    affordable = int(bytes_needed * GAP_SHARE)
    runs: list[_Run] = []
    for info in ordered:
        run = runs[-1] if runs else None
        gap = info.start - run.end if run is not None and run.file == info.file else -1
        fits = run is not None and info.end - run.start <= RUN_BYTES
        if run is not None and fits and (gap == 0 or 0 < gap <= min(closable, affordable)):
            affordable -= gap
            run.end = info.end
            run.items.append(info)
        else:
            runs.append(_Run(info.file, info.start, info.end, [info]))
    return runs


def _parts(start: int, views: list[memoryview]) -> Iterator[tuple[int, list[memoryview]]]:
    """The views cut into reads of at most `PART_BYTES`, each with where it begins in the file."""
    part: list[memoryview] = []
    held = 0
    for view in views:
        while len(view):
            taken = view[: PART_BYTES - held]
            part.append(taken)
            held += len(taken)
            view = view[len(taken) :]
            if held == PART_BYTES:
                yield start, part
                start, part, held = start + held, [], 0
    if part:
        yield start, part
