"""Manifests in ``tests/cases`` and the samples: what the parser says of each, word by word.

The API server is asked the same questions by ``tests/kube/test_crd_cases.py``.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lamella_contract.errors import InvalidSpec
from lamella_contract.spec import parse

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "cases"
SAMPLES = [ROOT / "shardedmodel.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
VALID = [*sorted((CASES / "valid").glob("*.yaml")), *SAMPLES]
BASE = {
    "apiVersion": "lamella.dev/v1alpha1",
    "kind": "ShardedModel",
    "metadata": {"name": "m"},
    "spec": {"model": {"uri": "hf://Qwen/Qwen3-32B"}},
}
SERVER = {
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "deletionTimestamp": "2026-01-01T00:00:00Z",
    "deletionGracePeriodSeconds": 0,
    "finalizers": ["example.com/f"],
    "generation": 3,
    "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
    "ownerReferences": [{"kind": "Application", "name": "a"}],
    "resourceVersion": "1",
    "selfLink": "/apis",
    "uid": "6f5a",
}


def invalid() -> list[Any]:
    """Parameters: every case of every file, in a manifest that is valid but for it."""
    found = []
    for path in sorted((CASES / "invalid").glob("*.yaml")):
        for case in yaml.safe_load(path.read_text()):
            name, said = case.pop("case"), case.pop("parser")
            case.pop("server")
            whole = {key: value for key, value in {**BASE, **case}.items() if value is not None}
            found.append(pytest.param(whole, said, id=f"{path.stem}: {name}"))
    return found


INVALID = invalid()


@pytest.mark.parametrize(("document", "message"), INVALID)
def test_what_is_wrong_is_said_word_by_word(document: object, message: str | None) -> None:
    if message is None:  # of a cluster's concern only
        parse(document)
        return
    with pytest.raises(InvalidSpec) as refused:
        parse(document)
    assert str(refused.value) == message
    assert message.startswith(refused.value.path)


def test_no_case_stands_twice() -> None:
    ids = [case.id for case in INVALID]
    assert len(set(ids)) == len(ids) > 100


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_manifests_parse_also_when_they_come_back_from_a_server(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    before = copy.deepcopy(document)
    made = parse(document)
    assert document == before
    meta = {**document["metadata"], **SERVER, "namespace": "default"}
    assert parse({**document, "metadata": meta, "status": {"ready": "1/1"}}) == made


EVERYTHING = yaml.safe_load((CASES / "valid" / "everything.yaml").read_text())


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(at for key, item in pairs for at in places(item, (*path, key)))]
    return [path]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(at=st.sampled_from(places(EVERYTHING)[1:]), value=JSON)
def test_nothing_but_invalid_spec_comes_out(at: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(EVERYTHING)
    place = document
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    try:
        made = parse(document)
    except InvalidSpec:
        return
    assert parse(document) == made
