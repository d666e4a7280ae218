"""A stage's side of the block tables: what each slot holds, built from step headers only.

Knows no tensor, no request and no scheduler: it follows what headers say, and says `WireError`
where they contradict themselves. In the flow: every stage's loop, stage 0's too, gives each
`StepHeader` to `SlotTable.apply` in order and makes its batch from the segments that come back.
A header that names a ``failed`` step is applied all the same: its frees, adopts and blocks count.

Between two epochs of one incarnation slots *rest*: their pages are untouched, but headers that were
lost may have freed or moved them. A resting slot counts again once stage 0 adopts it under the same
generation, and is forgotten as soon as another tenure gets the slot or one of its blocks.

A sequence may begin with copies of blocks that others filled, live ones or gone ones. The table
checks that each of these is full here for certain; the loop copies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lamella_contract.errors import WireError
from lamella_contract.wire import Adopt, Free, HeldSlot, SegmentHeader, StepHeader

_NOBODY = -1


class SlotSegment(NamedTuple):
    """Rows ``[start, start + count)`` of a slot; the fields of a batch's segment, in its order.

    ``blocks`` is int32 [ceil((start + count) / block_size)], the sequence's block table: a view
    that stays true until the slot is adopted anew.
    """

    slot: int
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    blocks: npt.NDArray[np.int32]
    sample: bool


class SlotTable:
    """Generation, filled length and blocks of every slot of one stage.

    Beside the filled length, which follows headers, it knows how much of a slot's KV is there for
    certain: less after a step that failed, more while a sequence is computed again.
    A call costs O(segments + new blocks). After a `WireError` the table is undefined: `reset` it.
    """

    def __init__(
        self, *, num_blocks: int, block_size: int, max_sequences: int, max_model_len: int
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_sequences = max_sequences
        most = min(num_blocks, -(-max_model_len // block_size))
        self._blocks = np.zeros((max_sequences, most), np.int32)
        self._owner = [_NOBODY] * num_blocks
        self._full = bytearray(num_blocks)  # 1: nobody owns it, and who did filled it for certain
        self.reset()

    def reset(self) -> None:
        """Forget every slot: another incarnation begins, or the pages are not to be trusted."""
        self._generations = [0] * self.max_sequences
        self._live = [False] * self.max_sequences
        self._rests = [False] * self.max_sequences
        self._filled = [0] * self.max_sequences
        self._sure = [0] * self.max_sequences
        self._used = [0] * self.max_sequences
        self._owner[:] = [_NOBODY] * self.num_blocks
        self._full = bytearray(self.num_blocks)

    def rest(self) -> None:
        """Another epoch of the same incarnation begins: what is held rests until it is adopted."""
        for slot, live in enumerate(self._live):
            if live:
                self._live[slot], self._rests[slot] = False, True
            elif not self._rests[slot]:
                self._generations[slot] = 0
        self._full = bytearray(self.num_blocks)

    def held(self) -> tuple[HeldSlot, ...]:
        """What rests here: the positions of each slot that are computed for certain."""
        return tuple(
            HeldSlot(slot, self._generations[slot], self._sure[slot])
            for slot in range(self.max_sequences)
            if self._rests[slot] and self._sure[slot]
        )

    def doubt(self, header: StepHeader) -> None:
        """The rows of a step that was applied were not computed, or not all of them, nor was all
        copied.
        """
        for adopt in header.adopts:
            if adopt.sources:
                self._sure[adopt.slot] = 0
        for slot, _, start, *_ in header.segments:
            self._sure[slot] = min(self._sure[slot], start)

    def live(self) -> dict[int, tuple[int, int, tuple[int, ...]]]:
        """What is held, for /status and tests: slot -> (generation, filled length, blocks)."""
        return {
            slot: (self._generations[slot], self._filled[slot], self.blocks_of(slot))
            for slot in range(self.max_sequences)
            if self._live[slot]
        }

    def blocks_of(self, slot: int) -> tuple[int, ...]:
        return tuple(self._blocks[slot, : self._used[slot]].tolist())

    def apply(self, header: StepHeader, *, skipped: bool = False) -> list[SlotSegment]:
        """Follow a header: frees, then adopts, then segments; the segments to compute.

        `skipped`: this stage need not compute them; `WireError` if it does not hold all of them.
        """
        for free in header.frees:
            self._free(free)
        for adopt in header.adopts:
            self._adopt(adopt)
        return [self._segment(segment, skipped) for segment in header.segments]

    def _free(self, free: Free) -> None:
        self._check(free.slot, free.generation, "free")
        self._forget(free.slot)

    def _forget(self, slot: int) -> None:
        owner = self._owner
        full = self._sure[slot] // self.block_size
        for index, block in enumerate(self.blocks_of(slot)):
            owner[block] = _NOBODY
            self._full[block] = index < full
        self._live[slot] = self._rests[slot] = False
        self._used[slot] = self._sure[slot] = 0

    def _adopt(self, adopt: Adopt) -> None:
        slot = adopt.slot
        if slot >= self.max_sequences:
            raise WireError(f"adopt: got slot {slot}, want one below {self.max_sequences}")
        again = self._rests[slot] and adopt.generation == self._generations[slot]
        if self._live[slot] or (adopt.generation <= self._generations[slot] and not again):
            raise WireError(
                f"adopt: slot {slot} is {'live' if self._live[slot] else 'free'} in generation "
                f"{self._generations[slot]}, got {adopt.generation}; want a free slot and a newer"
            )
        sure, kept = (self._sure[slot], self.blocks_of(slot)) if again else (0, ())
        if adopt.sources and not again:
            sure = self._sure_of_copies(adopt.sources)
        if kept != adopt.blocks[: len(kept)] or adopt.held > sure:
            raise WireError(
                f"adopt: got {adopt.held} positions in blocks {adopt.blocks} of slot {slot}, "
                f"here are {sure} in {kept}"
            )
        self._forget(slot)
        self._generations[slot] = adopt.generation
        self._live[slot] = True
        self._used[slot] = self._append(slot, 0, adopt.blocks)
        self._filled[slot], self._sure[slot] = adopt.held, sure

    def _sure_of_copies(self, sources: tuple[int, ...]) -> int:
        """Positions that copies of these blocks hold: WireError if one is not full for certain."""
        full: set[int] = set()
        for slot in {self._owner[block] for block in sources if block < self.num_blocks}:
            if slot != _NOBODY and self._live[slot]:
                full.update(self.blocks_of(slot)[: self._sure[slot] // self.block_size])
        for block in sources:
            if block not in full and (block >= self.num_blocks or not self._full[block]):
                raise WireError(f"adopt: got source {block}, which is not full here")
        return len(sources) * self.block_size

    def _segment(self, segment: SegmentHeader, skipped: bool) -> SlotSegment:
        slot, generation, start, count, sample, new_blocks = segment
        self._check(slot, generation, "segment")
        used = self._used[slot]
        if new_blocks:
            used = self._append(slot, used, new_blocks)
        end = start + count
        needed = -(-end // self.block_size)
        # Rows before the filled length may be computed again, none may be left out.
        if count < 1 or start > self._filled[slot] or needed > used:
            raise WireError(
                f"segment: got rows [{start}, {end}) of slot {slot}, want 1 or more from at most "
                f"{self._filled[slot]} on, within {used} blocks of {self.block_size}"
            )
        self._filled[slot] = end
        sure = self._sure[slot]
        if skipped and end > sure:
            raise WireError(f"segment: rows [{start}, {end}) of slot {slot}, here are only {sure}")
        if start <= sure < end:
            self._sure[slot] = end
        return SlotSegment(slot, start, count, self._blocks[slot, :needed], sample)

    def _append(self, slot: int, used: int, new_blocks: tuple[int, ...]) -> int:
        end = used + len(new_blocks)
        if end > self._blocks.shape[1]:
            raise WireError(
                f"segment: got {end} blocks for slot {slot}, want at most {self._blocks.shape[1]}"
            )
        owner = self._owner
        for block in new_blocks:
            if block < self.num_blocks and owner[block] != _NOBODY and self._rests[owner[block]]:
                self._forget(owner[block])  # a free was lost with its header
            if block >= self.num_blocks or owner[block] != _NOBODY:
                raise WireError(
                    f"segment: got block {block} for slot {slot}, want a free one "
                    f"below {self.num_blocks}"
                )
            owner[block] = slot
            self._full[block] = 0
        self._blocks[slot, used:end] = new_blocks
        self._used[slot] = end
        return end

    def _check(self, slot: int, generation: int, what: str) -> None:
        if slot >= self.max_sequences or not self._live[slot]:
            raise WireError(f"{what}: got slot {slot}, want one that was adopted")
        if self._generations[slot] != generation:
            raise WireError(
                f"{what}: got generation {generation} of slot {slot}, want "
                f"{self._generations[slot]}"
            )
