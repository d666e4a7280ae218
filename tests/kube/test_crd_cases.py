"""Manifests in ``tests/cases`` and the samples, given to a real API server.

What it refuses never reaches the operator; what it accepts the parser must understand, also as it
comes back: with defaults, managed fields and a status. The parser's own words on the same files are
held by ``tests/contract/test_cases.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_control_plane import ApiError, ControlPlane

from lamella_contract.spec import parse

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "cases"
LOCAL = ("demo.yaml",)  # names a folder of this machine, which no cluster has
SAMPLES = [
    ROOT / "shardedmodel.yaml",
    *sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.name not in LOCAL),
]
VALID = [*sorted((CASES / "valid").glob("*.yaml")), *SAMPLES]
MODELS = "/apis/lamella.dev/v1alpha1/namespaces/default/shardedmodels"
BASE = {
    "apiVersion": "lamella.dev/v1alpha1",
    "kind": "ShardedModel",
    "metadata": {"name": "m"},
    "spec": {"model": {"uri": "hf://Qwen/Qwen3-32B"}},
}
DRY = {"dryRun": "All", "fieldValidation": "Strict"}  # strict, as kubectl asks


def invalid() -> list[Any]:
    """Parameters: every case of every file, in a manifest that is valid but for it."""
    found = []
    for path in sorted((CASES / "invalid").glob("*.yaml")):
        for case in yaml.safe_load(path.read_text()):
            name, said, parser = case.pop("case"), case.pop("server"), case.pop("parser")
            whole = {key: value for key, value in {**BASE, **case}.items() if value is not None}
            found.append(pytest.param(whole, said, parser, id=f"{path.stem}: {name}"))
    return found


@pytest.mark.parametrize(("document", "words", "parser"), invalid())
def test_what_admission_refuses(
    control_plane: ControlPlane, document: dict[str, Any], words: str | None, parser: str | None
) -> None:
    if words is None:
        assert parser is not None, "what admission lets through the parser must refuse"
        control_plane.api.request("POST", MODELS, document, **DRY)
        return
    with pytest.raises(ApiError) as refused:
        control_plane.api.request("POST", MODELS, document, **DRY)
    assert words in str(refused.value)
    assert refused.value.code in (400, 422)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_what_is_valid_comes_back_as_it_was_meant(
    control_plane: ControlPlane, namespace: str, path: Path
) -> None:
    api = control_plane.api
    document = yaml.safe_load(path.read_text())
    meant = parse(document).spec
    models = f"/apis/lamella.dev/v1alpha1/namespaces/{namespace}/shardedmodels"
    at = f"{models}/{document['metadata']['name']}"
    tried = api.apply(at, document, **DRY)
    assert parse(tried).spec == meant
    made = api.request("POST", models, document, fieldValidation="Strict")
    assert made["spec"]["gateway"]["replicas"] == meant.cluster.gateway.replicas
    told = {key: document[key] for key in ("apiVersion", "kind")}
    status = {"observedGeneration": 1, "ready": "0/1", "conditions": [CONDITION]}
    api.apply(f"{at}/status", {**told, "status": status}, manager="lamella-operator")
    read = api.request("GET", at)
    assert len(read["metadata"]["managedFields"]) == 2
    assert read["status"]["conditions"] == [CONDITION]
    assert parse(read).spec == meant
    # given back whole, it is accepted and nothing changes
    again = api.request("PUT", at, read, fieldValidation="Strict")
    assert again["metadata"]["generation"] == 1


CONDITION = {
    "type": "Ready",
    "status": "False",
    "reason": "Starting",
    "message": "0 of 4 stages are ready",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


def test_a_folder_of_this_machine_is_for_local_runs(control_plane: ControlPlane) -> None:
    for name in LOCAL:
        document = yaml.safe_load((ROOT / "examples" / name).read_text())
        parse(document)
        with pytest.raises(ApiError, match="a cluster knows no relative ones"):
            control_plane.api.request("POST", MODELS, document, **DRY)
