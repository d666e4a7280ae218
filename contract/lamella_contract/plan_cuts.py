"""Cutting a row of units into contiguous stages: feasibility and choice, exactly.

Knows no model: a unit is a run of layers that may not be cut, and a `Limit` says how much of one
additive cost each stage may hold. `plan` asks for the most KV tokens, then for the best balance.

A stage may hold units ``[u, v)`` when every limit allows it. Costs are non-negative, so for each
``u`` the allowed ``v`` are ``u + 1 .. far(u)``, found by bisection in prefix sums. Whether stages
``s ..`` can cover units ``u ..`` is then one dynamic programme from the back in O(stages x units),
and because each question is monotonic in its bound, the best bound is found by bisection too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Limit:
    """One additive cost: ``prefix[v] - prefix[u]`` of a stage is at most its ``budgets`` entry."""

    prefix: tuple[int, ...]  # [units + 1], rising from 0
    budgets: tuple[int, ...]  # [stages], may be negative: nothing fits


def prefix_sums(costs: Sequence[int]) -> tuple[int, ...]:
    """``(0, c0, c0 + c1, ...)``."""
    return (0, *accumulate(costs))


def coverable(limits: Sequence[Limit], stages: int, units: int) -> list[list[bool]] | None:
    """``ok[s][u]``: stages ``s ..`` can cover exactly units ``u ..``, each at least one unit.

    None when the whole row cannot be covered. Shape [stages + 1][units + 1].
    """
    if not 0 < stages <= units:
        return None
    fars: dict[tuple[int, ...], list[int]] = {}
    ok: list[list[bool]] = [[]] * stages + [[False] * units + [True]]
    for stage in range(stages - 1, -1, -1):
        budgets = tuple([limit.budgets[stage] for limit in limits])
        far = fars.get(budgets)
        if far is None:  # stages with the same memory share one table
            far = fars[budgets] = _far(limits, budgets, units)
        nearest = _nearest(ok[stage + 1])
        ok[stage] = [nearest[u + 1] <= far[u] for u in range(units)] + [False]
    return ok if ok[0][0] else None


def choose(
    ok: list[list[bool]], limits: Sequence[Limit], stages: int, wanted: Sequence[int], tail: int
) -> tuple[int, ...]:
    """One cover allowed by ``ok``: each stage gets as near as it can to an even share.

    ``wanted`` are prefix sums of the cost to even out, ``tail`` what weighs on the last stage
    beside its units. Returns the first unit of each stage.
    """
    units = len(wanted) - 1
    starts = [0]
    for stage in range(stages - 1):
        u = starts[-1]
        budgets = tuple([limit.budgets[stage] for limit in limits])
        far = _far_of(limits, budgets, u, units)
        share = (wanted[units] + tail - wanted[u]) / (stages - stage)
        ends = [v for v in range(u + 1, far + 1) if ok[stage + 1][v]]
        starts.append(min(ends, key=lambda v: abs(wanted[v] - wanted[u] - share)))
    return tuple(starts)


def largest(feasible: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number in ``[low, high]`` for which a falling predicate holds, else None."""
    if low > high or not feasible(low):
        return None
    if feasible(high):
        return high
    while high - low > 1:  # feasible(low) and not feasible(high)
        middle = (low + high) // 2
        if feasible(middle):
            low = middle
        else:
            high = middle
    return low


def smallest(feasible: Callable[[int], bool], candidates: Sequence[int]) -> int:
    """The smallest of rising ``candidates`` for which a rising predicate holds; the last does."""
    return candidates[bisect_left(candidates, True, hi=len(candidates) - 1, key=feasible)]


def range_sums(prefix: Sequence[int], tail: int, least: int) -> list[int]:
    """Every cost of at least ``least`` that a stage can have, ``tail`` added on the last one."""
    units = len(prefix) - 1
    sums = {tail + prefix[units] - prefix[u] for u in range(units)}
    for u in range(units):
        first = bisect_left(prefix, prefix[u] + least, u + 1)
        sums.update([end - prefix[u] for end in prefix[first:]])
    return sorted(value for value in sums if value >= least)


def _far(limits: Sequence[Limit], budgets: tuple[int, ...], units: int) -> list[int]:
    return [_far_of(limits, budgets, u, units) for u in range(units)]


def _far_of(limits: Sequence[Limit], budgets: tuple[int, ...], u: int, units: int) -> int:
    """The largest ``v`` such that every limit allows units ``[u, v)``; ``u`` or less if none."""
    far = units
    for limit, budget in zip(limits, budgets, strict=True):
        far = min(far, bisect_right(limit.prefix, limit.prefix[u] + budget) - 1)
    return far


def _nearest(row: list[bool]) -> list[int]:
    """For each place the nearest True at it or behind; past the end when there is none."""
    found = len(row)
    nearest = [found] * len(row)
    for place in range(len(row) - 1, -1, -1):
        if row[place]:
            found = place
        nearest[place] = found
    return nearest
