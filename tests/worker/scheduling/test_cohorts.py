"""How many cohorts: what was seen to be fastest, tried again now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import pytest

from lamella_worker.scheduling.cohorts import PACE_STEPS, TRY_AGAIN, Cohorts, DecodeStep
from lamella_worker.scheduling.cost import CostModel, Work

Law = tuple[float, float, float]  # seconds per step, per token, per attention pair


@dataclass
class Line:
    """A pipeline in steady decoding; with more than one cohort stages are ``contended`` times as
    slow, which their traces say too."""

    laws: list[Law]
    contended: float = 1.0
    context: int = 100
    now_s: float = 0.0
    chosen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = CostModel(len(self.laws))
        self.cohorts = Cohorts(self.model)

    def decode(self, rows: int, steps: int) -> list[int]:
        """The choices before each of so many steps."""
        chosen = []
        while len(chosen) < steps:
            count = self.cohorts.count(rows, float(self.context))
            size = -(-rows // count)
            slower = self.contended if count > 1 else 1.0
            work = Work(size, size * self.context, prefill=False)
            times = [slower * (a + b * work.tokens + c * work.pairs) for a, b, c in self.laws]
            period_s = max(sum(times), count * max(times))
            for _ in range(count):  # all of them go round once
                self.now_s += period_s / count
                self.model.observe(work, times)
                step = DecodeStep(size, rows, count, float(self.context))
                self.cohorts.landed(step, self.now_s)
                chosen.append(count)
        return chosen


@pytest.mark.parametrize(
    ("laws", "rows", "contended", "expected"),
    [
        pytest.param([(0.02, 1e-5, 0.0)] * 2, 16, 1.0, 1, id="memory bound: merged"),
        pytest.param([(0.02, 2e-3, 0.0)] * 2, 16, 1.0, 2, id="compute bound: split"),
        pytest.param([(0.001, 0.0, 1e-6)] * 2, 2, 1.0, 2, id="attention bound: even two rows"),
        pytest.param([(0.01, 2e-3, 0.0)] * 4, 64, 1.0, 4, id="four stages"),
        pytest.param([(0.02, 1e-2, 0.0), (0.02, 1e-5, 0.0)], 16, 1.0, 1, id="one does it all"),
        pytest.param([(0.02, 2e-3, 0.0)] * 2, 1, 1.0, 1, id="one row"),
        pytest.param([(0.02, 2e-3, 0.0)] * 2, 16, 1.9, 1, id="stages that share a processor"),
        pytest.param([(0.02, 2e-3, 0.0)] * 2, 16, 1.2, 2, id="stages that share little"),
    ],
)
def test_it_settles_on_what_is_fastest(
    laws: list[Law], rows: int, contended: float, expected: int
) -> None:
    line = Line(laws, contended, context=2000)
    chosen = line.decode(rows, 5000)
    settled = chosen[1000:]
    assert settled.count(expected) >= 0.97 * len(settled)


def test_the_other_way_is_tried_a_few_times_in_thousands_of_steps() -> None:
    line = Line([(0.02, 1e-5, 0.0)] * 2)
    chosen = line.decode(16, 3 * TRY_AGAIN[1])
    tries = [len(list(run)) for count, run in groupby(chosen) if count == 2]
    assert chosen[:PACE_STEPS] == [1] * PACE_STEPS
    assert all(PACE_STEPS <= steps <= PACE_STEPS + 6 for steps in tries)
    assert sum(tries) <= 0.02 * len(chosen)
    later = chosen[TRY_AGAIN[1] :]
    assert later.count(2) <= 0.01 * len(later)


def test_what_was_measured_while_cold_is_measured_again_soon() -> None:
    line = Line([(0.05, 2e-3, 0.0)] * 2)
    line.decode(16, PACE_STEPS + 2)
    line.laws, line.contended = [(0.02, 1e-5, 0.0)] * 2, 1.5  # warm: merging is better by far
    chosen = line.decode(16, 1000)
    assert chosen[-400:].count(1) >= 360


def test_steps_with_prompts_between_say_nothing_of_a_pace() -> None:
    """Always interrupted before a cohort went round: the model alone decides, nothing is tried."""
    laws = [(0.02, 2e-3, 0.0)] * 2
    model = CostModel(2)
    cohorts = Cohorts(model)
    for size in (1, 8, 16) * 20:
        work = Work(size, size * 100, prefill=False)
        model.observe(work, [a + b * size for a, b, _ in laws])
    chosen = set()
    for step in range(200):
        count = cohorts.count(16, 100.0)
        chosen.add(count)
        cohorts.landed(DecodeStep(16 // count, 16, count, 100.0), 0.03 * step)
        cohorts.interrupted()
    assert chosen == {2}


def test_sizes_are_measured_apart() -> None:
    line = Line([(0.02, 4e-4, 0.0)] * 2, contended=1.15)  # four rows cost like one, 64 do not
    assert line.decode(4, 400)[-100:].count(1) >= 90
    assert line.decode(64, 400)[-100:].count(2) >= 90
    assert line.decode(4, 60)[-20:] == [1] * 20
