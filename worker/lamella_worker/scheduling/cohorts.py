"""How many cohorts the rows that decode are dealt into: what is seen to be fastest.

Knows no requests and no clock, only which steps came back and when. More cohorts keep more stages
busy, fewer read the weights less often. Step times alone do not tell which is better: stages that
compute at the same time slow each other down where they share memory or a processor. So the *pace*
is measured, the seconds between two tokens of each sequence, for one cohort and for as many as
there are stages, and each of the two is tried again now and then. For numbers between, the cost
model is corrected by what the two measured ones differ from it. In the flow: `scheduler` tells
each step that came back, `compose` asks before each step with rows that decode.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from lamella_worker.scheduling.cost import CostModel

PACE_STEPS = 4
"""Timed steps that make one figure of a pace."""
TRY_AGAIN = (128, 2048)
"""Decode steps after which a pace counts as unknown again: at first, and at most (each time four
times as many). The first one was measured while caches were cold."""
_REMEMBERED = 5  # figures of a pace; their median counts
_GAIN = 0.95  # another number of cohorts must cut the time per token to this before it is taken


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step of decode rows alone that came back.

    ``rows`` it had itself, ``decoding`` rows decoded in all, dealt into ``cohorts``;
    ``context`` is the mean length of its rows.
    """

    rows: int
    decoding: int
    cohorts: int
    context: float


@dataclass(slots=True)
class _Pace:
    """What was measured for one number of cohorts at one size.

    Figures are (seconds per token of each sequence, rows, context).
    """

    figures: deque[tuple[float, float, float]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED)
    )
    known_at: int = 0  # decode steps when the last figure was made
    valid: int = TRY_AGAIN[0]  # decode steps that it holds for
    seconds: float = 0.0  # of the figure in the making, as are the next three
    rows: int = 0
    steps: int = 0
    decoding: int = 0

    def add(self, step: DecodeStep, seconds: float, now: int) -> bool:
        """Take in a step that came ``seconds`` after the one before it; whether a figure came of
        it."""
        self.seconds += seconds
        self.rows += step.rows
        self.steps += 1
        self.decoding += step.decoding
        if self.steps < PACE_STEPS:
            return False
        decoding = self.decoding / self.steps
        self.figures.append((self.seconds / self.rows * decoding, decoding, step.context))
        self.known_at = now
        self.seconds, self.rows, self.steps, self.decoding = 0.0, 0, 0, 0
        return True

    def is_known(self, now: int) -> bool:
        """Whether there is a figure that still holds; one that has run out is forgotten."""
        if self.figures and now - self.known_at > self.valid:
            self.figures.clear()
            self.valid = min(4 * self.valid, TRY_AGAIN[1])
        return bool(self.figures)

    def correction(self, model: CostModel, cohorts: int) -> float:
        """What was measured over what ``model`` says of the same, a ratio."""
        ratios = []
        for seconds, rows, context in self.figures:
            predicted_s = model.token_s(max(1, round(rows)), cohorts, context)
            ratios.append(seconds / predicted_s if predicted_s > 0.0 else 1.0)
        return median(ratios)


class Cohorts:
    """The number of cohorts in force, and the paces that it was chosen by."""

    def __init__(self, model: CostModel) -> None:
        self._model = model
        self._current = 1
        self._steps = 0
        self._figures = 0  # made so far, of all paces
        self._decided = (0, -1, 0)  # rows, model's version and figures of the last decision
        self._paces: dict[tuple[int, int], _Pace] = {}  # (size class, cohorts)
        self._last: tuple[int, float] = (0, 0.0)  # cohorts and time of the last step
        self._streak = 0  # steps with that many cohorts and nothing between

    def landed(self, step: DecodeStep, now_s: float) -> None:
        """A step of decode rows alone came back."""
        cohorts, last_s = self._last
        self._streak = self._streak + 1 if cohorts == step.cohorts else 0
        self._last = step.cohorts, now_s
        self._steps += 1
        # Each cohort must have been round once since something else ran.
        if self._streak >= step.cohorts:
            pace = self._pace(step.decoding, step.cohorts)
            self._figures += pace.add(step, now_s - last_s, self._steps)

    def interrupted(self) -> None:
        """Another step came back, or none will: what lies around it says nothing of a pace."""
        self._last = (0, 0.0)

    def count(self, rows: int, context: float) -> int:
        """Cohorts for ``rows`` live decode rows of ``context`` mean length; in [1, depth]."""
        most = min(self._model.depth, rows)
        if most <= 1:
            return 1
        known = [k for k in (1, most) if self._is_known(rows, k)]
        seen = (rows, self._model.version, self._figures)
        if self._decided != seen:
            self._current = self._fastest(rows, most, context, known)
            self._decided = seen
        if self._is_known(rows, self._current) and len(known) < 2:
            return most if known == [1] else 1
        return self._current

    def pace_s(self, rows: int, context: float) -> float:
        """Seconds between two tokens of each of ``rows`` sequences when nothing else is computed.

        As measured, else by the model; 0.0 while no decode step was timed.
        """
        cohorts = max(1, min(self._current, self._model.depth, rows))
        predicted_s = self._model.token_s(rows, cohorts, context)
        pace = self._pace(rows, cohorts)
        return predicted_s * pace.correction(self._model, cohorts) if pace.figures else predicted_s

    def _fastest(self, rows: int, most: int, context: float, known: list[int]) -> int:
        """By what is known, and by the model alone as long as nothing is."""
        current = min(self._current, most)
        ends = [self._pace(rows, k).correction(self._model, k) for k in known] or [1.0]
        cost = {}
        for k in range(1, most + 1):
            correction = ends[0] + (ends[-1] - ends[0]) * (k - 1) / (most - 1)
            if self._is_known(rows, k):
                correction = self._pace(rows, k).correction(self._model, k)
            cost[k] = correction * self._model.token_s(rows, k, context)
        best = min(cost, key=lambda k: (cost[k], k))
        return best if cost[best] < _GAIN * cost[current] else current

    def _pace(self, rows: int, cohorts: int) -> _Pace:
        return self._paces.setdefault(((rows - 1).bit_length(), cohorts), _Pace())

    def _is_known(self, rows: int, cohorts: int) -> bool:
        return self._pace(rows, cohorts).is_known(self._steps)
