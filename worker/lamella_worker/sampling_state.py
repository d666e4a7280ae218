"""What sampling remembers of one sequence: how often each id has come, as a fold over its ids.

It knows nothing of logits' source or of random numbers. Because it is a fold over ids and holds
nothing else, a stage that lost it rebuilds it from the ids alone (`Adopt` carries them), and a step
that is computed twice can take its ids back first.

Penalties, with their sources: presence and frequency as OpenAI defines them, over *output* ids
(`logit -= frequency * count + presence`); repetition as in CTRL (Keskar et al. 2019), over prompt
and output ids (`logit / r` when positive, `logit * r` when negative).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_FIRST_CAPACITY = 64


class SeenIds:
    """Distinct ids of one sequence and how often each was *output* (0: only in the prompt)."""

    __slots__ = (
        "_counts",
        "_ids",
        "_index",
        "_output",
        "_prompt_distinct",
        "_prompt_len",
        "_size",
    )

    def __init__(self, prompt: Iterable[int], output: Iterable[int]) -> None:
        self._ids: NDArray[np.int64] = np.empty(_FIRST_CAPACITY, np.int64)
        self._counts: NDArray[np.float32] = np.empty(_FIRST_CAPACITY, np.float32)
        self._index: dict[int, int] = {}
        self._size = 0
        self._output: list[int] = []
        self._prompt_len = 0
        for token in prompt:
            self._prompt_len += 1
            self._place(token)
        self._prompt_distinct = self._size  # the prompt's ids are listed first
        for token in output:
            self.add(token)

    @property
    def length(self) -> int:
        """Ids folded so far, prompt and output: the position that the next id will have."""
        return self._prompt_len + len(self._output)

    def add(self, token: int) -> None:
        """Fold one output id."""
        place = self._place(token)  # first: it may make the arrays anew
        self._counts[place] += 1
        self._output.append(token)

    def rewind(self, length: int) -> None:
        """Take output ids back until `length` ids are folded; never below the prompt."""
        while self.length > length and self._output:
            self._counts[self._index[self._output.pop()]] -= 1

    def penalise(
        self, row: NDArray[np.float32], presence: float, frequency: float, repetition: float
    ) -> None:
        """Change the logits `row` [vocab] in place."""
        ids, counts = self._ids[: self._size], self._counts[: self._size]
        if self._size and int(ids.max()) >= len(row):  # an id that the head does not know
            known = ids < len(row)
            ids, counts = ids[known], counts[known]
        if repetition != 1.0:
            # An output id that was taken back is still listed, with count 0: it must not count.
            prompt = np.arange(self._size) < self._prompt_distinct
            listed = self._ids[: self._size][prompt | (self._counts[: self._size] > 0)]
            listed = listed[listed < len(row)]
            values = row[listed]
            row[listed] = np.where(values > 0, values / repetition, values * repetition)
        if presence != 0.0 or frequency != 0.0:
            row[ids] -= np.float32(frequency) * counts + np.float32(presence) * (counts > 0)

    def _place(self, token: int) -> int:
        index = self._index.get(token)
        if index is None:
            index = self._size
            if index == len(self._ids):
                self._ids = np.resize(self._ids, 2 * index)
                self._counts = np.resize(self._counts, 2 * index)
            self._ids[index], self._counts[index] = token, 0
            self._index[token] = index
            self._size += 1
        return index
