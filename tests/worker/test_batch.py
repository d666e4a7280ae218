"""The arrays of a step: a naive token-by-token twin must agree, and bad tables are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella_contract.errors import RequestError
from lamella_worker.batch import Segment, StepBatch, contiguous_start, table_rows

SegmentSpec = tuple[int, int, bool]


def make(specs: list[SegmentSpec], block_size: int, order: list[int]) -> StepBatch:
    """Segments with blocks dealt out from `order`, slot = index."""
    free = iter(order)
    segments = []
    for slot, (start, count, sample) in enumerate(specs):
        needed = -(-(start + count) // block_size)
        blocks = np.array([next(free) for _ in range(needed)], np.int32)
        segments.append(Segment(slot, start, count, blocks, sample))
    return StepBatch(tuple(segments), block_size)


spec = st.tuples(st.integers(0, 40), st.integers(1, 20), st.booleans())


@given(st.lists(spec, min_size=0, max_size=6), st.integers(1, 17), st.randoms())
def test_arrays_agree_with_the_naive_twin(specs, block_size, random):
    needed = sum(-(-(start + count) // block_size) for start, count, _ in specs)
    order = list(range(needed))
    random.shuffle(order)
    batch = make(specs, block_size, order)
    batch.check(needed)
    positions, rows, sampled = [], [], []
    for segment in batch.segments:
        for at in range(segment.start, segment.start + segment.count):
            positions.append(at)
            block = segment.blocks[at // block_size]
            rows.append(int(block) * block_size + at % block_size)
        if segment.sample:
            sampled.append(len(positions) - 1)
    assert batch.positions.tolist() == positions
    assert batch.cache_rows.tolist() == rows
    assert batch.sample_rows.tolist() == sampled
    assert [s.slot for s in batch.sampled] == [s.slot for s in batch.segments if s.sample]
    assert batch.tokens == len(positions)
    assert batch.is_decode == all(count == 1 for _, count, _ in specs)
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    ("blocks", "first"),
    [
        pytest.param([3], 3, id="one"),
        pytest.param([3, 4, 5], 3, id="run"),
        pytest.param([3, 5], -1, id="gap"),
        pytest.param([5, 4], -1, id="backwards"),
        pytest.param([3, 5, 4, 6], -1, id="ends-look-right"),
    ],
)
def test_contiguous_start(blocks, first):
    assert contiguous_start(np.array(blocks, np.int32)) == first


def test_table_rows_may_start_inside_a_block():
    assert table_rows(np.array([7, 2], np.int32), 4, 3, 6).tolist() == [31, 8, 9]


def segment(slot=0, start=0, count=1, blocks=(0,)):
    return Segment(slot, start, count, np.array(blocks, np.int32), True)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        pytest.param([segment(blocks=(8,))], r"\[0, 8\)", id="past-the-pool"),
        pytest.param([segment(blocks=(-1,))], r"\[0, 8\)", id="negative"),
        pytest.param([segment(), segment(slot=1)], "two tables", id="shared"),
        pytest.param([segment(), segment(blocks=(1,))], "each slot once", id="slot-twice"),
        pytest.param([segment(count=0)], "count=0", id="empty"),
        pytest.param([segment(count=5)], "1 blocks of 4", id="too-few-blocks"),
    ],
)
def test_bad_tables_are_refused(segments, message):
    with pytest.raises(RequestError, match=message):
        StepBatch(tuple(segments), 4).check(8)
