"""Manifests: what a full one means, and each fault's message word by word.

``pytest tests/contract/test_spec.py``
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella_contract.errors import InvalidSpec
from lamella_contract.model_uri import ModelUri, parse_model_uri
from lamella_contract.spec import (
    ContextSpec,
    ModelSource,
    PipelineSpec,
    SecretKey,
    ShardedModel,
    ShardedModelSpec,
    StageSpec,
    parse,
)
from lamella_contract.units import human, quantity

GIB = 1 << 30


def manifest(**spec: object) -> dict:
    return {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {"name": "qwen3-32b"},
        "spec": {"model": {"uri": "hf://Qwen/Qwen3-32B"}, **spec},
    }


def changed(path: str, value: object) -> dict:
    """A manifest with one field set, or removed when ``value`` is None."""
    document = copy.deepcopy(manifest())
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place.setdefault(key, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def test_the_smallest_manifest() -> None:
    assert parse(manifest()) == ShardedModel(
        name="qwen3-32b",
        namespace="default",
        spec=ShardedModelSpec(
            model=ModelSource("hf://Qwen/Qwen3-32B", None, "qwen3-32b"),
            pipeline=PipelineSpec(),
            replicas=1,
            context=ContextSpec(),
        ),
    )


def test_a_full_manifest() -> None:
    document = {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {
            "name": "qwen",
            "namespace": "models",
            "labels": {"team": "a"},
            "annotations": {"why": "b"},
            "uid": "set by the server",
        },
        "status": {"read": "back from a cluster"},
        "spec": {
            "model": {
                "uri": "hf://Qwen/Qwen3-32B",
                "revision": "main",
                "servedName": "qwen3",
                "tokenSecretRef": {"name": "hub", "key": "token"},
            },
            "pipeline": {
                "stages": 2,
                "stageMemory": "24Gi",
                "split": [40, 24],
                "dtype": "bfloat16",
                "stageSpecs": [
                    {"memory": "80Gi", "nodeSelector": {"gpu": "big"}},
                    {"resources": {"limits": {"gpu": 1}}, "tolerations": [{"key": "gpu"}]},
                ],
            },
            "replicas": 0,
            "context": {"maxLength": 32768, "maxSequences": 16},
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"operator": "Exists"}],
        },
    }
    before = copy.deepcopy(document)
    made = parse(document)
    assert document == before
    assert made == ShardedModel(
        name="qwen",
        namespace="models",
        labels={"team": "a"},
        annotations={"why": "b"},
        spec=ShardedModelSpec(
            model=ModelSource("hf://Qwen/Qwen3-32B", "main", "qwen3", SecretKey("hub", "token")),
            pipeline=PipelineSpec(
                stages=2,
                stage_memory=24 * GIB,
                split=(40, 24),
                dtype="bfloat16",
                stage_specs=(
                    StageSpec(80 * GIB, {}, {"gpu": "big"}, ()),
                    StageSpec(None, {"limits": {"gpu": 1}}, {}, ({"key": "gpu"},)),
                ),
            ),
            replicas=0,
            context=ContextSpec(32768, 16),
            resources={"limits": {"nvidia.com/gpu": 1}},
            node_selector={"zone": "a"},
            tolerations=({"operator": "Exists"},),
        ),
    )
    assert made.spec.pipeline.memory() == (80 * GIB, 24 * GIB)
    assert made.spec.model.parsed == ModelUri("hf", "Qwen/Qwen3-32B", "main")


STAGES = {
    "undeclared": ({}, None, None),
    "declared": ({"stages": 4, "stageMemory": "24Gi"}, 4, 24 * GIB),
    "said by the split": ({"split": [10, 8]}, 2, None),
    "said by the stages": (
        {"stageSpecs": [{"memory": "2Gi"}, {"memory": "1Gi"}]},
        2,
        (2 * GIB, GIB),
    ),
    "said twice alike": ({"stages": 2, "split": [1, 2]}, 2, None),
    "null is absent": ({"stages": None, "split": None, "stageMemory": None}, None, None),
}


@pytest.mark.parametrize(("pipeline", "stages", "memory"), STAGES.values(), ids=STAGES)
def test_stages_and_their_memory(pipeline: dict, stages: int | None, memory: object) -> None:
    made = parse(manifest(pipeline=pipeline)).spec.pipeline
    assert (made.stages, made.memory()) == (stages, memory)


URIS = "hf://org/name[@revision], file:/path, pvc://claim/path or oci://registry/name:tag"
NAME = "at most 50 lower-case letters, digits and dashes that begin with a letter"
REFUSALS = {
    "no mapping": ([], "manifest: got [], want an object"),
    "empty file": (None, "manifest: got nothing, want an object"),
    "apiVersion": (
        changed("apiVersion", "v1"),
        "apiVersion: got 'v1', want lamella.dev/v1alpha1",
    ),
    "kind": (changed("kind", "Deployment"), "kind: got 'Deployment', want ShardedModel"),
    "no metadata": (changed("metadata", None), "metadata: got nothing, want an object with name"),
    "no name": (changed("metadata", {}), f"metadata.name: got nothing, want {NAME}"),
    "bad name": (changed("metadata.name", "Qwen_3"), f"metadata.name: got 'Qwen_3', want {NAME}"),
    "number as name": (changed("metadata.name", 3), f"metadata.name: got 3, want {NAME}"),
    "long name": (
        changed("metadata.name", "a" * 51),
        f"metadata.name: got '{'a' * 51}', want {NAME}",
    ),
    "name that begins with a digit": (
        changed("metadata.name", "3b"),
        f"metadata.name: got '3b', want {NAME}",
    ),
    "label": (
        changed("metadata.labels", {"a": 1}),
        "metadata.labels['a']: got 1, want a string",
    ),
    "no spec": (changed("spec", None), "spec: got nothing, want an object with model"),
    "no model": (changed("spec.model", None), "spec.model: got nothing, want an object with uri"),
    "no uri": (changed("spec.model", {}), f"spec.model.uri: got nothing, want {URIS}"),
    "bare path": (
        changed("spec.model.uri", "models/qwen"),
        f"spec.model.uri: got 'models/qwen', want {URIS}",
    ),
    "unknown scheme": (
        changed("spec.model.uri", "s3://bucket"),
        f"spec.model.uri: got 's3://bucket', want {URIS}",
    ),
    "hf without name": (
        changed("spec.model.uri", "hf://"),
        "spec.model.uri: got 'hf://', want hf://org/name[@revision]",
    ),
    "hf climbing": (
        changed("spec.model.uri", "hf://a/..b"),
        "spec.model.uri: got 'hf://a/..b', want hf://org/name[@revision]",
    ),
    "hf empty revision": (
        changed("spec.model.uri", "hf://a/b@"),
        "spec.model.uri: got 'hf://a/b@', want a branch, tag or commit behind @",
    ),
    "two revisions": (
        manifest(model={"uri": "hf://a/b@v1", "revision": "v2"}),
        "spec.model.revision: got 'v2', want what spec.model.uri says: 'v1'",
    ),
    "revision of a folder": (
        manifest(model={"uri": "file:/m", "revision": "v2"}),
        "spec.model.revision: got 'v2', want none: a file address has no revisions",
    ),
    "token of a folder": (
        manifest(model={"uri": "file:/m", "tokenSecretRef": {"name": "a", "key": "b"}}),
        "spec.model.tokenSecretRef: got 'a', want none: only hf:// takes a token",
    ),
    "secret without key": (
        manifest(model={"uri": "hf://a/b", "tokenSecretRef": {"name": "a"}}),
        "spec.model.tokenSecretRef.key: got nothing, want a key of at most 253 letters, digits, "
        "dashes, dots and underscores",
    ),
    "unknown key, near": (
        manifest(pipeline={"stage": 4}),
        "spec.pipeline.stage: unknown key; did you mean 'stages'?",
    ),
    "unknown key, other case": (
        manifest(model={"URI": "x"}),
        "spec.model.URI: unknown key; did you mean 'uri'?",
    ),
    "unknown key, far": (
        manifest(context={"zzz": 1}),
        "spec.context.zzz: unknown key; known here: maxLength, maxSequences",
    ),
    "unknown top key": (
        {**manifest(), "sepc": {}},
        "sepc: unknown key; did you mean 'spec'?",
    ),
    "unknown key of a stage": (
        manifest(pipeline={"stageSpecs": [{}, {"memroy": "1Gi"}]}),
        "spec.pipeline.stageSpecs[1].memroy: unknown key; did you mean 'memory'?",
    ),
    "no stages": (
        manifest(pipeline={"stages": 0}),
        "spec.pipeline.stages: got 0, want a whole number from 1 to 128",
    ),
    "true as stages": (
        manifest(pipeline={"stages": True}),
        "spec.pipeline.stages: got True, want a whole number from 1 to 128",
    ),
    "text as stages": (
        manifest(pipeline={"stages": "4"}),
        "spec.pipeline.stages: got '4', want a whole number from 1 to 128",
    ),
    "stages and split": (
        manifest(pipeline={"stages": 3, "split": [10, 8]}),
        "spec.pipeline.split: got 2, want 3 counts, as there are stages",
    ),
    "stages and stageSpecs": (
        manifest(pipeline={"split": [10, 8], "stageSpecs": [{}]}),
        "spec.pipeline.stageSpecs: got 1, want 2 stages, as there are stages",
    ),
    "empty split": (
        manifest(pipeline={"split": []}),
        "spec.pipeline.split: got [], want a list of at least one item",
    ),
    "zero in split": (
        manifest(pipeline={"split": [4, 0]}),
        "spec.pipeline.split[1]: got 0, want a whole number of at least 1",
    ),
    "dtype": (
        manifest(pipeline={"dtype": "int4"}),
        "spec.pipeline.dtype: got 'int4', want one of bfloat16, float16, float32",
    ),
    "memory of some stages": (
        manifest(pipeline={"stageSpecs": [{"memory": "1Gi"}, {}]}),
        "spec.pipeline.stageSpecs[1].memory: got nothing, want bytes, as other stages have them",
    ),
    "memory unit": (
        manifest(pipeline={"stageMemory": "24GB"}),
        "spec.pipeline.stageMemory: got '24GB', want bytes such as 24Gi, 500M or 1073741824; "
        "did you mean 24G or 24Gi?",
    ),
    "no memory": (
        manifest(pipeline={"stageMemory": 0}),
        "spec.pipeline.stageMemory: got 0, want more than 0 bytes",
    ),
    "replicas": (
        manifest(replicas=-1),
        "spec.replicas: got -1, want a whole number from 0 to 1000",
    ),
    "context": (
        manifest(context={"maxLength": 1.5}),
        "spec.context.maxLength: got 1.5, want a whole number of at least 1",
    ),
    "resources": (manifest(resources=[1]), "spec.resources: got [1], want an object"),
    "tolerations": (
        manifest(tolerations=[1]),
        "spec.tolerations[0]: got 1, want an object",
    ),
    "node selector": (
        manifest(nodeSelector={"gpu": True}),
        "spec.nodeSelector['gpu']: got True, want a string",
    ),
}


@pytest.mark.parametrize(("document", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(document: object, message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse(document)
    assert str(caught.value) == message
    assert message.startswith(caught.value.path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
PATHS = (
    "metadata spec spec.model spec.model.uri spec.model.revision spec.pipeline spec.context "
    "spec.pipeline.stages spec.pipeline.split spec.pipeline.stageSpecs spec.pipeline.stageMemory "
    "spec.replicas spec.resources spec.nodeSelector spec.tolerations metadata.name metadata.labels"
)


@given(path=st.sampled_from(PATHS.split()), value=JSON.filter(lambda x: x is not None))
def test_nothing_but_invalid_spec_comes_out(path: str, value: object) -> None:
    try:
        made = parse(changed(path, value))
    except InvalidSpec:
        return
    assert isinstance(made, ShardedModel)


MODEL_URIS = {
    "hf://Qwen/Qwen3-32B": (ModelUri("hf", "Qwen/Qwen3-32B"), "Qwen3-32B"),
    "hf://gpt2": (ModelUri("hf", "gpt2"), "gpt2"),
    "hf://a/b.c@refs/pr/1": (ModelUri("hf", "a/b.c", "refs/pr/1"), "b.c"),
    "file:/models/qwen": (ModelUri("file", "/models/qwen"), "qwen"),
    "file:/models/qwen/": (ModelUri("file", "/models/qwen/"), "qwen"),
    "file:///models/q.gguf": (ModelUri("file", "/models/q.gguf"), "q.gguf"),
    "file:./qwen": (ModelUri("file", "./qwen"), "qwen"),
    "file:../a@b": (ModelUri("file", "../a@b"), "a@b"),
    "pvc://claim/models/qwen": (ModelUri("pvc", "claim", subpath="models/qwen"), "qwen"),
    "pvc://claim": (ModelUri("pvc", "claim"), "claim"),
    "oci://ghcr.io/org/qwen:v1": (ModelUri("oci", "ghcr.io/org/qwen:v1"), "qwen"),
    "oci://host:5000/qwen@sha256:ab": (ModelUri("oci", "host:5000/qwen@sha256:ab"), "qwen"),
}


@pytest.mark.parametrize(("text", "expected"), MODEL_URIS.items(), ids=MODEL_URIS)
def test_model_addresses(text: str, expected: tuple[ModelUri, str]) -> None:
    uri = parse_model_uri(text)
    assert (uri, uri.default_name) == expected
    assert parse_model_uri(str(uri)) == uri


BAD_URIS = ("file:", "file://host/path", "file:a\0b", "hf:/a/b", "hf://a/b/c", "hf://-a/b")
MORE_BAD_URIS = ("pvc://", "pvc://Claim/x", "pvc://claim/../x", "oci://", "oci://UPPER", "", "hf")


@pytest.mark.parametrize("text", [*BAD_URIS, *MORE_BAD_URIS, None, 3])
def test_addresses_of_nothing_are_refused(text: object) -> None:
    with pytest.raises(InvalidSpec, match=r"^spec\.model\.uri: got "):
        parse_model_uri(text)


QUANTITIES = {
    "24Gi": 24 * GIB,
    "1.5Gi": 3 * GIB // 2,
    "500M": 500_000_000,
    "1k": 1000,
    "1Ki": 1024,
    "2e9": 2_000_000_000,
    "2E+9": 2_000_000_000,
    "1E": 10**18,
    "1Ei": 1 << 60,
    "0.1": 1,  # rounded up, as Kubernetes does
    ".5Ki": 512,
    "7": 7,
    "0": 0,
    42: 42,
}


@pytest.mark.parametrize(("text", "expected"), QUANTITIES.items(), ids=str)
def test_quantities(text: object, expected: int) -> None:
    assert quantity(text) == expected


BAD_QUANTITIES = ("", "Gi", "-1Gi", "24 Gi", "24gi", "24GB", "500m", "1e", "1e-3", "1e99", "8Ei")


@pytest.mark.parametrize("value", [*BAD_QUANTITIES, "٣", 1.5, True, None, -1, 1 << 63])
def test_no_quantities(value: object) -> None:
    with pytest.raises(InvalidSpec, match=r"^here: got "):
        quantity(value, "here")


@given(st.integers(0, (1 << 63) - 1))
def test_plain_bytes_are_themselves(size: int) -> None:
    assert quantity(size) == quantity(str(size)) == size


SIZES = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 25_769_803_776: "24.0 GiB", 3 << 40: "3.0 TiB"}


@pytest.mark.parametrize(("size", "text"), SIZES.items(), ids=str)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text
