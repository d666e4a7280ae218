"""The paged key/value pool of one stage.

Knows no sequence, no scheduler and no attention: block tables come with each batch (batch.py), the
scheduler on stage 0 owns them. The runners write keys and values here, attention.py reads them.

Layout: per layer K [kv_heads, num_blocks * block_size, k_dim] and V [kv_heads, ..., v_dim].
Head-major, so the tokens of a sequence whose blocks are contiguous are a view, and a gather is one
index_select.
"""

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from lamella_contract.errors import InvalidConfig
from lamella_worker.batch import Int32Array, Int64Array, check_tables


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer keeps per token: `heads` keys of `k_dim` and values of `v_dim` elements."""

    heads: int
    k_dim: int
    v_dim: int

    @property
    def elements(self) -> int:
        """Elements per token."""
        return self.heads * (self.k_dim + self.v_dim)


class PagedPool:
    """Keys and values of every layer of a stage, in blocks of `block_size` tokens.

    Pages are zero until written, so that a masked read of a row never written is finite.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        layers: Mapping[int, KVShape],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise InvalidConfig(f"num_blocks={num_blocks}, block_size={block_size}; wanted >= 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.shapes: dict[int, KVShape] = dict(layers)
        self.dtype = dtype
        self.device = torch.device(device)
        self._joined: dict[int, torch.Tensor] = {}
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        for layer, shape in self.shapes.items():
            self._allocate(layer, shape)

    @property
    def rows(self) -> int:
        """Tokens that fit."""
        return self.num_blocks * self.block_size

    @property
    def kv_bytes(self) -> int:
        """Bytes of all pages."""
        per_token = sum(shape.elements for shape in self.shapes.values())
        return per_token * self.rows * self.dtype.itemsize

    def keys(self, layer: int) -> torch.Tensor:
        """K [kv_heads, rows, k_dim] of a layer."""
        return self._keys[layer]

    def values(self, layer: int) -> torch.Tensor:
        """V [kv_heads, rows, v_dim] of a layer."""
        return self._values[layer]

    def write(self, layer: int, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k [tokens, kv_heads, k_dim] and v (.., v_dim) at `rows` int64 [tokens]."""
        # index_copy_, not scatter_ or an indexed store: those walk a big pool (68 ms were seen).
        self._keys[layer].index_copy_(1, rows, k.transpose(0, 1))
        self._values[layer].index_copy_(1, rows, v.transpose(0, 1))

    def copy(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy block `sources[i]` to `blocks[i]` on all layers; all are read before any is written.

        Runs of blocks are copied as runs. Blocks that are their own source are left alone.
        """
        moves = [
            (source, block)
            for source, block in zip(sources, blocks, strict=True)
            if source != block
        ]
        size = self.block_size
        runs = [(source * size, block * size, n * size) for source, block, n in _runs(moves)]
        safe = {source for source, _ in moves}.isdisjoint(block for _, block in moves)
        layers = list(self._joined.values())
        for layer in self.shapes.keys() - self._joined.keys():
            layers += [self._keys[layer], self._values[layer]]
        for pages in layers:
            parts = [pages[:, source : source + n] for source, _, n in runs]
            if not safe:
                parts = [part.clone() for part in parts]
            for part, (_, row, n) in zip(parts, runs, strict=True):
                pages[:, row : row + n].copy_(part)

    def joined(self, layer: int) -> torch.Tensor | None:
        """K and V as one [2 * kv_heads, rows, dim], keys first; None where their widths differ."""
        return self._joined.get(layer)

    def reset(self) -> None:
        """Forget everything: all pages are zero again."""
        for layer, shape in self.shapes.items():
            # Fresh zero pages cost nothing until they are touched; zero_() would touch all of them.
            self._drop(layer)
            self._allocate(layer, shape)

    def check_integrity(self, tables: Sequence[tuple[int, Int32Array]] = ()) -> None:
        """Assert what must always hold; `tables` are (slot, blocks) pairs that must not overlap.

        Raises RequestError for bad tables and AssertionError when the pool itself is broken.
        """
        check_tables(tables, self.num_blocks)
        spans: list[tuple[int, int]] = []
        for layer, shape in self.shapes.items():
            k, v = self._keys[layer], self._values[layer]
            assert k.shape == (shape.heads, self.rows, shape.k_dim), f"layer {layer}: K {k.shape}"
            assert v.shape == (shape.heads, self.rows, shape.v_dim), f"layer {layer}: V {v.shape}"
            for pages in (k, v):
                assert pages.dtype == self.dtype, f"layer {layer}: {pages.dtype}"
                assert pages.device.type == self.device.type, f"layer {layer}: {pages.device}"
                assert pages.is_contiguous(), f"layer {layer}: pages are not contiguous"
                spans.append((pages.data_ptr(), pages.data_ptr() + pages.nbytes))
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start, "pages of two layers overlap"

    def _allocate(self, layer: int, shape: KVShape) -> None:
        if shape.k_dim == shape.v_dim:
            size = (2 * shape.heads, self.rows, shape.k_dim)
            joined = empty_pages(size, self.dtype, self.device)
            self._joined[layer] = joined
            self._keys[layer], self._values[layer] = joined[: shape.heads], joined[shape.heads :]
            return
        for pages, dim in ((self._keys, shape.k_dim), (self._values, shape.v_dim)):
            size = (shape.heads, self.rows, dim)
            pages[layer] = empty_pages(size, self.dtype, self.device)

    def _drop(self, layer: int) -> None:
        self._joined.pop(layer, None)
        del self._keys[layer], self._values[layer]


def _runs(moves: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(source, target, count) of block moves whose sources and targets both follow one another."""
    runs: list[tuple[int, int, int]] = []
    for source, block in moves:
        if runs:
            first, target, count = runs[-1]
            if (source, block) == (first + count, target + count):
                runs[-1] = (first, target, count + 1)
                continue
        runs.append((source, block, 1))
    return runs


def empty_pages(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed pages; on CPU they take memory only as they are first written.

    `torch.zeros` would touch the whole pool: seconds of start and gigabytes that nobody uses yet.
    Raises MemoryError when even the addresses are refused.
    """
    nbytes = math.prod(size) * dtype.itemsize
    if device.type != "cpu" or not nbytes:
        return torch.zeros(size, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, nbytes)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes of KV pages: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(size)


def rows_tensor(rows: Int64Array, device: torch.device) -> torch.Tensor:
    """int64 rows as a tensor on `device`; on CPU without a copy."""
    tensor = torch.from_numpy(rows)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)
