"""Why a plan is refused, in words and numbers, with a way out.

Decides nothing: `plan` and `plan_problem` found that it cannot be. Counts of bytes are written in
binary units, layers as the half-open ranges' inclusive ends, as people count them.
"""

from __future__ import annotations

from lamella_contract import plan_cuts as cuts
from lamella_contract.errors import DoesNotFit, ForbiddenCut, PlanError
from lamella_contract.plan_problem import Problem, StagePlan
from lamella_contract.profile import ModelProfile
from lamella_contract.units import human


def does_not_fit(problem: Problem, count: int, blocks: int) -> DoesNotFit:
    """Why ``count`` stages do not hold ``blocks``, under the cuts that fall short by the least."""
    tokens = blocks * problem.asked.block_size
    stages = problem.stage_plans(_least_short(problem, count, blocks))
    short = [stage.needed_bytes(tokens) - (stage.memory_bytes or 0) for stage in stages]
    worst = short.index(max(short))
    stage = stages[worst]
    caches = stage.kv_bytes_per_token * tokens + stage.state_bytes
    return DoesNotFit(
        f"does not fit: stage {worst} of {count} ({_layers(stage)}) needs "
        f"{human(stage.needed_bytes(tokens))} (weights {human(stage.weight_bytes)}, caches for "
        f"{tokens:,} tokens {human(caches)}, runtime {human(stage.runtime_bytes)}) and has "
        f"{human(stage.memory_bytes or 0)}: {human(short[worst])} too little; "
        + _way_out(problem, count, blocks)
    )


def _least_short(problem: Problem, count: int, blocks: int) -> tuple[int, ...]:
    """First unit of each stage under the cuts whose worst stage lacks the least memory."""
    tokens = blocks * problem.asked.block_size
    whole = problem.weights[-1] + problem.states[-1] + tokens * problem.kv[-1]
    whole += problem.profile.embedding_bytes + problem.last_bytes(count)
    # memory added to every stage is as good as a lack: the least addition that makes it fit
    lack = cuts.largest(
        lambda extra: not problem.holds(count, blocks, extra),
        0,
        whole + problem.asked.runtime_bytes,
    )
    limit = problem.fits(count, blocks, 1 + (lack or 0))
    assert limit is not None, "unknown memory always fits"
    ok = problem.coverable(count, limit)
    assert ok is not None, "memory for the whole model on each stage fits"
    return cuts.choose(ok, [limit], count, problem.weights, problem.last_bytes(count))


def _way_out(problem: Problem, count: int, blocks: int) -> str:
    if problem.asked.manual:
        return "move the split, give the stage more memory, or shorten the context"
    memory = problem.asked.memory
    if isinstance(memory, int):
        more = problem.fewest(blocks, count + 1)
        if more is not None:
            return f"{more} stages of {human(memory)} would fit"
        return (
            "no number of stages of this memory fits: give them more, shorten the context, or "
            "lower the number of sequences"
        )
    return "give the stages more memory, take more stages, or shorten the context"


def _layers(stage: StagePlan) -> str:
    if stage.num_layers == 1:
        return f"layer {stage.first_layer}"
    return f"layers {stage.first_layer} to {stage.last_layer - 1}"


def too_many(profile: ModelProfile, count: int, units: int) -> PlanError:
    """Why a model of ``units`` units has no ``count`` stages."""
    if count > profile.num_layers:
        return PlanError(
            f"stages: got {count}, want at most {profile.num_layers}: "
            f"the model has {profile.num_layers} layers"
        )
    return ForbiddenCut(
        f"stages: got {count}, want at most {units}: {profile.family} can be cut only before "
        f"layers {_listed(profile)}{_reason(profile)}"
    )


def forbidden_split(profile: ModelProfile, text: str, start: int) -> ForbiddenCut:
    """Why the split written ``text`` may not cut before layer ``start``."""
    return ForbiddenCut(
        f"split: {text} cuts before layer {start}, {profile.family} can be cut only "
        f"before layers {_listed(profile)}{_reason(profile)}"
    )


def _listed(profile: ModelProfile) -> str:
    """Allowed cuts, runs of neighbours shortened: ``2 to 9, 12``."""
    runs: list[list[int]] = []
    for cut in sorted(set(profile.allowed_cuts) - {0}):
        if runs and cut == runs[-1][1] + 1:
            runs[-1][1] = cut
        else:
            runs.append([cut, cut])
    texts = [f"{a} to {b}" if a < b else f"{a}" for a, b in runs]
    return ", ".join(texts) if texts else "(none: one stage only)"


def _reason(profile: ModelProfile) -> str:
    return f": {profile.cut_reason}" if profile.cut_reason else ""
