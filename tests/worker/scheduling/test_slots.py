"""A stage's tables follow the headers, and say where a header contradicts them."""

from __future__ import annotations

import numpy as np
import pytest

from lamella_contract.errors import WireError
from lamella_contract.wire import Adopt, Free, HeldSlot, Sampling, SegmentHeader, StepHeader
from lamella_worker.scheduling.slots import SlotTable


def table() -> SlotTable:
    return SlotTable(num_blocks=8, block_size=4, max_sequences=2, max_model_len=20)


def adopt(slot: int, generation: int, held: int = 0, blocks: tuple[int, ...] = ()) -> Adopt:
    return Adopt(slot, generation, 1, (1,), Sampling(), held, blocks)


def header(
    *segments: SegmentHeader, frees: tuple[Free, ...] = (), adopts: tuple[Adopt, ...] = ()
) -> StepHeader:
    return StepHeader(1, frees=frees, adopts=adopts, segments=segments)


FIRST = header(SegmentHeader(0, 1, 0, 6, True, (5, 2)), adopts=(adopt(0, 1),))


def test_segments_carry_the_whole_block_table() -> None:
    slots = table()
    (first,) = slots.apply(FIRST)
    assert (first.slot, first.start, first.count, first.sample) == (0, 0, 6, True)
    assert first.blocks.dtype == np.int32
    assert first.blocks.tolist() == [5, 2]
    (second,) = slots.apply(header(SegmentHeader(0, 1, 6, 1, True)))
    assert (second.start, second.blocks.tolist()) == (6, [5, 2])
    (third,) = slots.apply(header(SegmentHeader(0, 1, 7, 2, True, (7,))))
    assert (third.start, third.blocks.tolist()) == (7, [5, 2, 7])
    assert slots.live() == {0: (1, 9, (5, 2, 7))}


def test_blocks_are_no_longer_than_the_segment_needs() -> None:
    slots = table()
    (segment,) = slots.apply(
        header(SegmentHeader(0, 1, 0, 4, False, (1, 2, 3)), adopts=(adopt(0, 1),))
    )
    assert segment.blocks.tolist() == [1]


def test_a_slot_and_its_blocks_change_hands_within_one_header() -> None:
    slots = table()
    slots.apply(FIRST)
    taken = header(
        SegmentHeader(0, 2, 0, 3, True, (2,)), frees=(Free(0, 1),), adopts=(adopt(0, 2),)
    )
    (segment,) = slots.apply(taken)
    assert segment.blocks.tolist() == [2]
    assert slots.live() == {0: (2, 3, (2,))}


def test_rows_may_be_computed_again() -> None:
    slots = table()
    slots.apply(FIRST)
    (segment,) = slots.apply(header(SegmentHeader(0, 1, 2, 3, False)))
    assert (segment.start, segment.blocks.tolist()) == (2, [5, 2])


def test_reset_forgets_all() -> None:
    slots = table()
    slots.apply(FIRST)
    slots.reset()
    assert slots.live() == {}
    slots.apply(FIRST)
    assert slots.live() == {0: (1, 6, (5, 2))}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(header(frees=(Free(1, 1),)), "free: got slot 1", id="free of a free slot"),
        pytest.param(header(frees=(Free(9, 1),)), "free: got slot 9", id="free beyond"),
        pytest.param(header(frees=(Free(0, 2),)), "free: got generation 2", id="free generation"),
        pytest.param(header(adopts=(adopt(2, 1),)), "adopt: got slot 2", id="adopt beyond"),
        pytest.param(header(adopts=(adopt(0, 2),)), "slot 0 is live", id="adopt of a live slot"),
        pytest.param(
            header(frees=(Free(0, 1),), adopts=(adopt(0, 1),)), "got 1; want", id="old generation"
        ),
        pytest.param(
            header(SegmentHeader(1, 1, 0, 1, True, (0,))), "segment: got slot 1", id="not adopted"
        ),
        pytest.param(
            header(SegmentHeader(0, 3, 6, 1, True)), "segment: got generation 3", id="generation"
        ),
        pytest.param(header(SegmentHeader(0, 1, 7, 1, True)), r"\[7, 8\) of slot 0", id="a gap"),
        pytest.param(header(SegmentHeader(0, 1, 6, 0, True)), r"\[6, 6\) of slot 0", id="no rows"),
        pytest.param(header(SegmentHeader(0, 1, 6, 3, True)), "within 2 blocks", id="no block"),
        pytest.param(header(SegmentHeader(0, 1, 6, 3, True, (8,))), "got block 8", id="beyond"),
        pytest.param(header(SegmentHeader(0, 1, 6, 3, True, (5,))), "got block 5", id="own block"),
        pytest.param(
            header(SegmentHeader(1, 1, 0, 3, True, (2,)), adopts=(adopt(1, 1),)),
            "got block 2 for slot 1",
            id="another's block",
        ),
        pytest.param(
            header(SegmentHeader(0, 1, 6, 3, True, (0, 1, 3, 4))),
            "got 6 blocks for slot 0, want at most 5",
            id="more than the context",
        ),
    ],
)
def test_a_header_that_contradicts_the_tables_is_refused(bad: StepHeader, message: str) -> None:
    slots = table()
    slots.apply(FIRST)
    with pytest.raises(WireError, match=message):
        slots.apply(bad)


def resting() -> SlotTable:
    """Slot 0, generation 1, with 6 positions in blocks 5 and 2."""
    slots = table()
    slots.apply(FIRST)
    slots.rest()
    return slots


def test_what_rests_goes_on_when_it_is_adopted_again() -> None:
    slots = resting()
    assert (slots.live(), slots.held()) == ({}, (HeldSlot(0, 1, 6),))
    slots.rest()  # that epoch ended before it had begun
    assert slots.held() == (HeldSlot(0, 1, 6),)
    slots.apply(header(adopts=(adopt(0, 1, 4, (5, 2, 7)),)))
    assert slots.live() == {0: (1, 4, (5, 2, 7))}
    (segment,) = slots.apply(header(SegmentHeader(0, 1, 4, 5, True)))
    assert segment.blocks.tolist() == [5, 2, 7]
    slots.rest()
    assert slots.held() == (HeldSlot(0, 1, 9),)


def test_rows_that_are_held_may_be_passed_by() -> None:
    slots = resting()
    slots.apply(header(adopts=(adopt(0, 1, 0, (5, 2)),)))
    slots.apply(header(SegmentHeader(0, 1, 0, 3, False)), skipped=True)
    assert slots.live() == {0: (1, 3, (5, 2))}
    slots.rest()
    assert slots.held() == (HeldSlot(0, 1, 6),)  # no less for having been gone through half


def test_rows_that_are_not_held_cannot_be_passed_by() -> None:
    slots = resting()
    slots.apply(header(adopts=(adopt(0, 1, 0, (5, 2)),)))
    with pytest.raises(WireError, match="here are only 6"):
        slots.apply(header(SegmentHeader(0, 1, 0, 7, False)), skipped=True)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(adopt(0, 2), id="the slot is another tenure's"),
        pytest.param(adopt(1, 1, 0, (2,)), id="a block is another tenure's"),
    ],
)
def test_what_rests_is_forgotten_once_it_is_overwritten(other: Adopt) -> None:
    slots = resting()
    slots.apply(header(adopts=(other,)))
    slots.rest()
    assert slots.held() == ()


def test_a_step_that_failed_is_not_held_nor_what_was_computed_on_it() -> None:
    slots = table()
    slots.apply(FIRST)
    failed = header(SegmentHeader(0, 1, 6, 1, True))
    slots.apply(failed)
    slots.doubt(failed)
    slots.apply(header(SegmentHeader(0, 1, 7, 1, True)))
    slots.rest()
    assert slots.held() == (HeldSlot(0, 1, 6),)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(adopt(0, 1, 7, (5, 2)), id="more than is held"),
        pytest.param(adopt(0, 1, 4, (5, 3)), id="other blocks"),
        pytest.param(adopt(0, 2, 4, (5, 2)), id="another generation"),
        pytest.param(adopt(1, 1, 4, (0,)), id="a slot that holds nothing"),
    ],
)
def test_an_adoption_of_what_is_not_here_is_refused(wrong: Adopt) -> None:
    with pytest.raises(WireError, match="adopt: got"):
        resting().apply(header(adopts=(wrong,)))


def test_slots_that_were_free_are_not_remembered() -> None:
    slots = table()
    slots.apply(FIRST)
    slots.apply(header(frees=(Free(0, 1),)))
    slots.rest()
    slots.apply(FIRST)
    assert slots.live() == {0: (1, 6, (5, 2))}


def copying(slot: int, generation: int, sources: tuple[int, ...], *blocks: int) -> Adopt:
    return Adopt(slot, generation, 1, (1,), Sampling(), 4 * len(sources), blocks, sources)


def begun(*, freed: bool) -> SlotTable:
    """Slot 0 has 6 positions in blocks 5 and 2, or had."""
    slots = table()
    slots.apply(FIRST)
    if freed:
        slots.apply(header(frees=(Free(0, 1),)))
    return slots


@pytest.mark.parametrize("freed", [False, True], ids=["live", "gone"])
def test_a_sequence_begins_with_copies_of_full_blocks(freed: bool) -> None:
    slots = begun(freed=freed)
    adopted = header(SegmentHeader(1, 1, 4, 2, True, (7,)), adopts=(copying(1, 1, (5,), 3),))
    (segment,) = slots.apply(adopted)
    assert segment.blocks.tolist() == [3, 7]
    slots.rest()
    assert HeldSlot(1, 1, 6) in slots.held()


def test_blocks_that_nobody_has_are_taken_over_where_they_lie() -> None:
    slots = begun(freed=True)
    slots.apply(header(SegmentHeader(1, 1, 4, 1, True, (6,)), adopts=(copying(1, 1, (5,), 5),)))
    assert slots.live() == {1: (1, 5, (5, 6))}


def test_copies_come_before_other_uses_of_their_source_in_one_header() -> None:
    slots = begun(freed=True)
    slots.apply(header(adopts=(copying(0, 2, (5,), 3), adopt(1, 1, blocks=(5,)))))
    assert slots.live() == {0: (2, 4, (3,)), 1: (1, 0, (5,))}


REFUSED_SOURCES = {
    "half full": ([], (2,)),
    "never written": ([], (1,)),
    "beyond the pool": ([], (99,)),
    "given to another": ([header(adopts=(adopt(1, 1, blocks=(5,)),))], (5,)),
}


@pytest.mark.parametrize(
    ("before", "sources"), REFUSED_SOURCES.values(), ids=REFUSED_SOURCES.keys()
)
def test_a_source_that_is_not_full_is_refused(
    before: list[StepHeader], sources: tuple[int, ...]
) -> None:
    slots = begun(freed=True)
    for one in before:
        slots.apply(one)
    with pytest.raises(WireError, match="source"):
        slots.apply(header(adopts=(copying(0, 2, sources, 3),)))


def test_after_a_change_of_epoch_only_what_was_adopted_again_is_a_source() -> None:
    slots = begun(freed=False)
    slots.rest()
    with pytest.raises(WireError, match="source"):
        slots.apply(header(adopts=(copying(1, 1, (5,), 3),)))
    slots = begun(freed=False)
    slots.rest()
    slots.apply(header(adopts=(adopt(0, 1, 6, (5, 2)), copying(1, 1, (5,), 3))))
    assert slots.live()[1] == (1, 4, (3,))


@pytest.mark.parametrize("freed", [False, True], ids=["live", "gone"])
def test_rows_that_failed_are_no_source_and_neither_are_copies(freed: bool) -> None:
    slots = begun(freed=freed)
    step = header(SegmentHeader(1, 1, 4, 4, True, (7,)), adopts=(copying(1, 1, (5,), 3),))
    slots.apply(step)
    slots.doubt(step)
    slots.rest()
    assert all(held.slot != 1 for held in slots.held())
