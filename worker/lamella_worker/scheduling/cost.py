"""What a step costs each stage, learned from the steps that came back.

Knows no requests and no blocks: only tokens, attention pairs and seconds. Per stage and per kind
of step (decode only, or with prefill) the time is ``t = a + b * tokens + c * pairs``, where pairs
counts (query, key) pairs of attention: a chunk of x tokens after a prefix of L has
``L * x + x * (x + 1) / 2``. The coefficients are kept non-negative and fitted by least squares
that forgets. In the flow: `scheduler` feeds it each StepDone's trace and asks how
long a chunk may be and how long a step will take; `cohorts` weighs numbers of cohorts by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

_FORGET = 0.995  # weight of an observation fades by this with each later one of its kind
_WARM = 2  # first steps of a kind, which page in and set up: dropped once there are others
_SETTLED = 16  # observations before one that is far off is taken for an outlier
_REFIT_EVERY = 16
_STEP_S = 0.001  # what a step costs besides computing: a hop, and waking up
_LEAST_FILL = 64  # tokens below which prompts are not cut to fill the pipeline
_FIRST_CHUNK = 256  # tokens of prefill tried before any were timed
_UNIT = np.array([1.0, 64.0, 65536.0])  # brings the three features to like size
# Weakest pull on the constant: until sizes vary, all time counts as constant, so nothing is split.
_PULL = np.diag([1e-6, 1e-3, 1e-3])


@dataclass(frozen=True, slots=True)
class Work:
    """What a step asks of every stage: ``tokens`` rows, attention ``pairs``."""

    tokens: int
    pairs: int
    prefill: bool  # some segment feeds more than one token


class _Fit:
    """Coefficients ``[stages, 3]`` in seconds per unit of (1, tokens, pairs) of one kind."""

    def __init__(self, stages: int) -> None:
        self.seen = 0
        self.most_tokens = 0
        self.coefficients: NDArray[np.float64] = np.zeros((stages, 3))
        self._gram: NDArray[np.float64] = np.zeros((3, 3))
        self._moment: NDArray[np.float64] = np.zeros((stages, 3))

    def observe(self, work: Work, seconds: NDArray[np.float64]) -> bool:
        """Take a step in; whether the coefficients changed."""
        x = np.array([1.0, work.tokens, work.pairs]) / _UNIT
        if self.seen == _WARM:
            self._gram, self._moment = np.zeros_like(self._gram), np.zeros_like(self._moment)
        if self.seen >= _SETTLED:
            # A page fault storm or a swap-in is no news about the next step.
            seconds = np.minimum(seconds, 3.0 * self.predict(work) + 0.002)
        self._gram = self._gram * _FORGET + np.outer(x, x)
        self._moment = self._moment * _FORGET + np.outer(seconds, x)
        self.seen += 1
        self.most_tokens = max(self.most_tokens, work.tokens)
        if self.seen > _SETTLED and self.seen % _REFIT_EVERY:
            return False
        self._refit()
        return True

    def predict(self, work: Work) -> NDArray[np.float64]:
        """Seconds per stage, ``[stages]``."""
        result: NDArray[np.float64] = self.coefficients @ (1.0, work.tokens, work.pairs)
        return result

    def typical(self) -> Work:
        """The mean step of this kind."""
        _, tokens, pairs = (self._gram[0] / self._gram[0, 0] * _UNIT).tolist()
        return Work(int(tokens), int(pairs), prefill=True)

    def _refit(self) -> None:
        # A step from the last solution, pulled back to it: directions in which nothing varies
        # lately keep what they learned when something did.
        last = self.coefficients * _UNIT
        gram = self._gram + _PULL
        moment = self._moment + last @ _PULL
        found = np.linalg.solve(gram, moment.T).T
        for stage in np.nonzero((found < 0.0).any(axis=1))[0]:
            found[stage] = _without_negative(gram, moment[stage])
        self.coefficients = found / _UNIT


def _without_negative(
    gram: NDArray[np.float64], moment: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares with the features left out, one after another, that would turn negative."""
    found = np.zeros(3)
    kept = [0, 1, 2]
    while kept:
        some = np.linalg.solve(gram[np.ix_(kept, kept)], moment[kept])
        if (some >= 0.0).all():
            found[kept] = some
            break
        del kept[int(some.argmin())]
    return found


class CostModel:
    """Seconds that steps take on each of ``stages`` stages, and what follows from them.

    ``depth`` of the stages compute at the same time: all of them, or one where they do so in turn.
    """

    def __init__(self, stages: int, depth: int | None = None) -> None:
        self.stages = stages
        self.depth = stages if depth is None else depth
        self.version = 0
        self._fill: tuple[int, float] = (-1, 0.0)  # version, see `fill_tokens`
        self._decode = _Fit(stages)
        self._prefill = _Fit(stages)

    def observe(self, work: Work, seconds: Sequence[float]) -> None:
        """Learn from a step's compute times, one per stage."""
        fit = self._prefill if work.prefill else self._decode
        if fit.observe(work, np.asarray(seconds, dtype=np.float64)):
            self.version += 1

    def known(self, *, prefill: bool) -> bool:
        return (self._prefill if prefill else self._decode).seen > 0

    def stage_s(self, work: Work) -> NDArray[np.float64]:
        """Predicted seconds per stage, ``[stages]``; zeros when nothing is known."""
        return (self._prefill if work.prefill else self._decode).predict(work)

    def ring_s(self, work: Work) -> float:
        """Predicted compute seconds of a step through all stages; 0.0 when nothing is known."""
        return float(self.stage_s(work).sum())

    def token_s(self, rows: int, cohorts: int, context: float) -> float:
        """Predicted seconds between two tokens of each of ``rows`` sequences.

        A cohort of ``b = ceil(rows / cohorts)`` rows comes back after ``sum_i t_i(b)`` at best,
        and the slowest stage has all cohorts to serve: ``max(sum_i t_i, cohorts * max_i t_i)``.
        With one cohort that is rows / X_merged, with a cohort per stage rows / X_split.
        """
        size = -(-rows // cohorts)
        seconds = self._decode.predict(Work(size, int(size * context), prefill=False))
        return max(float(seconds.sum()), cohorts * float(seconds.max()))

    def decode_rows(self, context: float, limit_s: float) -> int:
        """Most decode rows in a step that no stage needs more than ``limit_s`` for; at least 1."""
        most = float(2**31)
        for a, b, c in self._decode.coefficients.tolist():
            per_row = b + c * context
            if per_row > 0.0:
                most = min(most, (limit_s - a) / per_row)
        return max(1, int(most))

    def fill_tokens(self, queued: int) -> int:
        """Prompt tokens per step that get ``queued`` ones through the pipeline soonest.

        With steps of c tokens that cost ``a + b * c`` on the slowest of N stages, all are through
        after ``(queued / c + N - 1) * (a + b * c)``: least at ``c = sqrt(a * queued / (b *
        (N - 1)))``. Smaller steps start the later stages sooner, bigger ones read weights less
        often. At least 64; as good as unlimited where one stage computes at a time, or when too
        little is known.
        """
        if self.depth == 1 or self._prefill.seen < _SETTLED // 2:
            return 2**31
        if self._fill[0] != self.version:
            self._fill = self.version, self._fill_ratio()
        steps = max(1, round(sqrt(queued / self._fill[1])))  # equal ones: no small rest
        return max(_LEAST_FILL, -(-queued // steps))

    def _fill_ratio(self) -> float:
        """``a / (b * (N - 1))`` of `fill_tokens`, about the typical prefill step."""
        typical = self._prefill.typical()
        seconds = self._prefill.predict(typical)
        slowest = int(seconds.argmax())
        # Steps of one size say nothing about a; a decode step of one row is nearly all a.
        fixed = float(self._prefill.coefficients[slowest, 0])
        if self._decode.seen:
            fixed = float(self._decode.predict(Work(1, 0, prefill=False))[slowest])
        slope = max(float(seconds[slowest]) - fixed, 1e-9) / max(typical.tokens, 1)
        return (fixed + _STEP_S) / (slope * (self.stages - 1))

    def chunk_tokens(self, beside: Work, start: int, limit_s: float) -> int:
        """Most prompt tokens from position ``start`` on that may join a step.

        No stage shall need more than ``limit_s`` for them and ``beside`` (what the step holds
        already); the size tried grows at most twofold over what was timed. 0 or less when there
        is no room.
        """
        most = float(max(_FIRST_CHUNK, 2 * self._prefill.most_tokens) - beside.tokens)
        for a, b, c in self._prefill.coefficients.tolist():
            room = limit_s - a - b * beside.tokens - c * beside.pairs
            if room <= 0.0:
                return 0
            linear, square = b + c * start, c / 2
            below = linear + sqrt(linear * linear + 4.0 * square * room)
            if below > 0.0:  # the root of square x^2 + linear x = room, stable for small square
                most = min(most, 2.0 * room / below)
        return int(most)


class DrainRate:
    """Tokens per second at which the queue drains, over about the last ten busy seconds."""

    _MEMORY_S = 10.0

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def observe(self, tokens: int, busy_s: float) -> None:
        """``tokens`` of prompt were computed in the last ``busy_s`` seconds of work."""
        fade = exp(-busy_s / self._MEMORY_S)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + busy_s

    def retry_after_s(self, tokens: int) -> float:
        """Seconds until ``tokens`` have drained, within [1, 60]; 1 when nothing was measured."""
        if self._seconds <= 0.0:
            return 1.0
        rate = self._tokens / self._seconds
        return 60.0 if rate * 60.0 <= tokens else max(1.0, tokens / rate)
