"""How big a prompt's chunk is beside so many rows, and whether it may have a step of its own."""

from __future__ import annotations

import pytest

from lamella_contract.wire import SegmentHeader
from lamella_worker.scheduling.chunks import LEAST_CHUNK, Chunks
from lamella_worker.scheduling.cohorts import PACE_STEPS, Cohorts, DecodeStep
from lamella_worker.scheduling.cost import CostModel, Work
from lamella_worker.scheduling.draft import Draft

STEP_S, TOKEN_S = 0.010, 0.0005  # what each stage takes
LIMIT_S = 0.25
ROWS = 8  # alone they take 14 ms on a stage


def chunks(
    stages: int = 2, *, timed: bool = True, slower: float = 1.0, depth: int | None = None
) -> Chunks:
    """With costs learned if ``timed``; decoding was seen to be ``slower`` than they say."""
    cost = CostModel(stages, depth)
    for tokens in (1, 8, 64, 512) * 10 if timed else ():
        seconds = [STEP_S + TOKEN_S * tokens] * stages
        cost.observe(Work(tokens, 0, prefill=False), seconds)
        cost.observe(Work(tokens, 0, prefill=True), seconds)
    cohorts = Cohorts(cost)
    pace_s = slower * cost.token_s(ROWS, 1, 0.0)
    for step in range(2 * PACE_STEPS if slower != 1.0 else 0):
        cohorts.landed(DecodeStep(ROWS, ROWS, 1, 0.0), pace_s * step)
    return Chunks(cost, cohorts, LIMIT_S)


def draft(rows: int) -> Draft:
    segments = [SegmentHeader(slot, 1, 10, 1, True, ()) for slot in range(rows)]
    return Draft(segments=segments, ids=[1] * rows)


def most_tokens(seconds: float, rows: int) -> int:
    return int((seconds - STEP_S) / TOKEN_S + 1e-6) - rows


@pytest.mark.parametrize(
    ("rows", "prompts", "stage_s"),
    [
        pytest.param(0, 1, LIMIT_S / 2, id="nobody waits"),
        pytest.param(ROWS, 1, 0.028, id="as long again as the rows alone"),
        pytest.param(ROWS, 99, LIMIT_S / 2, id="many prompts: up to the limit"),
    ],
)
def test_where_stages_compute_in_turn_all_of_them_keep_the_limit_together(
    rows: int, prompts: int, stage_s: float
) -> None:
    sizes = chunks(2, depth=1)
    sizes.begin(rows, 0.0, prompts)
    assert sizes.may_start(draft(0), steps_in_flight=0)
    found = sizes.tokens(draft(rows), 0, 10**6, room=2048, queued=10**6)
    assert found == most_tokens(stage_s, rows)


@pytest.mark.parametrize(
    ("stages", "rows", "prompts", "slower", "stage_s"),
    [
        pytest.param(2, 0, 1, 1.0, LIMIT_S, id="nobody waits"),
        pytest.param(2, ROWS, 1, 1.0, 0.028, id="as long again as the rows alone"),
        pytest.param(2, ROWS, 1, 1.5, 0.042, id="as the rows alone were seen to take"),
        pytest.param(2, ROWS, 3, 1.0, 0.056, id="as long again for each of three prompts"),
        pytest.param(2, ROWS, 20, 1.0, LIMIT_S / 3, id="many prompts: up to the limit"),
        pytest.param(1, ROWS, 1, 1.0, 0.028, id="one stage"),
        pytest.param(1, ROWS, 99, 1.0, LIMIT_S, id="one stage, many prompts"),
        pytest.param(4, ROWS, 1, 1.0, 0.028, id="four stages"),
        pytest.param(2, 1, 1, 1.0, 0.021, id="one row"),
    ],
)
def test_a_chunk_takes_its_share_of_the_rows_time(
    stages: int, rows: int, prompts: int, slower: float, stage_s: float
) -> None:
    sizes = chunks(stages, slower=slower)
    sizes.begin(rows, 0.0, prompts)
    found = sizes.tokens(draft(rows), 0, 10**6, room=2048, queued=10**6)
    assert found == pytest.approx(most_tokens(stage_s, rows), abs=1)


def test_a_chunk_is_not_cut_below_the_least_whatever_the_rows_take() -> None:
    sizes = chunks()
    sizes.begin(8, 0.0, 1)
    beside = draft(400)  # more than decode: no time is left
    assert sizes.tokens(beside, 0, 500, room=2048, queued=500) == LEAST_CHUNK


@pytest.mark.parametrize(
    ("rows_in_step", "stages", "in_flight", "decoding", "timed", "expected"),
    [
        pytest.param(0, 2, 2, ROWS, True, False, id="every stage has a step"),
        pytest.param(0, 2, 1, ROWS, True, True, id="a stage has none"),
        pytest.param(4, 2, 2, ROWS, True, True, id="beside rows"),
        pytest.param(0, 2, 2, 0, True, True, id="nobody waits"),
        pytest.param(0, 2, 2, ROWS, False, True, id="nothing is known"),
    ],
)
def test_chunks_alone_wait_while_every_stage_has_a_step(
    rows_in_step: int,
    stages: int,
    in_flight: int,
    decoding: int,
    timed: bool,
    expected: bool,
) -> None:
    sizes = chunks(stages, timed=timed)
    sizes.begin(decoding, 0.0, 1)
    assert sizes.may_start(draft(rows_in_step), in_flight) is expected
