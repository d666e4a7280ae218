"""Which KV blocks belong to which sequence, kept contiguous where there is room.

Knows no tensor, no tokens and no requests: blocks are integers in ``[0, num_blocks)``. A sequence
holds a `Lease`: the blocks that it uses, in order, and a reserve right behind the last one, which
it grows into. So attention over most sequences reads one slice of the pool and gathers nothing.
A reserve is a wish, not a promise: it counts as free, and a newcomer that finds no free run big
enough takes the far half of the biggest reserve. Blocks that nobody uses but that hold something
worth finding again are *kept*: they count as free too, and are given away when no other room is
as good, the one that was used least recently first. In the flow: `running` leases
from here; the ids travel in step headers and are the same on every stage.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

_LOOK = 8  # runs of one size class looked at before one is taken: bounds the cost of a choice
_ROOM = 32  # blocks beyond those needed at once for which kept ones are given away, at a newcomer
_GROWTH = 8  # kept blocks right behind a sequence that are given away at a time, for it to grow on


@dataclass(slots=True, eq=False)
class Lease:
    """One sequence's blocks: ``blocks`` in use, ``[spare, spare_end)`` reserved to grow into.

    ``want`` is the number of blocks that the sequence may come to need in all.
    """

    want: int
    blocks: list[int] = field(default_factory=list)
    spare: int = 0
    spare_end: int = 0

    @property
    def contiguous(self) -> bool:
        """Whether the blocks are one ascending run, so that their KV can be viewed."""
        return not self.blocks or self.blocks[-1] - self.blocks[0] + 1 == len(self.blocks)


class _Runs:
    """Disjoint half-open runs of blocks, found by start, by end, and by size in a few looks."""

    def __init__(self) -> None:
        self.total = 0
        self._length: dict[int, int] = {}
        self._start: dict[int, int] = {}  # end -> start
        # Runs of length [2^(i-1), 2^i) in class i; dicts are sets that keep an order, so the
        # same history of calls gives the same blocks.
        self._classes: list[dict[int, None]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((start, start + length) for start, length in self._length.items())

    def add(self, start: int, end: int) -> None:
        length = end - start
        self._length[start] = length
        self._start[end] = start
        size = length.bit_length()
        while len(self._classes) <= size:
            self._classes.append({})
        self._classes[size][start] = None
        self.total += length

    def remove(self, start: int) -> int:
        """Take the run that starts at ``start`` out; returns its end."""
        length = self._length.pop(start)
        del self._start[start + length]
        del self._classes[length.bit_length()][start]
        self.total -= length
        return start + length

    def end_of(self, start: int) -> int | None:
        length = self._length.get(start)
        return None if length is None else start + length

    def start_of(self, end: int) -> int | None:
        return self._start.get(end)

    def fitting(self, want: int) -> int | None:
        """Start of a run of at least ``want`` blocks, about the smallest such; None without."""
        for size in range(want.bit_length(), len(self._classes)):
            seen = islice(self._classes[size], _LOOK)
            fits = [(self._length[s], s) for s in seen if self._length[s] >= want]
            if fits:
                return min(fits)[1]
        return None

    def largest(self) -> tuple[int, int]:
        """(start, length) of a run of the biggest size class; length 0 when there is none."""
        for starts in reversed(self._classes):
            if starts:
                length, start = max((self._length[s], -s) for s in islice(starts, _LOOK))
                return -start, length
        return 0, 0


class BlockAllocator:
    """Leases blocks. Every call costs O(blocks that it moves), never O(pool)."""

    def __init__(self, num_blocks: int, forget: Callable[[int], None] = lambda block: None) -> None:
        """``forget`` is told of each kept block that is given away."""
        self.num_blocks = num_blocks
        self._forget = forget
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._free = _Runs()
        self._spare = _Runs()
        self._spare_owner: dict[int, Lease] = {}
        if num_blocks:
            self._free.add(0, num_blocks)

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence uses; those kept or in a reserve are among them."""
        return self._free.total + self._spare.total + len(self._kept)

    def kept(self) -> tuple[int, ...]:
        """Blocks that nobody uses and whose content is known, least recently used first."""
        return tuple(self._kept)

    def open(self, want: int, least: int = 1) -> Lease:
        """A lease without blocks, with room reserved for ``want`` where there is any.

        For more than ``least`` and a bit kept blocks are not given away.
        """
        lease = Lease(want=max(want, 1))
        self._reserve(lease, lease.want, least)
        return lease

    def reopen(self, blocks: Sequence[int], want: int, least: int) -> Lease | None:
        """A lease that goes on behind kept blocks, in place; None where it could not grow there.

        ``least`` blocks must be free right behind them, or the lease would lie in pieces.
        """
        lease = Lease(want, list(blocks))
        if not lease.contiguous or any(block not in self._kept for block in blocks):
            return None
        behind = blocks[-1] + 1
        end = self._free.end_of(behind)
        if end is None or end - behind < least:
            return None
        for block in blocks:
            del self._kept[block]
        self._claim_free(lease, behind, min(behind + want - len(blocks), end))
        return lease

    def touch(self, blocks: Sequence[int]) -> None:
        """These were used: those kept among them are given away last, the first one at the end."""
        for block in reversed(blocks):
            if block in self._kept:
                self._kept.move_to_end(block)

    def drop_kept(self) -> None:
        """What is kept holds nothing any more."""
        while self._kept:
            self._give_away(next(iter(self._kept)))

    def extend(self, lease: Lease, count: int) -> tuple[int, ...] | None:
        """``count`` more blocks for a lease, the next in order first; None when too few are free.

        All or nothing: None changes nothing.
        """
        if count > self.free_blocks:
            return None
        taken: list[int] = []
        while len(taken) < count:
            if lease.spare == lease.spare_end:
                self._reserve_behind(lease, count - len(taken))
            start = lease.spare
            end = min(start + count - len(taken), lease.spare_end)
            self._set_spare(lease, end, lease.spare_end)
            taken.extend(range(start, end))
            lease.blocks.extend(range(start, end))
        return tuple(taken)

    def close(self, lease: Lease, keep: Container[int] = ()) -> None:
        """Give everything back, blocks in ``keep`` to be kept; the lease is empty afterwards."""
        start, end = lease.spare, lease.spare_end
        self._set_spare(lease, 0, 0)
        if start < end:
            self._give(start, end)
        # Without the first the others cannot be found: it is to go last.
        self._kept.update((block, None) for block in reversed(lease.blocks) if block in keep)
        for first, last in _runs_of([b for b in lease.blocks if b not in self._kept]):
            self._give(first, last)
        lease.blocks.clear()

    def _reserve_behind(self, lease: Lease, least: int) -> None:
        """Reserve more room: right after the last block if that is free, else elsewhere."""
        want = max(least, lease.want - len(lease.blocks))
        behind = lease.blocks[-1] + 1 if lease.blocks else -1
        end = self._free.end_of(behind)
        if end is None and behind in self._kept:
            # Whoever has to gather its blocks from pieces is slow at every step.
            for block in range(behind, behind + min(want, _GROWTH)):
                if block not in self._kept:
                    break
                self._give_away(block)
            end = self._free.end_of(behind)
        if end is None:
            self._reserve(lease, want, least)
        else:
            self._claim_free(lease, behind, min(behind + want, end))

    def _reserve(self, lease: Lease, want: int, least: int) -> None:
        """Reserve ``want`` blocks in one run, or the best that there is."""
        start = self._free.fitting(want)
        if start is not None:
            self._claim_free(lease, start, start + want)
            return
        start, length = self._free.largest()
        goal = min(want, least + _ROOM)
        if length < goal and self._kept:
            self._make_room(goal)
            start, length = self._free.largest()
        if length >= goal:
            self._claim_free(lease, start, start + min(length, want))
            return
        victim_start, victim_length = self._spare.largest()
        if length and length >= victim_length - victim_length // 2:
            self._claim_free(lease, start, start + length)
        elif victim_length:
            # The owner keeps the near half: it reaches the border as late as can be.
            victim = self._spare_owner[victim_start]
            border = victim_start + victim_length // 2
            self._set_spare(victim, victim_start, border)
            self._set_spare(lease, border, victim_start + victim_length)

    def _make_room(self, goal: int) -> None:
        """Give kept blocks away, the oldest first, until there is a run of ``goal``, or enough."""
        for _ in range(min(2 * goal, len(self._kept))):
            start, end = self._give_away(next(iter(self._kept)))
            if end - start >= goal:
                return

    def _give_away(self, block: int) -> tuple[int, int]:
        """A kept block is kept no more; the free run that it is then in."""
        del self._kept[block]
        self._forget(block)
        return self._give(block, block + 1)

    def _claim_free(self, lease: Lease, start: int, end: int) -> None:
        rest = self._free.remove(start)
        if end < rest:
            self._free.add(end, rest)
        self._set_spare(lease, start, end)

    def _set_spare(self, lease: Lease, start: int, end: int) -> None:
        if lease.spare < lease.spare_end:
            self._spare.remove(lease.spare)
            del self._spare_owner[lease.spare]
        lease.spare, lease.spare_end = start, end
        if start < end:
            self._spare.add(start, end)
            self._spare_owner[start] = lease

    def _give(self, start: int, end: int) -> tuple[int, int]:
        """Make ``[start, end)`` free, one run with its free neighbours, which is returned."""
        before = self._free.start_of(start)
        if before is not None:
            self._free.remove(before)
            start = before
        if self._free.end_of(end) is not None:
            end = self._free.remove(end)
        self._free.add(start, end)
        return start, end

    def check_integrity(self, leases: Iterable[Lease]) -> None:
        """Assert that free runs, reserves, kept blocks and these leases part the pool; O(pool)."""
        seen = bytearray(self.num_blocks)
        live = list(leases)
        runs = [*self._free, *self._spare, *((block, block + 1) for block in self._kept)]
        for lease in live:
            runs.extend(_runs_of(lease.blocks))
            if lease.spare < lease.spare_end:
                assert self._spare_owner[lease.spare] is lease, "reserve of another lease"
                assert self._spare.end_of(lease.spare) == lease.spare_end, "reserve differs"
        for start, end in runs:
            assert 0 <= start < end <= self.num_blocks, f"run [{start}, {end}) outside the pool"
            assert not any(seen[start:end]), f"run [{start}, {end}) has two owners"
            seen[start:end] = b"\1" * (end - start)
        assert all(seen), "a block has no owner"
        assert len(self._spare_owner) == sum(x.spare < x.spare_end for x in live)
        for _, end in self._free:
            assert self._free.end_of(end) is None, f"free runs touch at {end}"


def _runs_of(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """The ascending half-open runs that a list of blocks consists of, in its order."""
    if not blocks:
        return
    start = previous = blocks[0]
    for block in islice(blocks, 1, None):
        if block != previous + 1:
            yield start, previous + 1
            start = block
        previous = block
    yield start, previous + 1
