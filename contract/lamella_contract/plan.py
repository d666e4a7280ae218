"""Which layers each stage holds, and how many tokens its caches take: a pure function.

Knows no file, device or cluster; the numbers come in a `ModelProfile` and from the manifest. The
embedding weighs on the first stage, the last norm and the head on the last one (a tied head is a
second copy there, unless one stage holds both ends).

The plan is exact. Of all cuts that the family allows it takes those under which the tightest
stage holds the most KV tokens, as far as they are of use (``max_sequences`` requests of the full
context); among these the one whose slowest stage streams the fewest weight bytes per token, for
decoding is bound by memory bandwidth. The head is streamed too, so a model with few layers and a
large vocabulary is cut unevenly, and rightly so.
"""

from __future__ import annotations

from lamella_contract import plan_cuts as cuts
from lamella_contract.errors import PlanError
from lamella_contract.plan_problem import (
    DEFAULT_MAX_SEQUENCES,
    DEFAULT_MODEL_LEN,
    LEAST_MODEL_LEN,
    Asked,
    Plan,
    Problem,
    StagePlan,
)
from lamella_contract.plan_refusal import does_not_fit, forbidden_split, too_many
from lamella_contract.profile import ModelProfile

__all__ = [
    "DEFAULT_MAX_SEQUENCES",
    "DEFAULT_MODEL_LEN",
    "LEAST_MODEL_LEN",
    "Plan",
    "StagePlan",
    "plan",
]


def plan(
    profile: ModelProfile,
    *,
    stages: int | None = None,
    split: tuple[int, ...] | None = None,
    stage_memory: int | tuple[int, ...] | None = None,
    max_model_len: int | None = None,
    max_sequences: int | None = None,
    block_size: int = 16,
    runtime_bytes: int = 0,
) -> Plan:
    """Deal ``profile``'s layers out to stages.

    ``stages`` None: as many as ``split`` or ``stage_memory`` has entries, else the fewest that
    fit ``stage_memory`` at the declared context and concurrency (one stage when it is unknown).
    ``split`` counts layers per stage and is checked, not chosen. ``stage_memory`` is bytes of
    device memory, of each stage or one per stage; None is unknown and never too little.
    ``max_model_len`` None: as long as the model and the memory allow. ``max_sequences`` None:
    undeclared, `DEFAULT_MAX_SEQUENCES`. ``runtime_bytes`` are kept free on each stage for the
    runtime and scratch.

    Raises `PlanError` for counts that cannot be, `ForbiddenCut` for a split that the family does
    not allow, and `DoesNotFit`, with numbers and a way out.
    """
    _at_least_one(max_model_len=max_model_len, max_sequences=max_sequences, block=block_size)
    if max_model_len is not None and max_model_len > profile.max_model_len:
        raise PlanError(
            f"context: got {max_model_len:,} tokens, the model takes at most "
            f"{profile.max_model_len:,}"
        )
    count = _count(stages, split, stage_memory)
    if count is not None and count > profile.num_layers:
        raise too_many(profile, count, profile.num_layers)
    starts = _starts(profile) if split is None else _split_starts(profile, split)
    asked = Asked(
        memory=stage_memory,
        max_model_len=max_model_len,
        max_sequences=max_sequences,
        block_size=block_size,
        runtime_bytes=runtime_bytes,
        manual=split is not None,
    )
    problem = Problem.make(profile, starts, asked)
    if count is None:
        count = problem.fewest(problem.declared_blocks)
        if count is None:
            raise does_not_fit(problem, problem.units, problem.declared_blocks)
    if count > problem.units:
        raise too_many(profile, count, problem.units)
    blocks = problem.most_blocks(count)
    if blocks is None:
        raise does_not_fit(problem, count, problem.least_blocks)
    return problem.finish(problem.balanced(count, blocks))


def _count(
    stages: int | None,
    split: tuple[int, ...] | None,
    memory: int | tuple[int, ...] | None,
) -> int | None:
    """How many stages are asked for; None: the fewest that fit."""
    counts = {}
    if stages is not None:
        counts["stages"] = stages
    if split is not None:
        counts["split"] = len(split)
    if isinstance(memory, tuple):
        counts["stage memory"] = len(memory)
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{what} says {count}" for what, count in counts.items())
        raise PlanError(f"stages: {said}; want the same number")
    count = next(iter(counts.values()), None)
    if count is not None and count < 1:
        raise PlanError(f"stages: got {count}, want at least 1")
    return count


def _split_starts(profile: ModelProfile, split: tuple[int, ...]) -> tuple[int, ...]:
    """First layers of a manual split and the number of layers; raises if it cannot be."""
    layers = profile.num_layers
    text = "+".join(map(str, split))
    if not split or min(split) < 1:
        raise PlanError(f"split: got {text or 'nothing'}, want at least one layer per stage")
    if sum(split) != layers:
        raise PlanError(f"split: {text} makes {sum(split)} layers, the model has {layers}")
    starts = cuts.prefix_sums(split)
    for start in starts[1:-1]:
        if start not in profile.allowed_cuts:
            raise forbidden_split(profile, text, start)
    return starts


def _starts(profile: ModelProfile) -> tuple[int, ...]:
    """Layers at which a stage may start, and the number of layers."""
    return (0, *sorted(set(profile.allowed_cuts) - {0}), profile.num_layers)


def _at_least_one(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise PlanError(f"{name}: got {number}, want at least 1")
