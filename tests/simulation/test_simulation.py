"""Whatever befalls a world of pipelines and gateways, each request ends, and with the right tokens.

Hypothesis draws the schedules and shortens what fails; random ones, many more, are run by
``python -m tests.simulation.run`` and by ``pytest -m simulation``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from simulation import checks, mutants
from simulation import run as driver
from simulation.schedule import KINDS, Schedule, random_schedule
from simulation.strategies import schedules

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
QUICK = ("twice", "forgets_free", "skips_first", "never_frees", "any_position")
QUIET = Schedule(
    stages=(3, 2),
    gateways=2,
    steps=((0, "submit", 0, 3, 0), (1, "burst", 1, 70, 3), (30, "burst", 0, 500, 1)),
)


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """Thousands of warnings are written for faults that are made on purpose."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(schedules)
def test_every_request_ends_with_the_right_tokens(schedule: Schedule) -> None:
    checks.run(schedule)


@pytest.mark.parametrize("seed", range(40))
def test_random_schedule(seed: int) -> None:
    checks.run(random_schedule(seed))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_what_failed_once(case: Path) -> None:
    checks.run(Schedule.from_json(case.read_text()))


def test_without_faults_nothing_fails_and_no_epoch_passes() -> None:
    outcome = checks.run(QUIET)
    assert outcome.counts["ended: error"] == 0
    assert outcome.counts["epochs"] == 2
    assert outcome.longest_silence_s < 1.0


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_of_two_seconds_is_no_lost_frame(stage: int) -> None:
    """Nobody tells of a frame that is sent when the step is over. Stage 0 calls another stage's
    step overdue, its own never."""
    burst = "burst", 0, 70, 3
    steps = (0, *burst), (150, "slow_step", stage, 4, 0), (1, *burst)
    outcome = checks.run(Schedule(stages=(3,), sequences=5, blocks=60, steps=steps))
    assert outcome.counts["slow_step"] == 1
    assert outcome.counts["epochs"] == (1 if stage == 0 else 2)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_seed_says_it_all(seed: int) -> None:
    first, second = checks.run(random_schedule(seed)), checks.run(random_schedule(seed))
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_step_does_something(kind: str) -> None:
    many = tuple((0, "submit", 0, 6 * n, 0) for n in range(4))
    done = Schedule(stages=(3,), gateways=2, steps=(*many, (5, kind, 1, 1, 1)))
    assert checks.run(done).counts[kind]


def test_a_schedule_is_read_back() -> None:
    schedule = random_schedule(5)
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.simulation
@pytest.mark.timeout(1800)
def test_thousands_of_schedules(request: pytest.FixtureRequest) -> None:
    total, failures = driver.many(0, 10_000, 2)
    driver.say(driver.table(total, 10_000, 1.0))
    assert not failures, failures[:10]


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.simulation)
        for name in mutants.MUTANTS
    ],
)
def test_a_deliberate_fault_is_found(name: str) -> None:
    seed, _ = mutants.find(mutants.MUTANTS[name])
    assert seed >= 0, "the simulation cannot fail"
