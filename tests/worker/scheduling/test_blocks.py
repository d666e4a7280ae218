"""Blocks stay contiguous where there is room, belong to one sequence each, and all come back."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lamella_worker.scheduling.blocks import BlockAllocator, Lease

# (action, lease, argument) and what it gives: "open" wants, "extend" counts.
TABLES = {
    "a sequence grows into its reserve": [
        ("open", "a", 4, None),
        ("extend", "a", 1, (0,)),
        ("open", "b", 3, None),
        ("extend", "b", 2, (4, 5)),
        ("extend", "a", 3, (1, 2, 3)),
        ("extend", "b", 1, (6,)),
    ],
    "beyond its reserve it takes the free run right behind": [
        ("open", "a", 2, None),
        ("extend", "a", 2, (0, 1)),
        ("extend", "a", 2, (2, 3)),
    ],
    "a newcomer gets the smallest run that fits": [
        ("open", "a", 2, None),
        ("extend", "a", 2, (0, 1)),
        ("open", "b", 1, None),
        ("extend", "b", 1, (2,)),
        ("open", "c", 2, None),
        ("extend", "c", 2, (3, 4)),
        ("close", "a", 0, None),
        ("close", "c", 0, None),
        ("open", "d", 2, None),
        ("extend", "d", 2, (0, 1)),
    ],
    "without a free run it takes the far half of the biggest reserve": [
        ("open", "a", 8, None),
        ("extend", "a", 2, (0, 1)),
        ("open", "b", 4, None),
        ("extend", "b", 2, (5, 6)),
        ("extend", "a", 4, (2, 3, 4, 7)),
    ],
    "all or nothing": [
        ("open", "a", 1, None),
        ("extend", "a", 7, (0, 1, 2, 3, 4, 5, 6)),
        ("open", "b", 2, None),
        ("extend", "b", 2, None),
        ("extend", "b", 1, (7,)),
        ("close", "a", 0, None),
        ("extend", "b", 3, (0, 1, 2)),
    ],
}


@pytest.mark.parametrize("lines", TABLES.values(), ids=TABLES.keys())
def test_table(lines: list[tuple[str, str, int, tuple[int, ...] | None]]) -> None:
    allocator = BlockAllocator(8)
    leases: dict[str, Lease] = {}
    for action, name, argument, expected in lines:
        if action == "open":
            leases[name] = allocator.open(argument)
        elif action == "extend":
            assert allocator.extend(leases[name], argument) == expected, (action, name, argument)
        else:
            allocator.close(leases.pop(name))
        allocator.check_integrity(leases.values())


def test_sequences_that_fit_together_all_stay_contiguous() -> None:
    allocator = BlockAllocator(100)
    wants = [10, 25, 5, 30, 20, 10]
    leases = [allocator.open(want) for want in wants]
    for turn in range(max(wants)):
        for lease in leases:
            if turn < lease.want:
                assert allocator.extend(lease, 1) is not None
    assert all(lease.contiguous for lease in leases)
    assert allocator.free_blocks == 0


def test_a_gap_is_not_contiguous() -> None:
    lease = Lease(want=3, blocks=[1, 2, 4])
    assert not lease.contiguous
    assert Lease(want=3, blocks=[4, 5, 6]).contiguous
    assert Lease(want=3).contiguous


def test_two_greedy_sequences_share_the_pool_in_halves() -> None:
    """Each may want everything (no max_tokens): both stay contiguous up to half the pool."""
    allocator = BlockAllocator(64)
    first, second = allocator.open(64), allocator.open(64)
    for _ in range(32):
        assert allocator.extend(first, 1)
        assert allocator.extend(second, 1)
    assert first.contiguous
    assert second.contiguous
    assert allocator.extend(first, 1) is None


@given(
    num_blocks=st.integers(0, 40),
    actions=st.lists(
        st.tuples(st.sampled_from(["open", "extend", "close"]), st.integers(0, 50)), max_size=80
    ),
)
@settings(deadline=None, max_examples=300)
def test_blocks_have_one_owner_and_all_come_back(
    num_blocks: int, actions: list[tuple[str, int]]
) -> None:
    allocator = BlockAllocator(num_blocks)
    leases: list[Lease] = []
    for action, number in actions:
        if action == "open":
            leases.append(allocator.open(number))
        elif leases and action == "extend":
            lease = leases[number % len(leases)]
            before, free = list(lease.blocks), allocator.free_blocks
            count = number // 5
            new = allocator.extend(lease, count)
            assert (new is None) == (count > free)
            assert lease.blocks == before + list(new or ())
            assert allocator.free_blocks == free - len(new or ())
        elif leases:
            allocator.close(leases.pop(number % len(leases)))
        allocator.check_integrity(leases)
    for lease in leases:
        allocator.close(lease)
    allocator.check_integrity([])
    assert allocator.free_blocks == num_blocks
