"""The learned times, and what is decided by them: chunks, and when to come back."""

from __future__ import annotations

import numpy as np
import pytest

from lamella_worker.scheduling.cost import (
    CostModel,
    DrainRate,
    Work,
)


def seconds(work: Work, per_stage: list[tuple[float, float, float]]) -> list[float]:
    return [a + b * work.tokens + c * work.pairs for a, b, c in per_stage]


def taught(
    per_stage: list[tuple[float, float, float]], works: list[Work], noise: float = 0.0
) -> CostModel:
    model = CostModel(len(per_stage))
    random = np.random.default_rng(0)
    for work in works:
        factor = 1.0 + noise * random.standard_normal()
        model.observe(work, [s * factor for s in seconds(work, per_stage)])
    return model


def decode_works(*sizes: int, context: int = 100, times: int = 10) -> list[Work]:
    return [Work(size, size * (context + i), prefill=False) for i in range(times) for size in sizes]


def prefill_works(*sizes: int, times: int = 10) -> list[Work]:
    works = [Work(n, n * 50 * i + n * (n + 1) // 2, True) for i in range(times) for n in sizes]
    return works


LINEAR = [(0.010, 0.0005, 2e-7), (0.012, 0.0002, 1e-7)]


@pytest.mark.parametrize("noise", [0.0, 0.03], ids=["exact", "noisy"])
def test_it_learns_what_steps_cost(noise: float) -> None:
    model = taught(LINEAR, decode_works(1, 4, 16, times=30), noise)
    for size in (2, 8, 12, 32):
        work = Work(size, size * 110, prefill=False)
        assert model.stage_s(work) == pytest.approx(seconds(work, LINEAR), rel=0.01 + 3 * noise)
    assert model.ring_s(work) == pytest.approx(sum(seconds(work, LINEAR)), rel=0.01 + 3 * noise)


def test_coefficients_are_never_negative_whatever_is_observed() -> None:
    random = np.random.default_rng(1)
    model = CostModel(3)
    for _ in range(200):
        tokens = int(random.integers(1, 64))
        work = Work(tokens, tokens * int(random.integers(1, 500)), prefill=False)
        model.observe(work, random.exponential(0.01, 3).tolist())
        for size in (1, 10, 1000):
            assert (model.stage_s(Work(size, 0, False)) >= 0.0).all()


def test_first_steps_and_outliers_are_no_news() -> None:
    works = decode_works(1, 4, 16, times=20)
    model = CostModel(2)
    for i, work in enumerate(works):
        slow = 50.0 if i in (0, 1, 40) else 1.0  # warming up, and a swap-in
        model.observe(work, [slow * s for s in seconds(work, LINEAR)])
    work = Work(8, 8 * 110, prefill=False)
    assert model.stage_s(work) == pytest.approx(seconds(work, LINEAR), rel=0.15)


def test_it_follows_a_change() -> None:
    model = taught(LINEAR, decode_works(1, 4, 16, times=30))
    twice = [(2 * a, 2 * b, 2 * c) for a, b, c in LINEAR]
    for work in decode_works(1, 4, 16, times=200):
        model.observe(work, seconds(work, twice))
    work = Work(8, 8 * 110, prefill=False)
    assert model.stage_s(work) == pytest.approx(seconds(work, twice), rel=0.1)


@pytest.mark.parametrize(
    ("cohorts", "expected_s"),
    [
        pytest.param(1, 0.010 + 16 * 0.001 + 0.020 + 16 * 0.001, id="merged: sum of the stages"),
        pytest.param(2, 2 * (0.020 + 8 * 0.001), id="split: the slowest stage serves both"),
    ],
)
def test_time_per_token_of_a_number_of_cohorts(cohorts: int, expected_s: float) -> None:
    per_stage = [(0.010, 0.001, 0.0), (0.020, 0.001, 0.0)]
    model = taught(per_stage, decode_works(1, 8, 16))
    assert model.token_s(16, cohorts, 100.0) == pytest.approx(expected_s, rel=0.01)


def test_rows_and_chunks_keep_the_time_limit() -> None:
    per_stage = [(0.010, 0.001, 1e-6), (0.020, 0.0005, 1e-6)]
    model = taught(per_stage, [*decode_works(1, 8, 64), *prefill_works(64, 256, 1024)])
    beside = Work(4, 4 * 100, prefill=False)
    for start in (0, 100, 5000):
        chunk = model.chunk_tokens(beside, start, 0.25)
        assert chunk > 0
        for tokens, fits in ((chunk, True), (chunk + 2, False)):
            pairs = beside.pairs + tokens * start + tokens * (tokens + 1) // 2
            slowest = max(seconds(Work(4 + tokens, pairs, True), per_stage))
            assert (slowest <= 0.2505) == fits, (start, tokens, slowest)
    assert model.chunk_tokens(beside, 300_000_000, 0.25) == 0
    rows = model.decode_rows(100.0, 0.25)
    assert max(seconds(Work(rows, rows * 100, False), per_stage)) <= 0.2505
    assert model.decode_rows(1e12, 0.25) == 1


def test_chunks_grow_at_most_twofold_over_what_was_timed() -> None:
    model = CostModel(1)
    nothing = Work(0, 0, prefill=False)
    sizes = []
    for _ in range(4):
        sizes.append(model.chunk_tokens(nothing, 0, 0.25))
        model.observe(Work(sizes[-1], sizes[-1] ** 2 // 2, True), [sizes[-1] * 1e-6])
    assert sizes == [256, 512, 1024, 2048]


def test_prompts_are_cut_to_fill_a_pipeline() -> None:
    """The size chosen is within 3 % of the best of all sizes, by the formula."""
    per_stage = [(0.006, 0.000075, 0.0)] * 4
    model = taught(per_stage, [*decode_works(1, 2), *prefill_works(64, 128, 512)])
    for queued in (512, 2048, 8192):
        through = {c: (-(-queued // c) + 3) * (0.007 + 0.000075 * c) for c in range(64, queued)}
        chosen = model.fill_tokens(queued)
        assert through[chosen] <= 1.03 * min(through.values()), (queued, chosen)
    assert taught(per_stage[:1], prefill_works(64, 128)).fill_tokens(512) >= 512
    assert CostModel(4).fill_tokens(512) >= 512


def test_the_queue_drains_at_the_measured_rate() -> None:
    rate = DrainRate()
    assert rate.retry_after_s(100) == 1.0
    for _ in range(20):
        rate.observe(50, 0.5)
    assert rate.retry_after_s(500) == pytest.approx(5.0)
    assert rate.retry_after_s(10) == 1.0
    assert rate.retry_after_s(10**6) == 60.0
    for _ in range(200):
        rate.observe(0, 0.5)  # busy with answers only
    assert rate.retry_after_s(500) == 60.0
