"""From one row of logits to one token id: temperature, top-k, top-p, min-p, one uniform number.

It knows nothing of requests, slots or penalties, and works on one row at a time on purpose: a row's
result then cannot depend on the batch that it sits in. Both `sampling.sample` (the seed's call) and
`sampling.Sampler` (the last stage) end here.

Order of the filters, as in Hugging Face's generate: temperature, top-k, top-p over what top-k left,
min-p against the most likely token. The number is looked up in the cumulative sum *in the order of
token ids*: near ties that swap ranks between two runs then move the answer by a hair's breadth of
probability only, where a sum in order of rank would swap the two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
Ids = NDArray[np.int64]

_COLDEST = 1e-20  # below, a temperature divides nothing but 0 in float32: it is argmax
_BLOCK = 256  # weights summed at once; a running sum over all of them takes ten times as long
_SORTABLE = 2048  # up to here a sort costs less than being clever; 256k take 30 ms
_NUCLEUS_GUESS = 256  # most nuclei of a trained model are smaller
_GROUP = 64  # logits whose maximum stands for them in the search for the largest


@dataclass(frozen=True, slots=True)
class Filters:
    """What narrows the choice. `top_k` 0 is off, `top_p` 1 is off, `min_p` 0 is off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        """The most likely token is taken and no random number is looked at."""
        return self.temperature < _COLDEST or self.top_k == 1 or self.top_p <= 0.0


def best(row: Row) -> int:
    """Id of the largest logit, the lowest id of equals. ValueError when nothing can be chosen."""
    index = int(row.argmax())  # NumPy ranks NaN highest, so one look tells
    check_peak(float(row[index]))
    return index


def check_peak(peak: float) -> None:
    """ValueError unless the row's largest logit (NaN counts as largest) is a finite number."""
    if not np.isfinite(peak):
        what = "NaN" if np.isnan(peak) else "+inf" if peak > 0 else "only -inf"
        raise ValueError(f"logits hold {what}: no token can be chosen")


def draw(row: Row, filters: Filters, uniform: float) -> int:
    """Choose one id of `row` [vocab]; `uniform` is in [0, 1). ValueError for NaN or all -inf."""
    if filters.greedy:
        return best(row)
    ids, weights = candidates(row, filters)
    index = locate(weights, uniform)
    return index if ids is None else int(ids[index])


def locate(weights: Row, uniform: float) -> int:
    """The index into whose share of the running sum `uniform` falls, never one of weight 0."""
    whole = len(weights) // _BLOCK * _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1).astype(np.float64)
    sums = np.append(sums, weights[whole:].sum(dtype=np.float64))
    cumulative = np.cumsum(sums)
    wanted = uniform * float(cumulative[-1])
    block = int(np.searchsorted(cumulative, wanted, side="right"))
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    # As a fraction of the block: its float32 sum and its running sum differ by rounding.
    fraction = 1.0 - (float(cumulative[block]) - wanted) / float(sums[block])
    running = np.cumsum(inside, dtype=np.float64)
    index = int(np.searchsorted(running, fraction * float(running[-1]), side="right"))
    return block * _BLOCK + min(index, int(np.flatnonzero(inside)[-1]))


def candidates(row: Row, filters: Filters) -> tuple[Ids | None, Row]:
    """The ids that may be chosen, ascending (None: all of them), and their unnormalised weights."""
    peak = float(row.max())
    check_peak(peak)
    ids: Ids | None = None
    if 0 < filters.top_k < len(row):  # before the exponential: only these are needed then
        ids = largest(row, filters.top_k)
        row = row[ids]
    with np.errstate(over="ignore", under="ignore"):
        weights: Row = np.exp((row - np.float32(peak)) / np.float32(filters.temperature))
    if filters.top_p < 1.0:
        inside = nucleus(weights, filters.top_p)
        ids = inside if ids is None else ids[inside]
        weights = weights[inside]
    if filters.min_p > 0.0:
        # The most likely token weighs 1, so the threshold is min_p itself.
        inside = np.flatnonzero(weights >= min(filters.min_p, 1.0))
        ids = inside if ids is None else ids[inside]
        weights = weights[inside]
    return ids, weights


def largest(row: Row, count: int) -> Ids:
    """Ascending indexes of exactly `count` largest; of equals at the border the lowest indexes.

    The count-th largest of the maxima of disjoint groups bounds the border from below (`count`
    values reach it), so the exact search is over what reaches the bound: a few hundred.
    """
    ids: Ids | None = None
    columns = len(row) // _GROUP
    if count <= columns:
        maxima = row[: columns * _GROUP].reshape(_GROUP, columns).max(axis=0)
        bound = np.partition(maxima, columns - count)[columns - count]
        ids = np.flatnonzero(row >= bound)
        row = row[ids]
    border = np.partition(row, len(row) - count)[len(row) - count]
    above = np.flatnonzero(row > border)
    ties = np.flatnonzero(row == border)[: count - len(above)]
    chosen = np.sort(np.concatenate((above, ties)))
    return chosen if ids is None else ids[chosen]


def nucleus(weights: Row, top_p: float) -> Ids:
    """Ascending indexes of the smallest set of largest weights that holds `top_p` of the mass.

    Weights (0 or more, float32, contiguous) are dealt into buckets by their upper 16 bits, which
    order them; only the bucket in which the mass is reached is sorted.
    """
    wanted = top_p * float(weights.sum(dtype=np.float64))
    if len(weights) <= _SORTABLE:
        return _prefix(weights, wanted)
    head = largest(weights, _NUCLEUS_GUESS)
    if float(weights[head].sum(dtype=np.float64)) >= wanted:
        return head[_prefix(weights[head], wanted)]
    keys = np.right_shift(weights.view(np.int32), 16)
    mass = np.bincount(keys, weights=weights)[::-1].cumsum()  # from the heaviest bucket on
    bucket = int(np.searchsorted(mass, min(wanted, float(mass[-1])), side="left"))
    before = float(mass[bucket - 1]) if bucket else 0.0
    key = int(mass.size) - 1 - bucket
    inside = np.flatnonzero(keys == key)
    border = inside[_prefix(weights[inside], wanted - before)]
    return np.sort(np.concatenate((np.flatnonzero(keys > key), border)))


def _prefix(weights: Row, wanted: float) -> Ids:
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(cumulative, wanted, side="left")) + 1
    return np.sort(order[:count])
