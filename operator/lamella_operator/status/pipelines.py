"""The list of pipelines and stages: at most so many, those first that somebody looks for.

Knows no condition. Stages that are not ready are listed before those that are; what is left out is
counted.
"""

from __future__ import annotations

from typing import Any

from lamella_contract.plan import Plan
from lamella_operator.actions import Note, ReplicaSituation, Situation, StageSituation
from lamella_operator.status import evidence
from lamella_operator.status.progress import eta_s, percent

MOST_STAGES = 64
MOST_PIPELINES = 128


def pipelines(situation: Situation, most_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The list, and how many stages it leaves out; messages have at most ``most_bytes`` bytes."""
    listed = _listed(situation)
    found: list[dict[str, Any]] = []
    left_out = 0
    for replica in situation.replicas:
        chosen = [stage for stage in replica.stages if (replica.replica, stage.stage) in listed]
        left_out += len(replica.stages) - len(chosen)
        if chosen or len(found) < MOST_PIPELINES:
            plan = situation.plan if replica.updated else None
            found.append(_pipeline(replica, chosen, plan, most_bytes))
    return found[:MOST_PIPELINES], left_out


def plan_of(situation: Situation) -> dict[str, Any]:
    """The plan as the status shows it; of very many stages the first."""
    plan = situation.plan
    assert plan is not None, "asked for where there is one"
    stages = []
    for stage in plan.stages[:MOST_STAGES]:
        shown: dict[str, Any] = {
            "layers": _layers(stage.first_layer, stage.last_layer),
            "weightBytes": stage.weight_bytes,
            "kvTokens": stage.kv_tokens,
        }
        if stage.memory_bytes is not None:
            shown["memoryBytes"] = stage.memory_bytes
        stages.append(shown)
    return {
        "stages": stages,
        "kvTokens": plan.kv_tokens,
        "maxLength": plan.max_model_len,
        "maxSequences": plan.max_sequences,
        "capacity": "known" if situation.capacity_known else "unknown",
    }


def _listed(situation: Situation) -> set[tuple[int, int]]:
    """Replica and stage of what is listed."""
    every = [
        (stage.state == "Ready", replica.replica, stage.stage)
        for replica in situation.replicas
        for stage in replica.stages
    ]
    return {(replica, stage) for _, replica, stage in sorted(every)[:MOST_STAGES]}


def _pipeline(
    replica: ReplicaSituation, chosen: list[StageSituation], plan: Plan | None, most_bytes: int
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "replica": replica.replica,
        "revision": replica.revision,
        "state": replica.state,
        **_said(replica.note, most_bytes),
    }
    if chosen:
        found["stages"] = [_stage(stage, plan, most_bytes) for stage in chosen]
    return found


def _stage(stage: StageSituation, plan: Plan | None, most_bytes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": stage.stage, "state": stage.state}
    names = {"pod": stage.pod, "podUID": stage.pod_uid, "node": stage.node}
    found |= {key: value for key, value in names.items() if value}
    if plan is not None and stage.stage < len(plan.stages):
        planned = plan.stages[stage.stage]
        found["layers"] = _layers(planned.first_layer, planned.last_layer)
    found["restarts"] = stage.restarts
    if stage.state == "Loading" and stage.bytes_total:
        found |= {
            "bytesDone": stage.bytes_done,
            "bytesTotal": stage.bytes_total,
            "percent": percent(stage),
            "bytesPerSecond": int(stage.bytes_per_s),
        }
        if (left := eta_s(stage)) is not None:
            found["etaSeconds"] = left
    return found | _said(stage.note, most_bytes)


def _said(note: Note | None, most_bytes: int) -> dict[str, Any]:
    if note is None:
        return {}
    return {"reason": note.reason, "message": evidence.line(note.message, most_bytes)}


def _layers(first: int, end: int) -> str:
    """``0-7``: the last one is meant too, as people count."""
    return f"{first}-{end - 1}"
