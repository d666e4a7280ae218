"""The requests that hold a slot: their blocks, their generations, and who gives way to whom.

Knows no steps in flight and no costs. A slot is an index that every stage uses for one sequence;
each tenure of it has a generation, raised for good, so that what belongs to an earlier tenure is
told apart. The running requests are always the oldest live ones: admission takes the oldest that
waits, and when blocks run out the youngest gives way. So the oldest request always gets on, and
nothing starves. Blocks may be given on at once although steps in flight still write them: stages
work in order, and the new owner's first step comes later. In the flow: used by
`scheduler` only.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from lamella_contract.wire import Adopt, Free
from lamella_worker.scheduling.blocks import BlockAllocator, Lease
from lamella_worker.scheduling.requests import NO_SLOT, LiveRequest
from lamella_worker.scheduling.resync import Kept, Rewind


class RunningSet:
    """Slots and blocks of the running requests; every call costs O(what it changes)."""

    def __init__(self, *, num_blocks: int, block_size: int, max_sequences: int) -> None:
        self.block_size = block_size
        self.blocks = BlockAllocator(num_blocks)
        self._by_arrival: OrderedDict[int, LiveRequest] = OrderedDict()
        self._free_slots = list(range(max_sequences))  # a heap: low slots first
        self._generations = [0] * max_sequences
        self._frees: list[Free] = []
        self._adopts: dict[int, Adopt] = {}  # by slot: what stages must be told first

    def __len__(self) -> int:
        return len(self._by_arrival)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Oldest first."""
        return iter(self._by_arrival.values())

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free_slots)

    def youngest(self) -> LiveRequest:
        return self._by_arrival[next(reversed(self._by_arrival))]

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def missing_blocks(self, request: LiveRequest, tokens: int) -> int:
        """Blocks that a running request lacks to hold ``tokens`` positions."""
        return max(0, self.blocks_for(tokens) - len(_lease(request).blocks))

    def admit(self, request: LiveRequest) -> Adopt:
        """Give the oldest waiting request a slot; what the stages are told."""
        assert request.slot == NO_SLOT
        assert not self._by_arrival or self.youngest().arrival < request.arrival
        slot = heapq.heappop(self._free_slots)
        self._generations[slot] += 1
        request.slot, request.generation = slot, self._generations[slot]
        request.lease = self.blocks.open(self.blocks_for(request.last_len))
        self._by_arrival[request.arrival] = request
        return _adopt(request)

    def extend(self, request: LiveRequest, count: int) -> tuple[int, ...] | None:
        """``count`` more blocks; None (and no change) when too few are free."""
        return self.blocks.extend(_lease(request), count)

    def release(self, request: LiveRequest) -> None:
        """Take slot and blocks back; the stages learn of it from the next header."""
        self._end_tenure(request)
        del self._by_arrival[request.arrival]
        self.blocks.close(_lease(request))
        heapq.heappush(self._free_slots, request.slot)
        request.slot, request.lease, request.computed = NO_SLOT, None, 0

    def renew(self, request: LiveRequest) -> None:
        """Another tenure of the same slot and blocks, with nothing computed."""
        self._end_tenure(request)
        self._generations[request.slot] += 1
        request.generation = self._generations[request.slot]
        request.given = max(request.given, request.computed)
        request.computed = 0
        self._adopts[request.slot] = _adopt(request)

    def _end_tenure(self, request: LiveRequest) -> None:
        if self._adopts.pop(request.slot, None) is None:  # else the stages know nothing of it yet
            self._frees.append(Free(request.slot, request.generation))

    def take_frees(self) -> tuple[Free, ...]:
        frees, self._frees = tuple(self._frees), []
        return frees

    def take_adopts(self) -> list[Adopt]:
        """What the next header says of tenures that go on in a new epoch, or begin anew."""
        adopts, self._adopts = list(self._adopts.values()), {}
        return adopts

    def restart(self, kept: Kept) -> list[tuple[LiveRequest, Rewind]]:
        """Another epoch: slots, generations and blocks stay; where each request goes on.

        Oldest first. The stages forget what they are not told of again, so nothing is freed.
        """
        self._frees.clear()
        rewinds = []
        for request in self:
            rewind = kept.of(request.slot, request.generation, len(request.ids))
            request.given = max(request.given, request.computed)
            request.computed = rewind.start
            self._adopts[request.slot] = _adopt(request, rewind.start)
            rewinds.append((request, rewind))
        return rewinds

    def lend(self) -> int:
        """A block that holds nothing, for the probe of a new epoch; -1 when all are in use."""
        lease = self.blocks.open(1)
        found = self.blocks.extend(lease, 1)
        self.blocks.close(lease)
        return found[0] if found else -1

    def check_integrity(self) -> None:
        """Assert that slots and blocks have one owner each; O(pool)."""
        leases = [_lease(request) for request in self]
        self.blocks.check_integrity(leases)
        slots = [request.slot for request in self]
        assert sorted([*slots, *self._free_slots]) == list(range(len(self._generations)))
        arrivals = [request.arrival for request in self]
        assert arrivals == sorted(arrivals), "running requests are out of order"
        for request in self:
            assert request.generation == self._generations[request.slot]
            assert 0 <= request.computed <= len(request.ids)
            assert len(_lease(request).blocks) >= self.blocks_for(request.computed)
            assert len(_lease(request).blocks) <= self.blocks_for(len(request.ids))


def _adopt(request: LiveRequest, held: int = 0) -> Adopt:
    return Adopt(
        slot=request.slot,
        generation=request.generation,
        prompt_len=request.prompt_len,
        ids=tuple(request.ids),
        sampling=request.sampling,
        held=held,
        blocks=tuple(_lease(request).blocks),
    )


def _lease(request: LiveRequest) -> Lease:
    assert request.lease is not None, "not running"
    return request.lease
