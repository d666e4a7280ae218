"""A stage's tables follow the headers, and say where a header contradicts them."""

from __future__ import annotations

import numpy as np
import pytest

from lamella_contract.errors import WireError
from lamella_contract.wire import Adopt, Free, Sampling, SegmentHeader, StepHeader
from lamella_worker.scheduling.slots import SlotTable


def table() -> SlotTable:
    return SlotTable(num_blocks=8, block_size=4, max_sequences=2, max_model_len=20)


def adopt(slot: int, generation: int) -> Adopt:
    return Adopt(slot, generation, 1, (1,), Sampling())


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
