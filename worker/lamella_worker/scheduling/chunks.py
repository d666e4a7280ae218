"""How many tokens of a prompt join a step.

Knows no requests, no blocks and no clock. Bigger chunks read the weights less often, smaller ones
fill the stages sooner and let the rows that decode come round sooner. So while rows decode, each
prompt gets as much time as all of them: beside one prompt a token comes half as often, and what
many prompts take grows up to the step limit, for then weights read too often would hold up all. In
the flow: `compose` says what there is to do and asks before each chunk; `cost` tells what a chunk
takes, `cohorts` the pace of the rows.
"""

from __future__ import annotations

from math import inf

from lamella_worker.scheduling.cohorts import Cohorts
from lamella_worker.scheduling.cost import CostModel
from lamella_worker.scheduling.draft import Draft

LEAST_CHUNK = 16
"""Tokens below which a step's first chunk is not cut: time limits yield to progress."""


class Chunks:
    """The size of each chunk; no stage knowingly needs more than ``step_limit_s`` for a step."""

    def __init__(self, cost: CostModel, cohorts: Cohorts, step_limit_s: float) -> None:
        self._cost = cost
        self._cohorts = cohorts
        self._step_limit_s = step_limit_s
        self._rows = 0
        self._patience_s = inf  # what rows that decode may wait for a token

    def begin(self, rows: int, context: float, prompts: int) -> None:
        """Another step: so many rows of ``context`` mean length decode, here and in flight, and so
        many prompts have something to compute.

        A row's token may take as long as without prompts, and as long again for each of them; any
        time while no decode step was timed.
        """
        self._rows = rows
        alone_s = self._cohorts.pace_s(rows, context) if rows else 0.0
        self._patience_s = (1 + max(1, prompts)) * alone_s if alone_s > 0.0 else inf

    def may_start(self, draft: Draft, steps_in_flight: int) -> bool:
        """Whether chunks may join the step, with ``steps_in_flight`` that have rows.

        While rows decode, no step is made of chunks alone when every stage has a step already:
        the rows would wait for one step more, and beside them a chunk costs the weights' reading
        no second time.
        """
        if draft.segments or not 1 < self._cost.depth <= steps_in_flight:
            return True
        return self._patience_s == inf

    def tokens(self, draft: Draft, start: int, pending: int, *, room: int, queued: int) -> int:
        """Tokens of a prompt that the step takes, of ``pending`` ones from ``start`` on; 0 for
        none.

        It has ``room`` for so many rows; ``queued`` tokens of all prompts are in no step yet.
        """
        room = min(pending, room)
        if room <= LEAST_CHUNK and not draft.prompt_tokens:
            return room
        best = min(
            self._cost.chunk_tokens(draft.work, start, self._limit_s()),
            self._cost.fill_tokens(queued + draft.prompt_tokens) - draft.prompt_tokens,
        )
        if draft.prompt_tokens and best < min(pending, LEAST_CHUNK):
            return 0
        return min(room, max(best, LEAST_CHUNK))

    def _limit_s(self) -> float:
        """Longest time of a stage for a step with a chunk in it.

        Rows that decode wait for the chunks of all steps in the pipeline, of which there is one
        more than stages at most: together those keep the limits.
        """
        stages, depth = self._cost.stages, self._cost.depth
        if depth == 1:  # a step is over once all of them have computed it
            return min(self._patience_s, self._step_limit_s) / stages
        waited_for = depth + 1 if self._rows else 1
        return min(self._patience_s / stages, self._step_limit_s / waited_for)
