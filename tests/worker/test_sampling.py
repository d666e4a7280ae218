"""Sampling: replay and batch independence by construction, distributions by chi-square."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lamella_contract.wire import Adopt, Free, Sampling
from lamella_worker import sampling
from lamella_worker.sampling import FAILED_ROW, Sampler
from lamella_worker.sampling_draw import Filters, candidates, draw, largest, locate, nucleus
from lamella_worker.sampling_random import uniforms
from lamella_worker.sampling_state import SeenIds

GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=0.8, seed=7)

rows_of_logits = hnp.arrays(
    np.float32,
    st.integers(2, 40),
    elements=st.floats(-30, 30, width=32),
)
filters = st.builds(
    Filters,
    temperature=st.floats(0.05, 4),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
uniform = st.floats(0, 1, exclude_max=True).map(lambda u: math.floor(u * 2**52) / 2**52)


def adopt(slot: int, how: Sampling, prompt: tuple[int, ...] = (1, 2), *output: int) -> Adopt:
    return Adopt(slot, 1, len(prompt), prompt + output, how)


def run(sampler: Sampler, logits: torch.Tensor, slots: list[int], at: list[int]) -> list[int]:
    ids = sampler.sample_rows(logits, np.array(slots), np.array(at))
    assert ids.dtype == np.int64
    return [int(i) for i in ids]


# -- one row ---------------------------------------------------------------------------------


@given(rows_of_logits, filters, uniform)
def test_a_drawn_id_is_a_candidate(row: np.ndarray, chosen: Filters, u: float) -> None:
    token = draw(row, chosen, u)
    ids, weights = candidates(row, chosen)
    assert token in (range(len(row)) if ids is None else ids)
    assert len(weights) >= 1


@given(rows_of_logits, st.integers(1, 50))
def test_top_k_keeps_exactly_the_largest(row: np.ndarray, top_k: int) -> None:
    ids, _ = candidates(row, Filters(top_k=top_k))
    kept = np.arange(len(row)) if ids is None else ids
    assert len(kept) == min(top_k, len(row))
    outside = np.setdiff1d(np.arange(len(row)), kept)
    assert outside.size == 0 or row[kept].min() >= row[outside].max()


@given(rows_of_logits, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_holds_the_mass(row: np.ndarray, top_p: float) -> None:
    weights = np.exp(row - row.max())
    kept = nucleus(weights, top_p)
    total = float(weights.sum(dtype=np.float64))
    mass = float(weights[kept].sum(dtype=np.float64)) / total
    assert mass >= top_p - 1e-9
    smallest = float(weights[kept].min()) / total
    assert mass - smallest < top_p + 1e-9
    outside = np.setdiff1d(np.arange(len(row)), kept)
    assert outside.size == 0 or weights[kept].min() >= weights[outside].max()


def test_the_short_way_to_a_nucleus_equals_a_full_sort() -> None:
    generator = np.random.default_rng(3)
    for spread in (0.0, 0.1, 3.0, 10.0, 40.0):
        row = np.float32(spread) * generator.standard_normal(20_000).astype(np.float32)
        weights = np.exp(row - row.max())
        order = np.argsort(-weights, kind="stable")
        mass = np.cumsum(weights[order], dtype=np.float64)
        for top_p in (1e-9, 0.1, 0.5, 0.9, 0.999):
            wanted = top_p * float(weights.sum(dtype=np.float64))
            count = int(np.searchsorted(mass, wanted)) + 1
            assert np.array_equal(nucleus(weights, top_p), np.sort(order[:count]))


@given(rows_of_logits, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_near_the_most_likely(row: np.ndarray, min_p: float) -> None:
    ids, weights = candidates(row, Filters(min_p=min_p))
    assert ids is not None
    assert (weights >= np.float32(min_p) * (1 - 1e-6)).all()
    assert int(row.argmax()) in ids


@given(
    hnp.arrays(np.float32, st.integers(64, 3000), elements=st.floats(-4, 4, width=16)),
    st.integers(1, 60),
)
def test_the_short_way_to_the_largest_equals_a_full_sort(row: np.ndarray, count: int) -> None:
    order = np.argsort(-row, kind="stable")
    assert np.array_equal(largest(row, count), np.sort(order[:count]))


def test_equals_at_the_border_of_top_k_go_to_the_lowest_ids() -> None:
    assert largest(np.array([1, 3, 3, 2, 3], np.float32), 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        (Filters(temperature=0.0), "temperature 0"),
        (Filters(temperature=-1.0), "temperature below 0"),
        (Filters(top_k=1), "top_k 1"),
        (Filters(top_p=0.0), "top_p 0"),
        (Filters(temperature=1e-30), "a vanishing temperature"),
        (Filters(min_p=1.0), "min_p 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_leaves_one_candidate_is_argmax(chosen: Filters, why: str) -> None:
    row = np.array([0.1, 5.0, 2.0, -np.inf], np.float32)
    assert {draw(row, chosen, u) for u in (0.0, 0.5, 1 - 2**-52)} == {1}, why


@given(
    hnp.arrays(np.float32, st.integers(1, 1200), elements=st.sampled_from([0.0, 1e-30, 0.3, 1.0])),
    st.integers(0, 1199),
    uniform,
)
def test_a_number_falls_into_its_share(weights: np.ndarray, sure: int, u: float) -> None:
    weights[sure % len(weights)] = 1.0
    index = locate(weights, u)
    assert weights[index] > 0
    running = np.cumsum(weights, dtype=np.float64)
    before = running[index] - float(weights[index])
    tolerance = 1e-5 * running[-1]  # blocks are summed in float32
    assert before - tolerance <= u * running[-1] <= running[index] + tolerance


def test_minus_infinity_is_never_drawn() -> None:
    row = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32)
    drawn = {draw(row, Filters(), u) for u in (0.0, 0.499, 0.5, 1 - 2**-52)}
    assert drawn == {1, 3}


def chi_square(counts: np.ndarray, wanted: np.ndarray) -> float:
    expected = wanted * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (Filters(), [0, 1, 2, 3, 4, 5]),
        (Filters(temperature=2.0), [0, 1, 2, 3, 4, 5]),
        (Filters(top_k=3), [2, 4, 5]),
        (Filters(top_p=0.8), [2, 5]),
        (Filters(min_p=0.2), [2, 4, 5]),
    ],
    ids=["plain", "hot", "top_k", "top_p", "min_p"],
)
def test_frequencies_follow_the_distribution(chosen: Filters, kept: list[int]) -> None:
    row = np.log(np.array([0.05, 0.03, 0.4, 0.02, 0.1, 0.4], np.float32))
    draws = 20_000
    numbers = uniforms(np.full(draws, 11, np.uint64), np.arange(draws))
    counts = np.bincount([draw(row, chosen, float(u)) for u in numbers], minlength=6)
    assert counts[[i for i in range(6) if i not in kept]].sum() == 0
    wanted = np.exp(row[kept] / chosen.temperature)
    # 99.9 % quantile of chi-square with 5 degrees of freedom; the seed is fixed.
    assert chi_square(counts[kept], wanted / wanted.sum()) < 20.5


# -- random numbers --------------------------------------------------------------------------


def test_a_number_is_a_function_of_seed_and_position_alone() -> None:
    seeds = np.array([0, 1, 2**64 - 1, 5], np.uint64)
    together = uniforms(seeds, np.array([0, 9, 2**40, 3]))
    alone = [
        float(uniforms(seeds[i : i + 1], np.array([p]))[0]) for i, p in enumerate([0, 9, 2**40, 3])
    ]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


def test_numbers_are_uniform_along_positions_and_along_seeds() -> None:
    count, bins = 50_000, 20
    zeros = np.zeros(count, np.int64)
    for seeds, positions in (
        (zeros.astype(np.uint64), np.arange(count)),
        (np.arange(count).astype(np.uint64), zeros),
        (np.arange(count).astype(np.uint64), np.arange(count)[::-1].copy()),
    ):
        numbers = uniforms(seeds, positions)
        counts = np.histogram(numbers, bins=bins, range=(0, 1))[0]
        assert chi_square(counts, np.full(bins, 1 / bins)) < 43.8  # 99.9 %, 19 degrees
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


# -- the last stage's sampler ----------------------------------------------------------------

HOWS = [
    GREEDY,
    WARM,
    replace(WARM, top_k=5),
    replace(WARM, top_p=0.7, seed=2**64 - 1),
    replace(WARM, min_p=0.1, presence_penalty=1.0),
    replace(GREEDY, frequency_penalty=0.5, repetition_penalty=1.2),
]


@settings(max_examples=30)
@given(st.permutations(range(6)), st.integers(0, 2**32))
def test_a_row_is_the_same_in_every_batch(order: list[int], seed: int) -> None:
    logits = torch.from_numpy(
        np.random.default_rng(seed).standard_normal((6, 50)).astype(np.float32)
    )

    def fresh() -> Sampler:
        sampler = Sampler()
        for slot, how in enumerate(HOWS):
            sampler.adopt(adopt(slot, how, (1, 2), 3))
        return sampler

    alone = [run(fresh(), logits[i : i + 1], [i], [3])[0] for i in range(6)]
    assert run(fresh(), logits, list(range(6)), [3] * 6) == alone
    mixed = run(fresh(), logits[order], list(order), [3] * 6)
    assert mixed == [alone[i] for i in order]


@pytest.mark.parametrize("how", HOWS, ids=range(len(HOWS)))
def test_a_stage_that_lost_its_state_continues_the_same(how: Sampling) -> None:
    steps = torch.from_numpy(np.random.default_rng(5).standard_normal((12, 30)).astype(np.float32))
    first = Sampler()
    first.adopt(adopt(4, how))
    ids = [run(first, steps[i : i + 1], [4], [2 + i])[0] for i in range(12)]
    second = Sampler()
    second.adopt(adopt(9, how, (1, 2), *ids[:6]))
    assert [run(second, steps[i : i + 1], [9], [2 + i])[0] for i in range(6, 12)] == ids[6:]


@pytest.mark.parametrize("how", HOWS, ids=range(len(HOWS)))
def test_a_step_computed_twice_draws_the_same(how: Sampling) -> None:
    steps = torch.from_numpy(np.random.default_rng(6).standard_normal((4, 30)).astype(np.float32))
    sampler = Sampler()
    sampler.adopt(adopt(0, how))
    ids = [run(sampler, steps[i : i + 1], [0], [2 + i])[0] for i in range(4)]
    assert [run(sampler, steps[i : i + 1], [0], [2 + i])[0] for i in (2, 3)] == ids[2:]


@pytest.mark.parametrize("how", [GREEDY, WARM], ids=["greedy", "drawn"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf], ids=["nan", "-inf", "inf"])
def test_a_bad_row_fails_alone(
    how: Sampling, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    sampler = Sampler()
    for slot in range(3):
        sampler.adopt(adopt(slot, how))
    good = run(sampler, logits, [0, 1, 2], [2, 2, 2])
    logits[1] = value
    with caplog.at_level(logging.ERROR, "lamella_worker.sampling"):
        assert run(sampler, logits, [0, 1, 2], [2, 2, 2]) == [good[0], FAILED_ROW, good[2]]
    assert [(r.slot, r.position) for r in caplog.records] == [(1, 2)]  # type: ignore[attr-defined]


def test_one_nan_among_many_logits_fails_a_penalised_row_too() -> None:
    logits = torch.zeros(1, 20)
    logits[0, 2] = math.nan
    sampler = Sampler()
    sampler.adopt(adopt(0, replace(WARM, presence_penalty=1.0)))
    assert run(sampler, logits, [0], [2]) == [FAILED_ROW]


def test_a_gap_in_positions_is_seen_where_history_matters() -> None:
    sampler = Sampler()
    sampler.adopt(adopt(0, replace(GREEDY, presence_penalty=1.0)))
    assert run(sampler, torch.zeros(1, 5), [0], [7]) == [FAILED_ROW]


def test_slots_come_and_go() -> None:
    sampler = Sampler()
    sampler.adopt(adopt(0, GREEDY))
    sampler.free(Free(0, 0))  # an older generation's free changes nothing
    assert len(sampler) == 1
    sampler.free(Free(0, 1))
    sampler.free(Free(0, 1))
    assert len(sampler) == 0
    assert run(sampler, torch.zeros(1, 5), [0], [0]) == [FAILED_ROW]
    sampler.adopt(adopt(0, GREEDY))
    sampler.reset()
    assert len(sampler) == 0
    assert run(sampler, torch.zeros(0, 5), [], []) == []


def test_half_precision_logits_are_taken() -> None:
    sampler = Sampler()
    sampler.adopt(adopt(0, GREEDY))
    assert run(sampler, torch.tensor([[0, 3, 1]], dtype=torch.bfloat16), [0], [2]) == [1]


# -- penalties -------------------------------------------------------------------------------


def penalised(seen: SeenIds, presence: float, frequency: float, repetition: float) -> list[float]:
    row = np.array([2.0, -2.0, 1.0, 1.0, 1.0], np.float32)
    seen.penalise(row, presence, frequency, repetition)
    return [round(float(x), 4) for x in row]


@pytest.mark.parametrize(
    ("prompt", "output", "penalties", "wanted"),
    [
        ([], [], (1, 1, 2), [2, -2, 1, 1, 1]),
        ([0], [2, 2, 3], (0.5, 0, 1), [2, -2, 0.5, 0.5, 1]),
        ([0], [2, 2, 3], (0, 0.25, 1), [2, -2, 0.5, 0.75, 1]),
        ([0, 1], [2], (0, 0, 2), [1, -4, 0.5, 1, 1]),
        ([0, 1], [0], (1, 1, 2), [-1, -4, 1, 1, 1]),
        ([99], [98], (1, 1, 2), [2, -2, 1, 1, 1]),
    ],
    ids=["nothing", "presence", "frequency", "repetition", "all", "unknown ids"],
)
def test_penalties(
    prompt: list[int], output: list[int], penalties: tuple[float, ...], wanted: list[float]
) -> None:
    assert penalised(SeenIds(prompt, output), *penalties) == wanted


@given(
    st.lists(st.integers(0, 4), max_size=6),
    st.lists(st.integers(0, 300), max_size=200),
    st.lists(st.integers(0, 4), max_size=6),
)
def test_ids_taken_back_leave_no_trace(
    prompt: list[int], output: list[int], more: list[int]
) -> None:
    seen = SeenIds(prompt, output)
    for token in more:
        seen.add(token)
    seen.rewind(len(prompt) + len(output))
    assert seen.length == len(prompt) + len(output)
    assert penalised(seen, 0.3, 0.7, 1.5) == penalised(SeenIds(prompt, output), 0.3, 0.7, 1.5)


# -- the seed's call -------------------------------------------------------------------------


def test_sample_follows_its_generator() -> None:
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    answers = [
        sampling.sample(logits, generator=torch.Generator().manual_seed(s)).tolist()
        for s in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("logits", "temp", "top_k", "wanted"),
    [
        ([[0.0, 2.0, 1.0]], 0.0, 35, [1]),
        ([[0.0, 2.0, 1.0]], -1.0, 0, [1]),
        ([[0.0, 2.0, 1.0]], 1.0, 1, [1]),
        ([0.0, 2.0, 1.0], 0.0, None, [1]),
        ([[0.0, 2.0], [3.0, 1.0]], 0.0, 99, [1, 0]),
        ([[-math.inf, 0.0]], 5.0, 1000, [1]),
    ],
    ids=["argmax", "below zero", "top_k 1", "one row", "rows", "clamped"],
)
def test_sample(logits: list[float], temp: float, top_k: int | None, wanted: list[int]) -> None:
    answer = sampling.sample(torch.tensor(logits), temp, top_k)
    assert answer.dtype == torch.int64
    assert answer.tolist() == wanted


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampling.sample(torch.tensor([[math.nan, 1.0]])), "NaN"),
        (lambda: sampling.sample(torch.tensor([[math.nan, 1.0]]), 0.0), "NaN"),
        (lambda: sampling.sample(torch.full((1, 3), -math.inf)), "only -inf"),
        (lambda: sampling.sample(torch.zeros(1, 2, 3)), "shape"),
        (lambda: sampling.sample(torch.zeros(1, 0)), "shape"),
        (lambda: sampling.sample(torch.zeros(1, 3, dtype=torch.int64)), "dtype"),
        (lambda: sampling.sample(torch.zeros(1, 3), math.nan), "temp"),
        (lambda: sampling.sample(torch.zeros(1, 3), 1.0, -1), "top_k"),
    ],
    ids=["nan", "nan greedy", "-inf", "3-D", "empty", "integers", "temp", "top_k"],
)
def test_sample_refuses(call: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
