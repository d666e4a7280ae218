"""A transformers cache whose attention layers live in the stage's pages.

Knows one sequence at a time: the runner points it at a segment, runs the model, and points it at
the next. Keys and values of plain attention layers go to the paged pool; state that is not one
entry per token (recurrent, convolution, compressed, indexed) stays in transformers' own cache
layers, one set per slot.

A slice need not contain layer 0, but the model asks the cache's layer 0 for the length seen so
far: the answers come from the segment, not from any layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from lamella_worker.batch import Segment, contiguous_start, table_rows
from lamella_worker.paging.cache import KVShape, PagedPool, rows_tensor


@dataclass
class Cursor:
    """Where the sequence that is running now stands, and its rows in the pool."""

    start: int = 0
    count: int = 0
    contiguous: int = -1  # first pool row when the table's blocks follow one another
    rows: torch.Tensor | None = None  # int64 [start + count], all rows of the sequence

    def point_at(self, segment: Segment, block_size: int, device: torch.device) -> None:
        """Stand on `segment`."""
        self.start, self.count = segment.start, segment.count
        first = contiguous_start(segment.blocks)
        self.contiguous = first * block_size if first >= 0 else -1
        rows = table_rows(segment.blocks, block_size, 0, segment.length)
        self.rows = rows_tensor(rows, device)


class PagedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One attention layer's view of the pool; `window` is None for full attention."""

    def __init__(self, pool: PagedPool, layer: int, window: int | None, cursor: Cursor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pool, self.layer, self.window, self.cursor = pool, layer, window, cursor
        self.is_sliding = window is not None
        if window is not None:
            self.sliding_window = window
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [1, heads, count, dim]; all that the mask covers, [1, heads, length, dim]."""
        cursor = self.cursor
        assert cursor.rows is not None, "the cache stands on no segment"
        new = cursor.rows[cursor.start :]
        keys = key_states[0].transpose(0, 1).to(self.pool.dtype)  # [count, heads, dim]
        values = value_states[0].transpose(0, 1).to(self.pool.dtype)
        self.pool.write(self.layer, new, keys, values)
        first = _offset(cursor.start, self.window)
        read = (self._read(pages, first) for pages in self._pages())
        k, v = (pages.unsqueeze(0) for pages in read)
        return k.to(key_states.dtype), v.to(value_states.dtype)

    def get_seq_length(self) -> int:
        return self.cursor.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return _mask_sizes(self.cursor.start, query_length, self.window)

    def _pages(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pool.keys(self.layer), self.pool.values(self.layer)

    def _read(self, pages: torch.Tensor, first: int) -> torch.Tensor:
        cursor = self.cursor
        assert cursor.rows is not None
        if cursor.contiguous >= 0:
            end = cursor.contiguous + cursor.start + cursor.count
            return pages[:, cursor.contiguous + first : end]
        return pages.index_select(1, cursor.rows[first:])


def _offset(start: int, window: int | None) -> int:
    """First position that a query at `start` may see under a sliding window."""
    return 0 if window is None else max(start - window + 1, 0)


def _mask_sizes(start: int, count: int, window: int | None) -> tuple[int, int]:
    offset = _offset(start, window)
    return start + count - offset, offset


class SlotCache(Cache):
    """The cache that one slot's forward passes see."""

    def __init__(self, layers: list[Any], cursor: Cursor, owned: frozenset[int]) -> None:
        Cache.__init__(self, layers=layers)
        self.cursor, self.owned = cursor, owned

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.cursor.start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.cursor.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        window = getattr(layer, "sliding_window", None)
        return _mask_sizes(self.cursor.start, query_length, window)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        if layer_idx is None or layer_idx not in self.owned:
            return self.cursor.start > 0
        return bool(super().has_previous_state(layer_idx, state_idx))


class LinearSlotCache(SlotCache, MiniMaxCache):
    """For MiniMax, whose code insists on its own cache class for its linear attention."""

    def __init__(self, layers: list[Any], cursor: Cursor, owned: frozenset[int]) -> None:
        SlotCache.__init__(self, layers, cursor, owned)
        self.linear_cache: dict[int, torch.Tensor] = {}  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.layers)

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        self.linear_cache[layer_idx] = linear_cache

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        return self.linear_cache.get(layer_idx)


def slot_cache(config: Any, layers: list[Any], cursor: Cursor, owned: frozenset[int]) -> SlotCache:
    """The cache for one slot of a family."""
    cls = LinearSlotCache if config.model_type == "minimax" else SlotCache
    return cls(layers, cursor, owned)


def fresh_layers(config: Any, num_layers: int) -> list[Any]:
    """transformers' own cache layers for every layer of the model, empty."""
    layers = list(DynamicCache(config=config).layers)
    layers += [_full_layer() for _ in range(num_layers - len(layers))]
    return layers


def _full_layer() -> Any:
    return DynamicLayer()  # type: ignore[no-untyped-call]


def pages_fit(layer: Any) -> bool:
    """True for the cache layers that are nothing but keys and values per token."""
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


class RecordingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Learns a layer's K and V shapes from one forward pass of one token."""

    def __init__(self, replaced: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = replaced.is_sliding
        if replaced.is_sliding:
            self.sliding_window = replaced.sliding_window
        self.shape: KVShape | None = None
        self.updates = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.updates += 1
        k, v = key_states.shape, value_states.shape
        self.shape = None
        if len(k) == len(v) == 4 and k[:3] == v[:3] and k[0] == 1 and k[2] == 1:
            self.shape = KVShape(heads=k[1], k_dim=k[3], v_dim=v[3])
        return key_states, value_states


def was_used(layer: Any) -> bool:
    """True when a forward pass left something in this cache layer."""
    if isinstance(layer, RecordingLayer):
        return layer.updates > 0
    states = getattr(layer, "has_previous_state", None)
    if isinstance(states, dict) and any(states.values()):
        return True
    return getattr(layer, "keys", None) is not None
