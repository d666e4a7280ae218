"""A table [vocabulary, hidden] in oneDNN's layout: a head, and an embedding in the same memory.

Knows no checkpoint. The table comes in pieces of its rows; each is packed and copied to its place
in what was made for the whole, so that little stands in memory beside it, and a product is one call
as for any weight. Rows are read back from where a numbered table of the same width has them. How
oneDNN lays weights out is tried, not assumed: products and rows are compared with the pieces' own.
"""

import ctypes
import logging
import mmap
from collections.abc import Callable, Iterable

import torch

from lamella_worker.fast.linear import BATCH_HINT
from lamella_worker.readers import trim_heap

log = logging.getLogger(__name__)

GROUP_ROWS = 64
"""Rows whose elements lie among one another. Pieces begin at multiples of it."""
_PIECE_BYTES = 4 << 20  # at least: smaller ones are many requests to a remote source
_PIECES = 24  # of a large table: one and its packed copy are a twelfth of it
_DIGITS = 4  # of 8 bits, which bfloat16 holds exactly: a probe's numbers


def piece_rows(rows: int, hidden: int) -> int:
    """Rows of a piece of a bfloat16 table [rows, hidden]."""
    least = max(-(-rows // _PIECES), _PIECE_BYTES // (2 * hidden))
    return -(-least // GROUP_ROWS) * GROUP_ROWS


class PackedTable:
    """bfloat16 [rows, hidden], packed. Made by `pack_table`."""

    def __init__(self, rows: int, hidden: int) -> None:
        """All zero. Raises RuntimeError where oneDNN's layout is none that is understood here."""
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._rows, self._hidden = rows, hidden
        self._places, self._group_elements = _places(hidden)
        self._weight = _pack(_blank(rows, hidden))
        self._memory = _memory_of(self._weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As a head: x [tokens, hidden] -> [tokens, rows]."""
        return self._times(x, self._weight)

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """As an embedding: rows `ids`, int64 [tokens] -> [tokens, hidden], bit for bit.

        Raises IndexError for rows that there are not.
        """
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self._rows:
            raise IndexError(f"rows {ids.min()} to {ids.max()} of a table of {self._rows}")
        groups = (ids // GROUP_ROWS * self._group_elements)[:, None]
        places = self._places[ids % GROUP_ROWS] + groups
        return self._memory.index_select(0, places.view(-1)).view(-1, self._hidden)

    def fill(self, pieces: Iterable[torch.Tensor]) -> bool:
        """Take all pieces in; False when products or rows are then not those of the pieces."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4, self._hidden, generator=generator).bfloat16()
        products, first, place = [], 0, 0
        for piece in pieces:
            if first:  # what the last piece left free is often a little too small for this one
                trim_heap()
            last = first + piece.shape[0]
            if last > self._rows or piece.shape[1] != self._hidden:
                return False
            packed = _pack(piece)
            memory = _memory_of(packed)
            end = place + memory.numel()  # rows that oneDNN adds at the end, the whole has too
            if end > self._memory.numel():
                return False
            self._memory[place:end] = memory
            head, tail = piece[:GROUP_ROWS], piece[-GROUP_ROWS:]
            for start, rows in ((first, head), (last - len(tail), tail)):
                found = self.take(torch.arange(start, start + len(rows)))
                if not torch.equal(found.view(torch.int16), rows.view(torch.int16)):
                    return False
            products.append(self._times(x, packed))
            first, place = last, end
            del piece, packed, memory, head, tail, rows  # before the next one is read
        if first != self._rows:
            return False
        wanted = torch.cat(products, 1).float()
        return torch.allclose(self(x).float(), wanted, rtol=2e-2, atol=2e-2 * float(wanted.std()))

    def _times(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._product(x, weight, None, "none", [], "")
        return y


def pack_table(
    read: Callable[[int], Iterable[torch.Tensor]], rows: int, hidden: int
) -> PackedTable | None:
    """The bfloat16 table [rows, hidden] that `read` gives in pieces of at most so many rows.

    None when this build of torch, or oneDNN on this processor, does not allow it.
    """
    try:
        table = PackedTable(rows, hidden)
    except (RuntimeError, AttributeError, NotImplementedError) as e:
        log.info("a packed table is not available", extra={"reason": str(e)[:200]})
        return None
    if table.fill(read(piece_rows(rows, hidden))):
        return table
    log.warning("a packed table was refused: it does not give what its pieces give")
    return None


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, BATCH_HINT)
    return packed


def _blank(rows: int, hidden: int) -> torch.Tensor:
    """Zeros that take no memory: private pages that are only read are all the same one."""
    memory = mmap.mmap(-1, 2 * rows * hidden, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.bfloat16).view(rows, hidden)


def _memory_of(packed: torch.Tensor) -> torch.Tensor:
    """The elements of a packed weight as they lie, padding included; valid while it lives."""
    ops = torch.ops.mkldnn
    nbytes, address = ops._nbytes(packed), ops.data_ptr(packed)
    return torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=torch.bfloat16)


def _places(hidden: int) -> tuple[torch.Tensor, int]:
    """Where the elements of the first rows lie, int32 [GROUP_ROWS, hidden], and elements per group.

    Raises RuntimeError when the second group does not lie behind the first in the same way.
    """
    shape = (2 * GROUP_ROWS, hidden)
    numbers = torch.arange(1, shape[0] * shape[1] + 1).view(shape)  # 0: padding
    found = torch.zeros(1, dtype=torch.int64)
    for digit in range(_DIGITS):
        packed = _pack((numbers >> 8 * digit & 255).bfloat16())
        found = found + (_memory_of(packed).long() << 8 * digit)
    where = torch.zeros(numbers.numel() + 1, dtype=torch.int64)
    where[found] = torch.arange(found.numel())
    first, second = where[1:].view(2, GROUP_ROWS, hidden)
    elements = int(second[0, 0] - first[0, 0])
    if not torch.equal(second, first + elements):
        raise RuntimeError(f"weights are not laid out in groups of {GROUP_ROWS} rows")
    return first.int(), elements
