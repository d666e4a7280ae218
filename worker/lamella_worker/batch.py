"""One step's work as arrays: which rows belong to which sequence, and where their K and V go.

Knows no scheduler, no socket and no model. The stage loop makes a `StepBatch` from a step's
header and its own block tables; every runner and the attention read it.

Rows are packed: the tokens of segment 0, then those of segment 1, and so on, without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lamella_contract.errors import RequestError

Int64Array: TypeAlias = npt.NDArray[np.int64]
Int32Array: TypeAlias = npt.NDArray[np.int32]

Bundle: TypeAlias = dict[str, torch.Tensor]
"""Named tensors that cross a stage's edge: `token_ids` int64 [tokens] into stage 0, `hidden`
[tokens, hidden] (and a family's extras) between stages, `logits` float32 [sampled, vocabulary]
out of the last."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens `[start, start + count)` of the sequence in `slot`.

    `blocks` is the sequence's whole block table, int32 [ceil((start + count) / block_size)]
    (longer is allowed). `start == 0` starts the slot afresh. `sample` asks for logits after the
    last token.
    """

    slot: int
    start: int
    count: int
    blocks: Int32Array
    sample: bool

    @property
    def length(self) -> int:
        """Tokens of context after this segment."""
        return self.start + self.count


@dataclass(frozen=True)
class StepBatch:
    """The segments of one step; at most one per slot. Derived arrays are computed once and kept."""

    segments: tuple[Segment, ...]
    block_size: int

    @cached_property
    def counts(self) -> Int64Array:
        """Tokens of each segment, int64 [segments]."""
        return np.fromiter((s.count for s in self.segments), np.int64, len(self.segments))

    @cached_property
    def starts(self) -> Int64Array:
        """Tokens already in the cache for each segment, int64 [segments]."""
        return np.fromiter((s.start for s in self.segments), np.int64, len(self.segments))

    @cached_property
    def offsets(self) -> Int64Array:
        """First packed row of each segment and the end, int64 [segments + 1]."""
        offsets = np.zeros(len(self.segments) + 1, np.int64)
        np.cumsum(self.counts, out=offsets[1:])
        return offsets

    @property
    def tokens(self) -> int:
        """Packed rows of the whole step."""
        return int(self.offsets[-1])

    @cached_property
    def positions(self) -> Int64Array:
        """Absolute position of each row in its sequence, int64 [tokens]."""
        within = np.arange(self.tokens, dtype=np.int64) - np.repeat(self.offsets[:-1], self.counts)
        return within + np.repeat(self.starts, self.counts)

    @cached_property
    def cache_rows(self) -> Int64Array:
        """Row of the paged pool that each token's key and value are written to, int64 [tokens]."""
        if not self.segments:
            return np.zeros(0, np.int64)
        parts = [table_rows(s.blocks, self.block_size, s.start, s.length) for s in self.segments]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @cached_property
    def sampled(self) -> tuple[Segment, ...]:
        """The segments that ask for logits, in the order of the logits' rows."""
        return tuple(s for s in self.segments if s.sample)

    @cached_property
    def sample_rows(self) -> Int64Array:
        """Packed row of each wanted logit, int64 [sampled]: the last row of its segment."""
        wanted = np.fromiter((s.sample for s in self.segments), np.bool_, len(self.segments))
        return self.offsets[1:][wanted] - 1

    @cached_property
    def is_decode(self) -> bool:
        """True when every segment is a single token."""
        return len(self.segments) == self.tokens

    def check(self, num_blocks: int) -> None:
        """Raise RequestError for an empty segment, and for bad block tables (see check_tables)."""
        check_tables([(s.slot, s.blocks) for s in self.segments], num_blocks)
        for s in self.segments:
            if s.count < 1 or s.start < 0:
                raise RequestError(
                    f"slot {s.slot}: start={s.start}, count={s.count}; wanted 0+, 1+"
                )
            if len(s.blocks) * self.block_size < s.length:
                have = f"{len(s.blocks)} blocks of {self.block_size}"
                raise RequestError(f"slot {s.slot}: {have} for {s.length} tokens")


def table_rows(blocks: Int32Array, block_size: int, first: int, end: int) -> Int64Array:
    """Pool rows of the positions `[first, end)` of a sequence, int64 [end - first]."""
    if end - first == 1:  # decode: the general form costs ten times as much
        row = int(blocks[first // block_size]) * block_size + first % block_size
        return np.array([row], np.int64)
    at = np.arange(first, end, dtype=np.int64)
    return blocks[at // block_size].astype(np.int64) * block_size + at % block_size


def contiguous_start(blocks: Int32Array) -> int:
    """The first block when the table's blocks follow one another, else -1.

    Such a sequence's keys and values are a view of the head-major pool: attention gathers nothing.
    """
    first = int(blocks[0])
    count = len(blocks)
    if count == 1:
        return first
    # The ends are a cheap refusal; the whole table decides.
    if int(blocks[-1]) - first != count - 1:
        return -1
    return first if bool((np.diff(blocks) == 1).all()) else -1


def check_tables(tables: Sequence[tuple[int, Int32Array]], num_blocks: int) -> None:
    """Raise RequestError when a table leaves the pool or a block stands in two places."""
    slots = [slot for slot, _ in tables]
    if len(set(slots)) != len(slots):
        raise RequestError(f"slots={slots}; wanted each slot once in a step")
    if not tables:
        return
    joined = np.concatenate([blocks for _, blocks in tables])
    if joined.size and (int(joined.min()) < 0 or int(joined.max()) >= num_blocks):
        raise RequestError(
            f"blocks {int(joined.min())}..{int(joined.max())}; wanted within [0, {num_blocks})"
        )
    if np.unique(joined).size != joined.size:
        raise RequestError("a cache block stands in two tables; wanted each block once")
