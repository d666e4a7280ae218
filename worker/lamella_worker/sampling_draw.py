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

_NUCLEUS_GUESS = 1024  # most nuclei are smaller; a full sort of 256k logits costs 20 ms


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
        return self.temperature <= 0.0 or self.top_k == 1 or self.top_p <= 0.0


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
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    index = min(index, len(weights) - 1)
    return index if ids is None else int(ids[index])


def candidates(row: Row, filters: Filters) -> tuple[Ids | None, Row]:
    """The ids that may be chosen, ascending (None: all of them), and their unnormalised weights."""
    peak = float(row.max())
    check_peak(peak)
    with np.errstate(over="ignore", under="ignore"):
        weights: Row = np.exp((row - np.float32(peak)) / np.float32(filters.temperature))
    if np.isnan(weights).any():  # a temperature so small that 0 / 0 came out
        weights = (row == np.float32(peak)).astype(np.float32)
    ids: Ids | None = None
    if 0 < filters.top_k < len(row):
        ids = largest(weights, filters.top_k)
        weights = weights[ids]
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


def largest(weights: Row, count: int) -> Ids:
    """Ascending indexes of exactly `count` largest; of equals at the border the lowest indexes."""
    border = np.partition(weights, len(weights) - count)[len(weights) - count]
    above = np.flatnonzero(weights > border)
    ties = np.flatnonzero(weights == border)[: count - len(above)]
    return np.sort(np.concatenate((above, ties)))


def nucleus(weights: Row, top_p: float) -> Ids:
    """Ascending indexes of the smallest set of largest weights that holds `top_p` of the mass."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    if len(weights) > 4 * _NUCLEUS_GUESS:
        head = largest(weights, _NUCLEUS_GUESS)
        if float(weights[head].sum(dtype=np.float64)) >= wanted:
            return head[_prefix(weights[head], wanted)]
    return _prefix(weights, wanted)


def _prefix(weights: Row, wanted: float) -> Ids:
    order = np.argsort(-weights, kind="stable")
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(cumulative, wanted, side="left")) + 1
    return np.sort(order[:count])
