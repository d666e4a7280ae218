"""How many rows a step may have after memory ran out."""

from __future__ import annotations

from lamella_worker.scheduling.limits import FIRST_PATIENCE, StepBudget


def went_well(budget: StepBudget, steps: int) -> int:
    for _ in range(steps):
        budget.went_well()
    return budget.tokens


def test_steps_are_halved_and_grow_again_ever_more_patiently() -> None:
    budget = StepBudget(100)
    assert went_well(budget, 10) == 100
    budget.exhausted(100)
    assert budget.tokens == 50
    budget.exhausted(90)  # was in flight already
    assert budget.tokens == 45
    patience = 4 * FIRST_PATIENCE
    assert went_well(budget, patience - 1) == 45
    assert went_well(budget, 1) == 90
    budget.exhausted(90)
    assert went_well(budget, patience) == 45
    assert went_well(budget, patience) == 90
    assert went_well(budget, 2 * patience) == 100


def test_a_step_has_a_row_at_least() -> None:
    budget = StepBudget(4)
    for _ in range(5):
        budget.exhausted(budget.tokens)
    assert budget.tokens == 1
