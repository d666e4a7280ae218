"""Situations in few words, and the CRD's schema as a check."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamella_operator.actions import Note, ReplicaSituation, Situation, StageSituation
from lamella_operator.status.document import status_document
from lamella_operator.views import Manifest, Observed

CRD = Path(__file__).parents[3] / "crds" / "shardedmodels.yaml"
BODY = {"model": {"uri": "hf://Qwen/Qwen3"}, "pipeline": {"stages": 2, "stageMemory": "8Gi"}}
START_S = 1_700_000_000.0


class Lab:
    """One model with a profile, a plan of two stages, and shorthands for what may be found."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.known = Situation(
            profile=made.profile,
            profile_message="packed",
            profile_key="k",
            plan=made.plan,
            revision=made.revision.hash,
            wanted_replicas=1,
            gateways_wanted=2,
            gateways_ready=2,
        )

    def situation(self, *replicas: ReplicaSituation, **changes: Any) -> Situation:
        return dataclasses.replace(self.known, replicas=replicas, **changes)

    def stage(self, index: int, state: str, *said: str, **more: Any) -> StageSituation:
        """``said`` is nothing, or a reason and a message."""
        place: dict[str, Any] = {}
        if state not in ("Pending", "Lost"):
            place = {"pod": f"qwen3-0-{index}-x", "pod_uid": f"uid-{index}", "node": "node-1"}
        place["bytes_total"] = self.made.plan.stages[index].weight_bytes
        if state in ("Loaded", "Ready"):
            place["bytes_done"] = place["bytes_total"]
        note = Note(*said) if said else None
        return StageSituation(index, state, note=note, **{**place, **more})

    def replica(
        self, state: str, *stages: StageSituation, index: int = 0, said: Note | None = None,
        updated: bool = True,
    ) -> ReplicaSituation:  # fmt: skip
        revision = self.made.revision.hash if updated else "0ld0ld0ld0"
        return ReplicaSituation(index, revision, updated, state, stages, said)

    def ready(self, index: int = 0, updated: bool = True) -> ReplicaSituation:
        stages = (self.stage(0, "Ready"), self.stage(1, "Ready"))
        return self.replica("Ready", *stages, index=index, updated=updated)

    def document(
        self, situation: Situation, old: Manifest | None = None, after_s: float = 0.0
    ) -> dict[str, Any]:
        """The status ``after_s`` seconds after the beginning, where ``old`` stood before."""
        model = dataclasses.replace(self.made.model, status=old or {})
        observed = Observed(now_s=START_S + after_s, model=model)
        return status_document(observed, situation, self.made.settings)


@pytest.fixture(scope="session")
def lab(make: Callable[..., Any]) -> Lab:
    return Lab(make(BODY))


@pytest.fixture(scope="session")
def faults() -> Callable[[Any], list[str]]:
    """What of a status the CRD's schema would refuse or drop."""
    crd = yaml.safe_load(CRD.read_text())
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    return lambda status: list(_faults(schema, status, "status"))


def _faults(schema: Mapping[str, Any], value: Any, path: str) -> list[str]:
    kind = schema["type"]
    right = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}[kind]
    if type(value) is not right:
        return [f"{path}: {value!r} is no {kind}"]
    if kind == "array":
        inner = [_faults(schema["items"], item, f"{path}[{i}]") for i, item in enumerate(value)]
        return [fault for found in inner for fault in found]
    if kind == "object":
        known = schema["properties"]
        found = [f"{path}.{key}: unknown" for key in value if key not in known]
        found += [
            f"{path}.{key}: missing" for key in schema.get("required", []) if key not in value
        ]
        for key in value.keys() & known.keys():
            found += _faults(known[key], value[key], f"{path}.{key}")
        return found
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    if schema.get("format") == "date-time" and not re.fullmatch(stamp, value):
        return [f"{path}: {value!r} is no time"]
    limits = {"int32": 1 << 31, "int64": 1 << 63}
    limit = limits.get(schema.get("format", ""))
    if limit is not None and not -limit <= value < limit:
        return [f"{path}: {value} is too large"]
    return []
