"""Whether the cluster's CRD is new enough; and that ours is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamella_contract import names
from lamella_operator.reconciling import schema
from lamella_operator.reconciling.kinds import BY_NAME, OWNED
from lamella_operator.reconciling.permissions import PERMISSIONS

CRD = Path(__file__).parents[3] / "crds" / "shardedmodels.yaml"


def served() -> dict[str, Any]:
    """What the API server serves for the CRD of this repository."""
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    one = {
        **version["schema"]["openAPIV3Schema"],
        "x-kubernetes-group-version-kind": [{"group": names.GROUP, "kind": names.KIND}],
    }
    return {"components": {"schemas": {"other": {}, "dev.lamella.ShardedModel": one}}}


def test_our_own_crd_has_all_that_the_operator_needs() -> None:
    assert schema.compare(served(), schema.NEEDED) == schema.Schema(True)


def test_every_field_of_the_manifest_is_asked_for() -> None:
    (one,) = [x for x in served()["components"]["schemas"].values() if x]
    spec = {f"spec.{key}" for key in one["properties"]["spec"]["properties"]}
    asked = {".".join(path.split(".")[:2]) for path in schema.NEEDED}
    assert spec <= asked


@pytest.mark.parametrize(
    "path", ["spec.cache", "spec.pipeline.stageMemory", "status.pipelines", "spec.model.uri"]
)
def test_a_field_that_is_not_there_is_named(path: str) -> None:
    document = copy.deepcopy(served())
    inner = document["components"]["schemas"]["dev.lamella.ShardedModel"]
    *parents, last = path.split(".")
    for key in parents:
        inner = inner["properties"][key]
    del inner["properties"][last]
    found = schema.compare(document, schema.NEEDED)
    assert found.missing == (path,)
    assert path in found.problem
    assert "apply the CRD" in found.problem


@pytest.mark.parametrize("document", [{}, {"components": 3}, {"components": {"schemas": {"a": 1}}}])
def test_no_crd(document: dict[str, Any]) -> None:
    found = schema.compare(document, schema.NEEDED)
    assert not found.installed
    assert "is not installed" in found.problem


def test_an_open_schema_has_everything() -> None:
    document = served()
    document["components"]["schemas"]["dev.lamella.ShardedModel"] = {
        schema.OPEN: True,
        "x-kubernetes-group-version-kind": [{"kind": names.KIND}],
    }
    assert not schema.compare(document, schema.NEEDED).problem


def test_permissions_never_list_secrets_or_write_specs_and_cover_what_is_owned() -> None:
    assert not {("list", "secrets"), ("watch", "secrets")} & {one[:2] for one in PERMISSIONS}
    assert not [one for one in PERMISSIONS if one[1] == "lamella.dev/shardedmodels" and one[0] in
                ("update", "patch", "create", "delete")]  # fmt: skip
    for kind in OWNED:
        group = kind.api_version.rpartition("/")[0]
        resource = f"{group}/{kind.plural}" if group else kind.plural
        assert {"list", "watch", "create", "delete"} <= {
            verb for verb, one, _ in PERMISSIONS if one == resource
        }
    assert {"Pod", "Secret", "Event"} <= set(BY_NAME)
