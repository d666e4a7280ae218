"""Runs a slice one sequence at a time: right for every family, fast for none.

Knows transformers' cache protocol and the stage's pages (slot_cache.py). packed.py and the fast
runner run the same steps faster for the families that allow it; model.py chooses.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lamella_contract.errors import EngineError
from lamella_worker.batch import Bundle, Segment, StepBatch
from lamella_worker.hf.rope_freeze import freeze_rope
from lamella_worker.hf.slice import HfSlice
from lamella_worker.hf.slot_cache import (
    Cursor,
    PagedLayer,
    RecordingLayer,
    SlotCache,
    fresh_layers,
    pages_fit,
    slot_cache,
    was_used,
)
from lamella_worker.paging.cache import KVShape, PagedPool


class SequentialRunner:
    """A `SliceRunner` (model.py) that gives each segment its own forward pass and cache."""

    def __init__(self, piece: HfSlice) -> None:
        self.piece = piece
        self.pool: PagedPool | None = None
        self._cursor = Cursor()
        self._slots: dict[int, SlotCache] = {}
        self._lengths: dict[int, int] = {}
        self._state_kinds: frozenset[str] = frozenset()
        self._owned: frozenset[int] = frozenset()  # cache layers that this slice fills

    @property
    def kv_bytes(self) -> int:
        """Bytes of the pages."""
        return self.pool.kv_bytes if self.pool is not None else 0

    def setup_caches(
        self, *, num_blocks: int, block_size: int, max_sequences: int, max_model_len: int
    ) -> None:
        """Reserve the pages, and fix the rotary frequencies for `max_model_len`."""
        freeze_rope(self.piece.model, max_model_len)
        self.pool = PagedPool(
            num_blocks, block_size, self._kv_shapes(), self.piece.dtype, self.piece.device
        )
        self._state_kinds = self.state_kinds
        self._slots.clear()
        self._lengths.clear()

    def reset_caches(self) -> None:
        """Forget every sequence; pages stay reserved."""
        if self.pool is not None:
            self.pool.reset()
        self._slots.clear()
        self._lengths.clear()

    def release(self, slot: int) -> None:
        """Drop what a slot keeps beside the pages."""
        self._slots.pop(slot, None)
        self._lengths.pop(slot, None)

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy pages, block by block."""
        assert self.pool is not None, "setup_caches comes first"
        self.pool.copy(sources, blocks)

    @torch.inference_mode()
    def step(self, batch: StepBatch, inputs: Bundle) -> Bundle:
        """Run every segment of the step, one after another."""
        assert self.pool is not None, "setup_caches comes first"
        parts = []
        for index, segment in enumerate(batch.segments):
            rows = slice(int(batch.offsets[index]), int(batch.offsets[index + 1]))
            parts.append(self._run(segment, {k: v[rows] for k, v in inputs.items()}, batch))
        return join(parts)

    def _run(self, segment: Segment, inputs: Bundle, batch: StepBatch) -> Bundle:
        cache = self._cache_of(segment)
        device = self.piece.device
        self._cursor.point_at(segment, batch.block_size, device)
        positions = torch.arange(segment.start, segment.length, device=device)
        wanted = torch.tensor([segment.count - 1], device=device) if segment.sample else None
        output = self.piece.forward(inputs, positions, wanted, cache=cache, use_cache=True)
        self._lengths[segment.slot] = segment.length
        return output

    def _cache_of(self, segment: Segment) -> SlotCache:
        if segment.start == 0 or segment.slot not in self._slots:
            self._slots[segment.slot] = self._fresh_cache()
            self._lengths[segment.slot] = 0
        cache = self._slots[segment.slot]
        if self._state_kinds and self._lengths[segment.slot] != segment.start:
            raise EngineError(
                f"slot {segment.slot}: its state stands at {self._lengths[segment.slot]}, "
                f"the step starts at {segment.start}"
            )
        return cache

    @property
    def state_kinds(self) -> frozenset[str]:
        """Kinds of state that a slot keeps beside the pages; empty when pages hold everything."""
        assert self.pool is not None
        layers = fresh_layers(self.piece.config, self.piece.num_layers)
        kept = {i: layers[i] for i in self._owned if i not in self.pool.shapes}
        kinds = {type(layer).__name__ for layer in kept.values()}
        if self.piece.config.model_type == "minimax":  # its linear state is in the cache itself
            kinds.add("LinearAttentionLayer")
        return frozenset(kinds - {"DummyLayer"})

    def _fresh_cache(self) -> SlotCache:
        assert self.pool is not None
        layers = fresh_layers(self.piece.config, self.piece.num_layers)
        for index in self.pool.shapes:
            window = getattr(layers[index], "sliding_window", None)
            layers[index] = PagedLayer(self.pool, index, window, self._cursor)
        return slot_cache(self.piece.config, layers, self._cursor, self._owned)

    @torch.inference_mode()
    def _kv_shapes(self) -> dict[int, KVShape]:
        """Learn from one token what each owned layer hands to the cache."""
        layers = fresh_layers(self.piece.config, self.piece.num_layers)
        self._owned = frozenset(range(len(layers)))
        for index, layer in enumerate(layers):
            if pages_fit(layer):
                layers[index] = RecordingLayer(layer)
        self._cursor.start, self._cursor.count = 0, 1
        cache = slot_cache(self.piece.config, layers, self._cursor, self._owned)
        self.piece.forward(
            probe_inputs(self.piece),
            torch.zeros(1, dtype=torch.int64, device=self.piece.device),
            None,
            cache=cache,
            use_cache=True,
        )
        self._owned = frozenset(i for i, layer in enumerate(layers) if was_used(layer))
        found = {i: x for i, x in enumerate(layers) if isinstance(x, RecordingLayer)}
        return {i: x.shape for i, x in found.items() if x.shape is not None and x.updates == 1}


def probe_inputs(piece: HfSlice) -> Bundle:
    """A bundle of one token that the slice accepts."""
    device = piece.device
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    if piece.is_first:
        return {"token_ids": ids}
    return piece.probe_bundle(ids)


def join(parts: list[Bundle]) -> Bundle:
    """Bundles of segments as one packed bundle; segments without logits have none."""
    joined: dict[str, list[Any]] = {}
    for part in parts:
        for name, value in part.items():
            joined.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in joined.items()}
