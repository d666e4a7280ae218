"""What the scheduler must keep within, and what it counts.

Knows nothing of how steps are chosen. In the flow: made from the pipeline's configuration on
stage 0 and handed to `scheduler`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamella_contract.errors import InvalidConfig

FIRST_PATIENCE = 64
"""Steps that must go well before twice as many rows are dared again."""


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Sizes of the pipeline: the KV pool has ``num_blocks`` of ``block_size`` tokens.

    Raises `InvalidConfig` naming the field that cannot work.
    """

    num_blocks: int
    block_size: int
    max_sequences: int  # slots: requests that run at once
    max_model_len: int  # tokens of prompt and answer
    max_step_tokens: int  # rows of one step
    max_queued_tokens: int  # prompt tokens that may wait before new requests are refused
    stages: int
    eos_token_ids: tuple[int, ...] = ()
    vocab_size: int = 0  # 0: ids are not checked
    step_limit_s: float = 0.25  # longest step of a stage that is composed knowingly
    depth: int = 0  # stages that compute at the same time, each its own step; 0: all of them

    def __post_init__(self) -> None:
        positive = (
            "num_blocks",
            "block_size",
            "max_sequences",
            "max_model_len",
            "max_step_tokens",
            "max_queued_tokens",
            "stages",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise InvalidConfig(f"{name}: got {getattr(self, name)}, want 1 or more")
        if not 0 <= self.depth <= self.stages:
            raise InvalidConfig(f"depth: got {self.depth}, want 0 to stages={self.stages}")
        if self.step_limit_s <= 0.0:
            raise InvalidConfig(f"step_limit_s: got {self.step_limit_s}, want more than 0")

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def most_cohorts(self) -> int:
        """Steps with rows that are worth having under way at once."""
        return self.depth or self.stages

    @property
    def longest(self) -> int:
        """Most ids of one request: it must fit the context, and the pool when it is alone."""
        return min(self.max_model_len, self.kv_tokens)


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counts at one moment; tokens, steps and preemptions are totals since the start."""

    running: int
    waiting: int
    in_flight: int
    queued_tokens: int  # prompt tokens not given to a step yet
    kv_tokens: int
    kv_tokens_free: int
    cohorts: int
    steps: int
    prompt_tokens: int
    output_tokens: int
    preemptions: int
    rows_replayed: int  # computed again because an epoch ended
    prefix_cache_queries: int  # tokens of requests that got a slot
    prefix_cache_hits: int  # of these: begun with what other requests left
    stage_busy_s: tuple[float, ...]  # per stage: computing
    stage_idle_s: tuple[float, ...]  # per stage: waiting for a step


class StepBudget:
    """Most rows of a step at present: ``tokens``, at most ``most``.

    Halved when memory runs out. Each time the patience doubles with which more is dared again, so
    that what does not fit is tried ever more seldom and requests get on in between.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tokens = most
        self._patience = FIRST_PATIENCE
        self._good = 0

    def exhausted(self, tokens: int) -> None:
        """A stage had no memory for a step of so many rows."""
        self.tokens = max(1, min(self.tokens, tokens // 2))
        self._patience *= 2
        self._good = 0

    def went_well(self) -> None:
        """A step with rows was computed by all its stages."""
        if self.tokens == self.most:
            self._patience = FIRST_PATIENCE
            return
        self._good += 1
        if self._good >= self._patience:
            self.tokens = min(self.most, 2 * self.tokens)
            self._good = 0
