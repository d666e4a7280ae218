"""What a changed manifest means for a pipeline that serves: pure decisions.

Knows manifests, plans, bytes and names of pipelines; no process, file or clock. `reload` looks,
asks here, and does.

Where memory allows both, the new pipeline starts beside the old one. Once it is ready the gateway
gives it all that is new, and the old one ends when it has nothing left, or when its requests have
had their time: they then go on in the new one. Where memory does not allow both, the old one ends
first, and requests wait in the gateway for the new one. A new pipeline that cannot start leaves,
or brings back, the old one. While the new one loads beside the old one, it can be withdrawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from lamella.machine import Machine
from lamella_contract.plan import Plan
from lamella_contract.spec import ShardedModel


class Outcome(Enum):
    """How far a change is."""

    UNDER_WAY = "under way"
    DONE = "done"
    GIVEN_UP = "given up"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Change:
    """From which pipeline to which, and whether both may run at once."""

    old: str
    new: str
    beside: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is now.

    `running` names the pipelines whose processes are to run or have not ended yet. `moved_s`: for
    how long the gateway has given nothing new to the old one because the new one is ready, None
    before that. `old_idle`: the old one says that it has no request. `withdrawn`: another layout is
    asked for by now.
    """

    running: frozenset[str]
    given_up: bool = False
    new_ready: bool = False
    moved_s: float | None = None
    old_idle: bool = False
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`named`: where the gateway is to send what is new. `start`, `end`: one pipeline or ""."""

    named: tuple[str, ...]
    start: str = ""
    end: str = ""
    outcome: Outcome = Outcome.UNDER_WAY


def decide(change: Change, seen: Seen, drain_s: float) -> Decision:
    """The next step; the same question asked again gives the same answer."""
    old_runs, new_runs = change.old in seen.running, change.new in seen.running
    if seen.given_up:
        start = "" if old_runs else change.old
        return Decision((change.old,), start=start, outcome=Outcome.GIVEN_UP)
    if seen.withdrawn and change.beside and seen.moved_s is None:
        if new_runs:
            return Decision((change.old,), end=change.new)
        return Decision((change.old,), outcome=Outcome.WITHDRAWN)
    if not change.beside:
        if old_runs:
            return Decision((change.new,), end=change.old)
        return _alone(change, new_runs, seen)
    if not new_runs:
        return Decision((change.old,), start=change.new)
    if seen.moved_s is None and not seen.new_ready:
        return Decision((change.old, change.new))
    if not old_runs:
        return Decision((change.new,), outcome=Outcome.DONE)
    over = seen.moved_s is not None and (seen.old_idle or seen.moved_s >= drain_s)
    return Decision((change.new,), end=change.old if over else "")


def _alone(change: Change, new_runs: bool, seen: Seen) -> Decision:
    if not new_runs:
        return Decision((change.new,), start=change.new)
    outcome = Outcome.DONE if seen.new_ready else Outcome.UNDER_WAY
    return Decision((change.new,), outcome=outcome)


def needs_restart(running: ShardedModel, wanted: ShardedModel) -> str:
    """The first field that differs and cannot change under requests that are live; "" if none."""
    for field, was, now in (
        ("metadata.name", running.name, wanted.name),
        ("spec.model", running.spec.model, wanted.spec.model),
        ("spec.pipeline.dtype", running.spec.pipeline.dtype, wanted.spec.pipeline.dtype),
        (
            "spec.pipeline.quantization",
            running.spec.pipeline.quantization,
            wanted.spec.pipeline.quantization,
        ),
        (
            "spec.context.maxLength",
            running.spec.context.max_model_len,
            wanted.spec.context.max_model_len,
        ),
        ("spec.gateway", running.spec.cluster.gateway, wanted.spec.cluster.gateway),
    ):
        if was != now:
            return field
    return ""


def same_layout(running: ShardedModel, wanted: ShardedModel) -> bool:
    """Whether the two ask for the same pipeline."""
    return (running.spec.pipeline, running.spec.context) == (
        wanted.spec.pipeline,
        wanted.spec.context,
    )


def without(plan: Plan, now: Machine, at_start: Machine, device: str) -> Machine:
    """The machine as it would be if the pipeline of `plan` were gone.

    Caches that were never touched take nothing yet, so what was free before the first pipeline
    started is the most that there can be.
    """
    held = device_bytes(plan, device, len(now.gpu_free_bytes))
    if device == "cpu":
        free = min(now.free_bytes + held[0], at_start.free_bytes)
        return replace(now, free_bytes=free)
    pairs = zip(now.gpu_free_bytes, held, at_start.gpu_free_bytes, strict=False)
    return replace(now, gpu_free_bytes=tuple(min(n + h, most) for n, h, most in pairs))


def both_fit(old: Plan, new: Plan, empty: Machine, device: str) -> bool:
    """Whether a machine with neither of them has room for both."""
    gpus = len(empty.gpu_free_bytes)
    room: Sequence[int] = (empty.free_bytes,) if device == "cpu" else empty.gpu_free_bytes
    return all(
        first + second <= free
        for first, second, free in zip(
            device_bytes(old, device, gpus), device_bytes(new, device, gpus), room, strict=False
        )
    )


def device_bytes(plan: Plan, device: str, gpus: int) -> tuple[int, ...]:
    """What the stages need: of the machine's memory, or of each GPU's, dealt as `launch` does."""
    needs = [stage.needed_bytes(plan.kv_tokens) for stage in plan.stages]
    if device == "cpu":
        return (sum(needs),)
    return tuple(sum(needs[gpu::gpus]) for gpu in range(gpus))
