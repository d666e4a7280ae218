"""Parser and API server on the same few thousand manifests: one refuses what the other refuses.

Each place of a manifest that says everything is set to each of many odd values. The few kinds of
faults that a schema cannot see are named here; there are no others.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_control_plane import ApiError, ControlPlane

from lamella_contract.errors import InvalidSpec
from lamella_contract.spec import parse

ROOT = Path(__file__).parents[2]
EVERYTHING = yaml.safe_load((ROOT / "tests" / "cases" / "valid" / "everything.yaml").read_text())
MODELS = "/apis/lamella.dev/v1alpha1/namespaces/default/shardedmodels"
DRY = {"dryRun": "All", "fieldValidation": "Strict"}

# what the parser says of faults that the schema cannot see: keys of maps, the sign of a number in
# them, and quantities beyond 63 bits
BEYOND_THE_SCHEMA = re.compile(
    r"want (a label's key|an amount such as|at most 9223372036854775807)"
)
# what the schema refuses on a cluster only
LOCAL = "a cluster knows no relative ones"

VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 2, 5000, 2**31, 2**63 - 1, 2**63, 1.5),
    *("", "a", "A", "1", "a b", "a/b", "a.b", "a..b", "a@b", "é", "a\n", "x" * 64, "x" * 300),
    *("1Gi", "1GB", "1e3", "0.0", "-1", "+1", "9999E", "Allow", "Exists", "NoSchedule", "cuda"),
    *("hf://a/b", "hf://a/b@c", "file:/a", "file:a", "file://a/b", "pvc://a/b", "oci://a/b"),
    *("/a", "/a/../b", "pvc://a/../b", "hf://" + "a" * 97),
    *([], {}, [{}], ["a"], [1], [None], {"a": "b"}, {"a": 1}, {"a": {}}, {"a": None}),
    *({"lamella.dev/x": "1"}, {"a b": "1"}, {"limits": {"cpu": "x"}}, {"claimName": "a"}),
    *({"name": "a", "key": "b"}, {"emptyDir": {}, "hostPath": "/a"}, {"maxUnavailable": 0}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(at for key, item in pairs for at in places(item, (*path, key)))]
    return [path]


PLACES = [path for path in places(EVERYTHING["spec"]) if path and path[0] != "affinity"]


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(EVERYTHING)
    place = document["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def parser_says(document: dict[str, Any]) -> str:
    try:
        parse(document)
    except InvalidSpec as error:
        return str(error)
    return ""


def server_says(control_plane: ControlPlane, document: dict[str, Any]) -> str:
    try:
        found = control_plane.api.request("POST", MODELS, document, **DRY)
    except ApiError as error:
        return str(error)
    assert BEYOND_THE_SCHEMA.search(parser_says(document)) or not parser_says(found)
    return ""


@pytest.mark.parametrize("field", sorted({path[0] for path in PLACES}))
def test_what_one_refuses_the_other_refuses(control_plane: ControlPlane, field: str) -> None:
    for path in PLACES:
        if path[0] != field:
            continue
        for value in VALUES:
            document = changed(path, value)
            parser, server = parser_says(document), server_says(control_plane, document)
            if BEYOND_THE_SCHEMA.search(parser) or LOCAL in server:
                continue
            assert bool(parser) == bool(server), (path, value, parser, server)
