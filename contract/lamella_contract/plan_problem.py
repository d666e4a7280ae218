"""One planning problem: a profile's units, what is asked of the stages, and the best answer.

Knows no manifest and words no refusal (`plan_refusal` does). A unit is a run of layers that may
not be cut; with a manual split each stage is one unit, so that a split is checked by the same
sums that choose one. `plan` makes a `Problem`, asks it for the stage count, the blocks and the
cuts, in this order.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from lamella_contract import plan_cuts as cuts
from lamella_contract.plan_cuts import Limit
from lamella_contract.profile import ModelProfile

DEFAULT_MAX_SEQUENCES = 16  # sequences at once when the manifest declares none
DEFAULT_MODEL_LEN = 8192  # tokens of context planned when neither it nor memory is declared
LEAST_MODEL_LEN = 2048  # tokens of context below which an undeclared context does not fit


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: layers ``[first_layer, last_layer)`` and what they take, in bytes.

    ``weight_bytes`` counts embedding, last norm and head where they lie. ``kv_tokens`` is how
    many tokens of cache this stage has room for; every stage uses the plan's, the smallest.
    ``memory_bytes`` None: unknown. ``streamed_bytes`` are read per decode step.
    """

    first_layer: int
    last_layer: int
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    kv_tokens: int
    streamed_bytes: int
    runtime_bytes: int
    memory_bytes: int | None

    @property
    def num_layers(self) -> int:
        return self.last_layer - self.first_layer

    def needed_bytes(self, kv_tokens: int) -> int:
        """All that the stage takes with caches for ``kv_tokens``."""
        caches = self.kv_bytes_per_token * kv_tokens
        return self.weight_bytes + self.state_bytes + self.runtime_bytes + caches


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages, and the caches that all of them keep alike."""

    stages: tuple[StagePlan, ...]
    block_size: int
    num_blocks: int
    kv_tokens: int
    max_model_len: int
    max_sequences: int

    @property
    def splits(self) -> tuple[int, ...]:
        """First layer of each stage, as `PipelineConfig` wants it."""
        return tuple(stage.first_layer for stage in self.stages)

    @property
    def num_layers(self) -> int:
        return self.stages[-1].last_layer


@dataclass(frozen=True, slots=True)
class Asked:
    """What a manifest asks for; None is undeclared (memory: unknown)."""

    memory: int | tuple[int, ...] | None
    max_model_len: int | None
    max_sequences: int | None
    block_size: int
    runtime_bytes: int
    manual: bool  # the split was given: one stage per unit, nothing to choose

    @property
    def sequences(self) -> int:
        return self.max_sequences or DEFAULT_MAX_SEQUENCES


@dataclass(frozen=True, slots=True)
class Problem:
    """A profile's units (runs of layers that stay together) and what is asked of their stages.

    ``starts`` are the first layers of the units and, last, the number of layers.
    """

    profile: ModelProfile
    starts: tuple[int, ...]
    asked: Asked
    weights: tuple[int, ...]  # prefix sums over units, as the next two
    states: tuple[int, ...]
    kv: tuple[int, ...]

    @classmethod
    def make(cls, profile: ModelProfile, starts: tuple[int, ...], asked: Asked) -> Problem:
        """The sums over units; ``starts`` as above."""
        runs = [profile.layers[a:b] for a, b in itertools.pairwise(starts)]
        states = [asked.sequences * sum(x.state_bytes_per_sequence for x in run) for run in runs]
        return cls(
            profile=profile,
            starts=starts,
            asked=asked,
            weights=cuts.prefix_sums([sum(x.weight_bytes for x in run) for run in runs]),
            states=cuts.prefix_sums(states),
            kv=cuts.prefix_sums([sum(x.kv_bytes_per_token for x in run) for run in runs]),
        )

    @property
    def units(self) -> int:
        return len(self.starts) - 1

    @property
    def wanted_len(self) -> int:
        """Tokens of context to hope for."""
        if self.asked.max_model_len is not None:
            return self.asked.max_model_len
        longest = self.profile.max_model_len
        return longest if self.asked.memory is not None else min(longest, DEFAULT_MODEL_LEN)

    @property
    def least_blocks(self) -> int:
        """Blocks without which a plan is none: one request of the declared context."""
        undeclared = min(self.profile.max_model_len, LEAST_MODEL_LEN)
        return self._blocks(self.asked.max_model_len or undeclared)

    @property
    def declared_blocks(self) -> int:
        """Blocks of the declared context and concurrency; one request where undeclared."""
        return self.least_blocks * (self.asked.max_sequences or 1)

    @property
    def useful_blocks(self) -> int:
        """Blocks beyond which more are of no use: all sequences at the full context."""
        return self._blocks(self.wanted_len) * self.asked.sequences

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.asked.block_size)

    def memory_of(self, stage: int) -> int | None:
        memory = self.asked.memory
        return memory[stage] if isinstance(memory, tuple) else memory

    def last_bytes(self, count: int) -> int:
        """Weights on the last of ``count`` stages beside its layers."""
        tied_here = self.profile.tied and count == 1
        return self.profile.final_bytes + (0 if tied_here else self.profile.head_bytes)

    def fits(self, count: int, blocks: int, extra: int = 0) -> Limit | None:
        """Memory of ``count`` stages with ``blocks`` of cache, ``extra`` bytes added to each."""
        if self.asked.memory is None:
            return None
        tokens = blocks * self.asked.block_size
        costs = zip(self.weights, self.states, self.kv, strict=True)
        prefix = tuple([weight + state + tokens * kv for weight, state, kv in costs])
        budgets = [
            (self.memory_of(s) or 0) - self.asked.runtime_bytes + extra for s in range(count)
        ]
        budgets[0] -= self.profile.embedding_bytes
        budgets[-1] -= self.last_bytes(count)
        return Limit(prefix, tuple(budgets))

    def coverable(self, count: int, *limits: Limit | None) -> list[list[bool]] | None:
        real = [limit for limit in limits if limit is not None]
        return cuts.coverable(real, count, self.units)

    def holds(self, count: int, blocks: int, extra: int = 0) -> bool:
        return self.coverable(count, self.fits(count, blocks, extra)) is not None

    def most_blocks(self, count: int) -> int | None:
        """Blocks of the tightest stage under the best cuts; None when too few for a request."""
        return cuts.largest(
            lambda blocks: self.holds(count, blocks), self.least_blocks, self.useful_blocks
        )

    def fewest(self, blocks: int, least: int = 1) -> int | None:
        """The fewest stages, from ``least`` on, that hold ``blocks``; None if no number does.

        Every stage has the same memory here, so one of two units can be halved and two or more
        stages that fit stay so with one more: bisection is exact. One stage alone stands apart,
        for it needs no copy of a tied head.
        """
        if least <= 1 and self.holds(1, blocks):
            return 1
        counts = range(max(2, least), self.units + 1)
        if not counts or not self.holds(self.units, blocks):
            return None
        return cuts.smallest(lambda count: self.holds(count, blocks), counts)

    def balanced(self, count: int, blocks: int) -> tuple[int, ...]:
        """First unit of each stage: least bytes streamed by the slowest, ``blocks`` held."""
        head = self.profile.final_bytes + self.profile.head_bytes
        memory = self.fits(count, blocks)

        def streams(most: int) -> Limit:
            return Limit(self.weights, (*([most] * (count - 1)), most - head))

        total = self.weights[-1] + head
        # no stage can be below the average, nor the last below its head
        values = cuts.range_sums(self.weights, head, max(-(-total // count), head))
        best = cuts.smallest(
            lambda most: self.coverable(count, memory, streams(most)) is not None, values
        )
        limits = [limit for limit in (memory, streams(best)) if limit is not None]
        ok = cuts.coverable(limits, count, self.units)
        assert ok is not None, "the most bytes that a stage can stream allow every cover"
        return cuts.choose(ok, limits, count, self.weights, head)

    def stage_plans(self, firsts: tuple[int, ...]) -> tuple[StagePlan, ...]:
        """Every stage's numbers, given its first unit."""
        count = len(firsts)
        plans = []
        for stage, (u, v) in enumerate(zip(firsts, (*firsts[1:], self.units), strict=True)):
            first = self.profile.embedding_bytes if stage == 0 else 0
            is_last = stage == count - 1
            weights = self.weights[v] - self.weights[u]
            head = self.profile.final_bytes + self.profile.head_bytes
            made = StagePlan(
                first_layer=self.starts[u],
                last_layer=self.starts[v],
                weight_bytes=weights + first + (self.last_bytes(count) if is_last else 0),
                kv_bytes_per_token=self.kv[v] - self.kv[u],
                state_bytes=self.states[v] - self.states[u],
                kv_tokens=0,
                streamed_bytes=weights + (head if is_last else 0),
                runtime_bytes=self.asked.runtime_bytes,
                memory_bytes=self.memory_of(stage),
            )
            plans.append(dataclasses.replace(made, kv_tokens=self._room(made)))
        return tuple(plans)

    def _room(self, stage: StagePlan) -> int:
        """Tokens that a stage's memory has room for; the useful number where nothing bounds it."""
        useful = self.useful_blocks * self.asked.block_size
        if stage.memory_bytes is None or stage.kv_bytes_per_token == 0:
            return useful
        left = stage.memory_bytes - stage.needed_bytes(0)
        block = stage.kv_bytes_per_token * self.asked.block_size
        return max(0, left // block * self.asked.block_size)

    def finish(self, firsts: tuple[int, ...]) -> Plan:
        stages = self.stage_plans(firsts)
        room = min(stage.kv_tokens for stage in stages) // self.asked.block_size
        num_blocks = min(room, self.useful_blocks)
        kv_tokens = num_blocks * self.asked.block_size
        return Plan(
            stages=stages,
            block_size=self.asked.block_size,
            num_blocks=num_blocks,
            kv_tokens=kv_tokens,
            max_model_len=min(self.wanted_len, kv_tokens),
            max_sequences=self.asked.sequences,
        )
