"""How one step's attention is cut into calls: worked out once per step, used by every layer.

Knows no model and computes no attention. attention.py asks it for the pieces of a step under a
sliding window (or none), for masks, and for pool rows.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lamella_worker.batch import Int64Array, Segment, StepBatch, contiguous_start, table_rows


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows `[row, row + rows)` of the step that one call computes.

    Either one segment (`sequences == 1`, `count` rows), or several decode rows whose sequences have
    equal lengths and lie equally spaced in the pool. Keys `[first_key, first_key + keys)` of each
    sequence are read: from pool row `base` on (each further sequence `stride` rows on), or, where
    `base < 0`, from the blocks `blocks`, of which the first `skip` rows are not read.
    """

    segment: Segment
    row: int
    rows: int
    sequences: int
    count: int
    first_key: int
    keys: int
    base: int
    stride: int = 0
    blocks: torch.Tensor | None = None
    skip: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRows:
    """The decode rows of a step and where each one's keys lie, for decode.c. All arrays int64.

    Sequence i has the runs `[spans[i], spans[i + 1])` of neighbouring pool rows.
    """

    rows: Int64Array  # of the step, one per sequence
    spans: Int64Array  # [sequences + 1]
    runs: Int64Array  # [runs, 2]: first pool row, rows
    addresses: tuple[int, int, int]  # of the three arrays, which live as long as this


class AttentionPlan:
    """The pieces of a step, for each window that its layers have."""

    def __init__(self, batch: StepBatch, device: torch.device) -> None:
        self._batch = batch
        self._device = device
        self._pieces: dict[tuple[int | None, bool], list[Piece]] = {}
        self._decode: dict[int | None, DecodeRows | None] = {}
        self._triangles: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self._masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor | None] = {}

    def pieces(self, window: int | None, *, grouped: bool) -> list[Piece]:
        """The calls that cover every row in order. `grouped` merges decode rows where it can."""
        key = (window, grouped)
        found = self._pieces.get(key)
        if found is None:
            singles = [
                self._single(segment, int(row), window)
                for segment, row in zip(self._batch.segments, self._batch.offsets, strict=False)
            ]
            found = _merge(singles) if grouped else singles
            self._pieces[key] = found
        return found

    def decode_rows(self, window: int | None) -> DecodeRows | None:
        """All segments of one token; None when there are none."""
        if window not in self._decode:
            self._decode[window] = _decode_rows(self._batch, window)
        return self._decode[window]

    def pool_rows(self, piece: Piece) -> torch.Tensor:
        """Pool rows of a single piece's keys, int64 [keys]."""
        size = self._batch.block_size
        end = piece.first_key + piece.keys
        rows = table_rows(piece.segment.blocks, size, piece.first_key, end)
        return torch.from_numpy(rows).to(self._device)

    def is_plain_causal(self, piece: Piece, window: int | None) -> bool:
        """True when query i sees exactly the first i + 1 keys of the piece."""
        return piece.segment.start == 0 and (window is None or piece.segment.length <= window)

    def mask(self, piece: Piece, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask [count, keys], 0 or -inf; None when every query sees every key."""
        if piece.count == 1:
            return None
        key = (piece.row, window, dtype)
        if key not in self._masks:
            query = torch.arange(piece.segment.start, piece.segment.length, device=self._device)
            at = torch.arange(piece.first_key, piece.first_key + piece.keys, device=self._device)
            hidden = at[None, :] > query[:, None]
            if window is not None:
                hidden |= at[None, :] <= query[:, None] - window
            zero = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
            self._masks[key] = zero.masked_fill_(hidden, float("-inf"))
        return self._masks[key]

    def visible(self, piece: Piece, window: int | None, first: int, last: int) -> tuple[int, int]:
        """Keys of the piece, `[low, high)`, that its queries `[first, last)` can see."""
        start = piece.segment.start - piece.first_key
        low = 0 if window is None else max(0, start + first + 1 - window)
        return low, start + last

    def hide_(
        self, scores: torch.Tensor, piece: Piece, window: int | None, first: int, low: int
    ) -> None:
        """Set -inf where queries from `first` on must not see keys from `low` on, in place.

        scores [..., queries, keys], whose last key is the last query's own.
        """
        queries, keys = scores.shape[-2:]
        if window is None or keys <= window:
            # Only the square of the queries' own keys hides anything.
            scores[..., keys - queries :].add_(self._triangle(queries, scores.dtype))
            return
        mask = self.mask(piece, window, scores.dtype)
        if mask is not None:
            scores.add_(mask[first : first + queries, low : low + keys])

    def _triangle(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        key = (size, dtype)
        if key not in self._triangles:
            square = torch.full((size, size), float("-inf"), dtype=dtype, device=self._device)
            self._triangles[key] = square.triu_(1)
        return self._triangles[key]

    def _single(self, segment: Segment, row: int, window: int | None) -> Piece:
        size = self._batch.block_size
        # The first query's window decides which keys can be left out.
        first_key = 0 if window is None else max(0, segment.start + 1 - window)
        keys = segment.length - first_key
        first_block, end_block = first_key // size, -(-segment.length // size)
        blocks = segment.blocks[first_block:end_block]
        start = contiguous_start(blocks)
        skip = first_key - first_block * size
        if start >= 0:
            base = start * size + skip
            return Piece(segment, row, segment.count, 1, segment.count, first_key, keys, base)
        table = torch.from_numpy(blocks.astype(np.int64)).to(self._device)
        return Piece(
            segment, row, segment.count, 1, segment.count, first_key, keys, -1, 0, table, skip
        )


def _decode_rows(batch: StepBatch, window: int | None) -> DecodeRows | None:
    size = batch.block_size
    rows = np.flatnonzero(batch.counts == 1)
    if not len(rows):
        return None
    segments = [batch.segments[int(i)] for i in rows]
    ends = batch.starts[rows] + 1
    firsts = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
    first_blocks, end_blocks = firsts // size, -(-ends // size)
    blocks = np.concatenate(
        [s.blocks[a:b] for s, a, b in zip(segments, first_blocks, end_blocks, strict=True)]
    ).astype(np.int64)
    edges = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(end_blocks - first_blocks, out=edges[1:])
    starts = np.ones(len(blocks) + 1, np.bool_)
    starts[1:-1] = np.diff(blocks) != 1
    starts[edges] = True
    at = np.flatnonzero(starts)
    runs = np.stack((blocks[at[:-1]], np.diff(at)), 1) * size
    spans = np.searchsorted(at, edges)
    skipped = firsts - first_blocks * size
    runs[spans[:-1], 0] += skipped
    runs[spans[:-1], 1] -= skipped
    runs[spans[1:] - 1, 1] -= end_blocks * size - ends
    arrays = (batch.offsets[rows], spans, runs)
    addresses = (arrays[0].ctypes.data, arrays[1].ctypes.data, arrays[2].ctypes.data)
    return DecodeRows(*arrays, addresses)


def _merge(singles: list[Piece]) -> list[Piece]:
    """Neighbouring decode rows of equal length and equal spacing become one piece."""
    merged: list[Piece] = []
    for piece in singles:
        last = merged[-1] if merged else None
        if last is None or not _can_join(last, piece):
            merged.append(piece)
            continue
        stride = last.stride if last.sequences > 1 else piece.base - last.base
        merged[-1] = Piece(
            last.segment,
            last.row,
            last.rows + 1,
            last.sequences + 1,
            1,
            last.first_key,
            last.keys,
            last.base,
            stride,
        )
    return merged


def _can_join(last: Piece, piece: Piece) -> bool:
    if last.count != 1 or piece.count != 1 or last.keys != piece.keys:
        return False
    if last.base < 0 or piece.base < 0:
        return False
    if last.sequences == 1:
        return piece.base > last.base
    return piece.base == last.base + last.sequences * last.stride
