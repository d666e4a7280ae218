"""docs/operations.md names what there is: every reason, every permission, values that exist."""

from __future__ import annotations

import re

import yaml
from chart_rendering import CHART, ROOT

from lamella_operator import reasons
from lamella_operator.reconciling.permissions import PERMISSIONS

PAGE = (ROOT / "docs" / "operations.md").read_text()


def _rows(head: str) -> list[list[str]]:
    """Cells of the table whose first column is called ``head``."""
    table = re.search(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]


def test_every_reason_is_explained_once() -> None:
    named = [name for row in _rows("REASON") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(reasons.ALL)


def test_the_permissions_are_those_that_are_asked_for() -> None:
    scopes = {"models' namespaces": "models", "the operator's namespace": "own"}
    told = {
        (verb, resource.strip("`"), scopes.get(where, "cluster"))
        for resource, verbs, where, _ in _rows("resource")
        for verb in verbs.split(", ")
    }
    more = {("update", "lamella.dev/shardedmodels/finalizers", "models")}
    assert told == {*PERMISSIONS} | more


def test_values_that_are_named_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in re.findall(r"`((?:models|image|workerImage|prePull|rbac|crds)\.[\w.]+)`", PAGE):
        found = values
        for key in path.split("."):
            assert key in found, path
            found = found[key]
