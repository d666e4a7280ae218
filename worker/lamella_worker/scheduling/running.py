"""The requests that hold a slot: their blocks, their generations, and who gives way to whom.

Knows no steps in flight and no costs. A slot is an index that every stage uses for one sequence;
each tenure of it has a generation, raised for good, so that what belongs to an earlier tenure is
told apart. The running requests are always the oldest live ones: admission takes the oldest that
waits, and when blocks run out the youngest gives way. So the oldest request always gets on, and
nothing starves. Blocks may be given on at once although steps in flight still write them: stages
work in order, and the new owner's first step comes later.

A newcomer begins with what others left (`prefix`): the blocks that hold the beginning of its ids
are copied into its own, so that each sequence has its blocks to itself and mostly in one run; or
they become its own where they lie, when nobody uses them and it can grow there. In the flow: used
by `scheduler` only.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from lamella_contract.wire import Adopt, Free
from lamella_worker.scheduling.blocks import BlockAllocator, Lease
from lamella_worker.scheduling.prefix import PrefixIndex, chain
from lamella_worker.scheduling.requests import NO_SLOT, LiveRequest
from lamella_worker.scheduling.resync import Kept, Rewind


class RunningSet:
    """Slots and blocks of the running requests; every call costs O(what it changes)."""

    def __init__(self, *, num_blocks: int, block_size: int, max_sequences: int) -> None:
        self.block_size = block_size
        self.index = PrefixIndex()
        self.blocks = BlockAllocator(num_blocks, self.index.drop)
        self.reuses = True  # what one sequence left, others may begin with
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

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def youngest(self) -> LiveRequest:
        return self._by_arrival[next(reversed(self._by_arrival))]

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def missing_blocks(self, request: LiveRequest, tokens: int) -> int:
        """Blocks that a running request lacks to hold ``tokens`` positions."""
        return max(0, self.blocks_for(tokens) - len(_lease(request).blocks))

    def known(self, request: LiveRequest) -> list[int]:
        """The blocks that hold the beginning of a waiting request's ids, all but one at most."""
        found: list[int] = []
        if not self.reuses:
            return found
        before = -1
        for index in range((len(request.ids) - 1) // self.block_size):
            self._name(request, index + 1)
            before = self.index.find(request.names[index], before)
            if before < 0:
                break
            found.append(before)
        return found

    def admit(self, request: LiveRequest, sources: Sequence[int] = ()) -> Adopt:
        """Give the oldest waiting request a slot; what the stages are told.

        It begins with what is in ``sources``, as `known` found them.
        """
        assert request.slot == NO_SLOT
        assert not self._by_arrival or self.youngest().arrival < request.arrival
        slot = heapq.heappop(self._free_slots)
        self._generations[slot] += 1
        request.slot, request.generation = slot, self._generations[slot]
        want, least = self.blocks_for(request.last_len), self.blocks_for(len(request.ids))
        lease = self.blocks.reopen(sources, want, least - len(sources)) if sources else None
        if lease is None:
            self.blocks.touch(sources)
            lease = self.blocks.open(want, least)
            taken = self.blocks.extend(lease, len(sources))
            assert taken is not None, "admitted without blocks"
        request.lease = lease
        request.computed = held = len(sources) * self.block_size
        self._by_arrival[request.arrival] = request
        return _adopt(request, held, sources)

    def name_blocks(self, request: LiveRequest) -> None:
        """Others may begin with the full blocks of what all stages have computed of a request."""
        full = request.landed // self.block_size
        if not self.reuses or full <= request.named:
            return
        self._name(request, full)
        blocks = _lease(request).blocks
        for index in range(request.named, full):
            self.index.put(blocks[index], request.names[index])
        request.named = full

    def _name(self, request: LiveRequest, end: int) -> None:
        chain(request.names, request.salt, request.ids, self.block_size, end)

    def extend(self, request: LiveRequest, count: int) -> tuple[int, ...] | None:
        """``count`` more blocks; None (and no change) when too few are free."""
        return self.blocks.extend(_lease(request), count)

    def release(self, request: LiveRequest) -> None:
        """Take slot and blocks back; the stages learn of it from the next header."""
        lease = _lease(request)
        if self._end_tenure(request):
            self.name_blocks(request)  # of its answer: only now, for its next turn
            self.index.drop_doubles(lease.blocks)
        else:
            self._forget(lease)
        del self._by_arrival[request.arrival]
        self.blocks.close(lease, keep=self.index)
        heapq.heappush(self._free_slots, request.slot)
        request.slot, request.lease = NO_SLOT, None
        request.computed = request.landed = request.named = 0

    def renew(self, request: LiveRequest) -> None:
        """Another tenure of the same slot and blocks, with nothing computed."""
        self._end_tenure(request)
        self._generations[request.slot] += 1
        request.generation = self._generations[request.slot]
        request.given = max(request.given, request.computed)
        request.computed = request.landed = request.named = 0
        self._forget(_lease(request))
        self._adopts[request.slot] = _adopt(request)

    def _end_tenure(self, request: LiveRequest) -> bool:
        """Whether the stages have heard of it, since the epoch began."""
        if self._adopts.pop(request.slot, None) is not None:
            return False
        self._frees.append(Free(request.slot, request.generation))
        return True

    def _forget(self, lease: Lease) -> None:
        for block in lease.blocks:
            self.index.drop(block)

    def take_frees(self) -> tuple[Free, ...]:
        frees, self._frees = tuple(self._frees), []
        return frees

    def take_adopts(self) -> list[Adopt]:
        """What the next header says of tenures that go on in a new epoch, or begin anew."""
        adopts, self._adopts = list(self._adopts.values()), {}
        return adopts

    def restart(self, kept: Kept) -> list[tuple[LiveRequest, Rewind]]:
        """Another epoch: slots, generations and blocks stay; where each request goes on.

        Oldest first. The stages forget what they are not told of again, so nothing is freed. What
        is in no running request's blocks is not found any more: a stage may be new.
        """
        self._frees.clear()
        self.blocks.drop_kept()
        self.index.clear()
        self.reuses = kept.reusable
        rewinds = []
        for request in self:
            rewind = kept.of(request.slot, request.generation, len(request.ids))
            request.given = max(request.given, request.computed)
            request.computed = request.landed = rewind.start
            request.named = 0
            self.name_blocks(request)
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
        self._check_index()

    def _check_index(self) -> None:
        """Assert that what is found is kept, or in a running request whose ids say the same."""
        owned = len(kept := self.blocks.kept())
        for request in self:
            blocks = _lease(request).blocks
            assert request.named * self.block_size <= request.landed <= request.computed
            for index, block in enumerate(blocks):
                name = self.index.name_of(block)
                owned += name is not None
                assert name is None or name == request.names[index], "found under another name"
                assert name is not None or index >= request.named, "forgotten while in use"
        assert owned == len(self.index), "found although nobody keeps it"
        assert all(block in self.index for block in kept), "kept for nothing"


def _adopt(request: LiveRequest, held: int = 0, sources: Sequence[int] = ()) -> Adopt:
    return Adopt(
        slot=request.slot,
        generation=request.generation,
        prompt_len=request.prompt_len,
        ids=tuple(request.ids),
        sampling=request.sampling,
        held=held,
        blocks=tuple(_lease(request).blocks),
        sources=tuple(sources),
    )


def _lease(request: LiveRequest) -> Lease:
    assert request.lease is not None, "not running"
    return request.lease
