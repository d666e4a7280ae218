"""The resource's schema and `spec.parse` say the same: keys, bounds, choices, patterns, defaults.

Each part of the schema is tried on the parser, from both sides of its bounds. What the schema says
in CEL is tried on a real API server, by ``tests/kube/test_crd_cases.py``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lamella_contract import names, spec
from lamella_contract.errors import InvalidSpec

CRD = yaml.safe_load((Path(__file__).parents[2] / "crds" / "shardedmodels.yaml").read_text())
VERSION = CRD["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC = SCHEMA["properties"]["spec"]

Path_ = tuple[str, ...]
Schema = dict[str, Any]
ITEM, VALUE = "[]", "{}"
FAR = "zzzzzzzzzz"  # near no key, so that the parser lists those that it knows
SAMPLES = {"uri": "hf://a/b", "hostPath": "/a", "rollout": {"maxSurge": 1}}
PROBES = ("a", "A", "0", "-a", "a-", "a b", "a/b", "a.b", "a..b", "a_b", "a@b", "é", "a\n", "a:b")
PROBES_OF_AMOUNTS = ("1", "1.5", ".5", "1.", "500m", "24Gi", "1e3", "1e-3", "1E3", "1Ei", "1gi")
MORE_PROBES = ("-1", "+1", "Gi", ".", "1e", "1 Gi", "1k", "1K", "1n")


def nodes(schema: Schema, path: Path_ = ()) -> Iterator[tuple[Path_, Schema]]:
    """Every part of a schema with its place."""
    yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from nodes(inner, (*path, key))
    if "items" in schema:
        yield from nodes(schema["items"], (*path, ITEM))
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], (*path, VALUE))


NODES = {".".join(path): (path, schema) for path, schema in nodes(SPEC) if path}


def having(*keys: str) -> list[Any]:
    """Parameters: the parts of the schema that have one of ``keys``."""
    found = [key for key, (_, schema) in NODES.items() if any(key in schema for key in keys)]
    return [pytest.param(*NODES[key], id=key) for key in found]


def sample(schema: Schema, key: str) -> Any:
    """The smallest valid value."""
    if key in SAMPLES:
        return copy.copy(SAMPLES[key])
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("x-kubernetes-int-or-string"):
        return "1Gi"
    match schema["type"]:
        case "object":
            return {
                name: sample(schema["properties"][name], name)
                for name in schema.get("required", ())
            }
        case "array":
            return [sample(schema["items"], ITEM)] * schema.get("minItems", 0)
        case "integer":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case _:
            return "a"


def manifest(path: Path_, value: Any, schema: Schema = SPEC) -> dict[str, Any]:
    """A valid manifest but for ``value`` at ``path``."""
    body: Any = placed(path, value, schema)
    if "model" not in body:
        body["model"] = {"uri": "hf://a/b"}
    meta = {"name": "m"}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "spec": body}


def placed(path: Path_, value: Any, schema: Schema, name: str = "") -> Any:
    """A value of ``schema``, whose key is ``name``, with ``value`` at ``path`` inside."""
    if not path:
        return value
    key, *rest = path
    if key == ITEM:
        return [placed(tuple(rest), value, schema["items"])]
    if key == VALUE:
        return {"a": placed(tuple(rest), value, schema["additionalProperties"])}
    whole = sample(schema, name) | beside(key, value)
    whole[key] = placed(tuple(rest), value, schema["properties"][key], key)
    return whole


def beside(key: str, value: Any) -> dict[str, Any]:
    """What must be said too where ``key`` is ``value``."""
    if key == "queueName":
        return {"gang": "Volcano"}
    return {"queueName": "a"} if (key, value) == ("gang", "Kueue") else {}


def refusal(path: Path_, value: Any) -> str:
    """What the parser says against ``value`` at ``path``; "" when it accepts it."""
    try:
        spec.parse(manifest(path, value))
    except InvalidSpec as error:
        return str(error)
    return ""


def shown(path: Path_) -> str:
    """``("pipeline", "stageSpecs", "[]")`` as the parser writes it."""
    return ".".join(("spec", *path)).replace(".[]", "[0]")


@pytest.mark.parametrize(("path", "schema"), having("properties"))
def test_both_know_the_same_keys(path: Path_, schema: Schema) -> None:
    value = {**sample(schema, ""), FAR: 1}
    known = ", ".join(sorted(schema["properties"]))
    where = f"{shown(path)}.{FAR}"
    assert refusal(path, value) == f"{where}: unknown key; known here: {known}"


def test_both_know_the_same_keys_at_the_top() -> None:
    document = {**manifest((), {}), FAR: 1}
    with pytest.raises(InvalidSpec) as refused:
        spec.parse(document)
    known = ", ".join(sorted(SCHEMA["properties"]))
    assert str(refused.value) == f"{FAR}: unknown key; known here: {known}"
    assert refusal((), {FAR: 1}).endswith(", ".join(sorted(SPEC["properties"])))


@pytest.mark.parametrize(("path", "schema"), [pytest.param(*NODES[key], id=key) for key in NODES])
def test_the_parser_takes_a_value_of_each_kind(path: Path_, schema: Schema) -> None:
    if path == ("cache",):
        return  # the one object that has to say something
    assert refusal(path, sample(schema, path[-1])) == ""


@pytest.mark.parametrize(("path", "schema"), having("minimum", "maximum"))
def test_bounds_agree(path: Path_, schema: Schema) -> None:
    assert schema["format"] == "int32"
    least, most = schema["minimum"], schema.get("maximum", (1 << 31) - 1)
    said = {value: refusal(path, value) for value in (least - 1, least, most, most + 1)}
    assert {value: not text for value, text in said.items()} == {
        least - 1: False,
        least: True,
        most: True,
        most + 1: False,
    }, said


@pytest.mark.parametrize(("path", "schema"), having("enum"))
def test_choices_agree(path: Path_, schema: Schema) -> None:
    assert {value: refusal(path, value) for value in schema["enum"]} == dict.fromkeys(
        schema["enum"], ""
    )
    want = ", ".join(sorted(schema["enum"]))
    said = refusal(path, FAR)
    assert ", ".join(sorted(said.rpartition("want one of ")[2].split(", "))) == want


LONGEST = {
    "uri": lambda size: "file:/" + "a" * (size - 6),
    "hostPath": lambda size: "/" + "a" * (size - 1),
    "topologyKey": lambda size: "a" * (size - 64) + "/" + "a" * 63,
}


@pytest.mark.parametrize(("path", "schema"), having("maxLength"))
def test_lengths_agree(path: Path_, schema: Schema) -> None:
    most = schema["maxLength"]
    of_numbers = schema.get("x-kubernetes-int-or-string", False)
    plain = (
        (lambda size: "1" * 12 + "." + "0" * (size - 14) + "M")
        if of_numbers
        else (lambda size: "a" * size)
    )
    long = LONGEST.get(path[-1], plain)
    assert len(long(most)) == most
    assert [refusal(path, long(size)) == "" for size in (most, most + 1)] == [True, False]
    if schema.get("minLength") or (not of_numbers and path[-1] in ("uri", "hostPath")):
        assert refusal(path, "") != ""


@pytest.mark.parametrize(("path", "schema"), having("pattern"))
def test_patterns_agree(path: Path_, schema: Schema) -> None:
    pattern = re.compile(schema["pattern"].removeprefix("^").removesuffix("$"))
    probes = (*PROBES, *PROBES_OF_AMOUNTS, *MORE_PROBES, "")
    by_schema = {text: bool(pattern.fullmatch(text)) for text in probes}
    assert {text: refusal(path, text) == "" for text in probes} == by_schema
    assert len(set(by_schema.values())) == 2


@pytest.mark.parametrize(("path", "schema"), having("maxItems"))
def test_lengths_of_lists_agree(path: Path_, schema: Schema) -> None:
    item = sample(schema["items"], ITEM)
    for size in {schema.get("minItems", 0), schema["maxItems"]}:
        assert refusal(path, [item] * size) == "", size
    assert refusal(path, [item] * (schema["maxItems"] + 1)) != ""
    if schema.get("minItems"):
        assert refusal(path, []) == f"{shown(path)}: got [], want a list of at least one item"


@pytest.mark.parametrize(("path", "schema"), having("maxProperties"))
def test_sizes_of_maps_agree(path: Path_, schema: Schema) -> None:
    value = "1"
    for size, accepted in ((schema["maxProperties"], True), (schema["maxProperties"] + 1, False)):
        said = refusal(path, {f"a{number}": value for number in range(size)})
        assert (said == "") is accepted, said


def defaulted(schema: Schema, value: Any) -> Any:
    """``value`` as the API server completes it."""
    if isinstance(value, dict) and "properties" in schema:
        whole = dict(value)
        for key, inner in schema["properties"].items():
            if key not in whole and "default" in inner:
                whole[key] = inner["default"]
            if key in whole:
                whole[key] = defaulted(inner, whole[key])
        return whole
    if isinstance(value, list):
        return [defaulted(schema["items"], item) for item in value]
    return value


EMPTY = ("gateway", "rollout", "recovery", "scheduling")


@pytest.mark.parametrize("given", [{}, *({key: {}} for key in EMPTY)], ids=["nothing", *EMPTY])
def test_defaults_agree(given: dict[str, Any]) -> None:
    whole = defaulted(SPEC, {**given, "model": {"uri": "hf://a/b"}})
    assert set(whole) > {"model", "replicas", *EMPTY}
    assert spec.parse(manifest((), whole)) == spec.parse(manifest((), {}))


def test_nothing_is_defaulted_inside_lists() -> None:
    for path, schema in NODES.values():
        assert not (ITEM in path and "default" in schema), path


def test_nothing_is_open_but_what_is_kubernetes_own() -> None:
    open_ = {
        path for path, schema in NODES.values() if "x-kubernetes-preserve-unknown-fields" in schema
    }
    kinds = ("nodeAffinity", "podAffinity", "podAntiAffinity")
    assert open_ == {("affinity", kind) for kind in kinds}


def test_each_field_is_explained() -> None:
    for path, schema in nodes(SCHEMA):
        if path[:1] == ("metadata",) or not path or path[-1] in (ITEM, VALUE):
            continue
        text = schema.get("description", "")
        assert len(text) >= 5, path
        assert text.endswith((".", "v1alpha1", "ShardedModel")), path


def test_what_clients_rely_on() -> None:
    assert (CRD["spec"]["group"], VERSION["name"]) == tuple(names.API_VERSION.split("/"))
    assert CRD["spec"]["names"]["kind"] == names.KIND
    assert CRD["metadata"]["name"] == f"{CRD['spec']['names']['plural']}.{names.GROUP}"
    assert VERSION["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    columns = [(each["name"], each["jsonPath"]) for each in VERSION["additionalPrinterColumns"]]
    assert columns == [
        ("Ready", ".status.ready"),
        ("Stages", ".status.stages"),
        ("Model", ".spec.model.uri"),
        ("Reason", ".status.reason"),
        ("URL", ".status.url"),
        ("Age", ".metadata.creationTimestamp"),
    ]
