"""What only a cluster heeds in a manifest: what each part means, and that any valid one is kept.

Refusals stand in ``tests/cases/invalid``. ``pytest tests/contract/test_spec_cluster.py``
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lamella_contract.spec import parse
from lamella_contract.spec_cluster import (
    CacheSpec,
    ClusterSpec,
    GatewaySpec,
    ImagesSpec,
    RecoverySpec,
    RolloutSpec,
    SchedulingSpec,
)
from lamella_contract.spec_kube import SecretKey

GIB = 1 << 30
VALID = Path(__file__).parents[1] / "cases" / "valid"
PLAIN = ClusterSpec()


def cluster(**spec: Any) -> ClusterSpec:
    document = {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {"name": "m"},
        "spec": {"model": {"uri": "hf://a/b"}, **spec},
    }
    return parse(document).spec.cluster


def test_nothing_said_means_this() -> None:
    assert (
        cluster()
        == PLAIN
        == ClusterSpec(
            images=ImagesSpec(None, None, None),
            image_pull_secrets=(),
            cache=CacheSpec("emptyDir", None, "", None, ""),
            affinity={},
            priority_class_name="",
            runtime_class_name="",
            pod_labels={},
            pod_annotations={},
            rollout=RolloutSpec(1, 0),
            recovery=RecoverySpec(5, 10),
            scheduling=SchedulingSpec(300, "kubernetes.io/hostname"),
            gateway=GatewaySpec(2, None, {}, 600),
            drain_s=30,
            paused=False,
            revision_history_limit=3,
            disruption="Allow",
        )
    )


def test_everything_said_means_this() -> None:
    made = parse(yaml.safe_load((VALID / "everything.yaml").read_text())).spec.cluster
    digest = "0123456789abcdef" * 4
    assert dataclasses.replace(made, affinity={}) == ClusterSpec(
        images=ImagesSpec(
            f"registry.example.com:5000/lamella/worker@sha256:{digest}",
            "lamella-operator",
            "Always",
        ),
        image_pull_secrets=("registry", "registry.example.com"),
        cache=CacheSpec("ephemeralClaim", 80 * GIB, storage_class="local.fast"),
        priority_class_name="inference",
        runtime_class_name="nvidia",
        pod_labels={"team": "search", "example.com/cost-centre": "42"},
        pod_annotations={"sidecar.istio.io/inject": "false", "note": "anything: at all\n"},
        rollout=RolloutSpec(0, 2),
        recovery=RecoverySpec(0, 60),
        scheduling=SchedulingSpec(
            60, "topology.kubernetes.io/rack", "Kueue", "team-a", "fast.scheduler"
        ),
        gateway=GatewaySpec(
            replicas=3,
            api_keys_secret=SecretKey("clients", "keys.txt"),
            resources={"limits": {"memory": "2Gi"}, "requests": {"cpu": "1500m"}},
            request_deadline_s=120,
        ),
        drain_s=0,
        paused=True,
        revision_history_limit=0,
        key_generation=7,
        disruption="Never",
    )
    assert set(made.affinity) == {"nodeAffinity", "podAffinity", "podAntiAffinity"}


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cache that ends with the pod": ({"cache": {"emptyDir": {}}}, {"cache": CacheSpec()}),
    "cache of a size": (
        {"cache": {"emptyDir": {"sizeLimit": "80Gi"}}},
        {"cache": CacheSpec("emptyDir", 80 * GIB)},
    ),
    "cache on a claim": (
        {"cache": {"claimName": "shared"}},
        {"cache": CacheSpec("claimName", claim="shared")},
    ),
    "cache on the node": (
        {"cache": {"hostPath": "/var/cache"}},
        {"cache": CacheSpec("hostPath", path="/var/cache")},
    ),
    "cache on volumes of the default class": (
        {"cache": {"ephemeralClaim": {"size": 1}}},
        {"cache": CacheSpec("ephemeralClaim", 1)},
    ),
    "other kinds of cache that are null": (
        {"cache": {"emptyDir": None, "claimName": "a", "hostPath": None}},
        {"cache": CacheSpec("claimName", claim="a")},
    ),
    "one image": (
        {"images": {"worker": "w:1"}},
        {"images": ImagesSpec(worker="w:1")},
    ),
    "a rollout that takes none away": (
        {"rollout": {"maxUnavailable": 0, "maxSurge": 1}},
        {"rollout": RolloutSpec(0, 1)},
    ),
    "a rollout that adds some": ({"rollout": {"maxSurge": 1}}, {"rollout": RolloutSpec(1, 1)}),
    "no second chance": ({"recovery": {"maxRestarts": 0}}, {"recovery": RecoverySpec(0, 10)}),
    "racks": (
        {"scheduling": {"topologyKey": "rack"}},
        {"scheduling": SchedulingSpec(300, "rack")},
    ),
    "one gateway": ({"gateway": {"replicas": 1}}, {"gateway": GatewaySpec(1)}),
    "no draining": ({"drainSeconds": 0}, {"drain_s": 0}),
    "not paused": ({"paused": False}, {}),
    "no history": ({"revisionHistoryLimit": 0}, {"revision_history_limit": 0}),
}


@pytest.mark.parametrize(("said", "meant"), PARTS.values(), ids=PARTS)
def test_each_part(said: dict[str, Any], meant: dict[str, Any]) -> None:
    assert cluster(**said) == dataclasses.replace(PLAIN, **meant)


def test_lists_and_objects_are_copies() -> None:
    labels = {"team": "a"}
    made = cluster(podLabels=labels)
    labels["team"] = "b"
    assert made.pod_labels == {"team": "a"}


# -- any valid manifest means what it says -------------------------------------------------------

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]{1,9})?", fullmatch=True)
LABELS = st.dictionaries(
    st.from_regex(
        r"([a-z0-9]{1,9}\.example/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,9}[A-Z])?", fullmatch=True
    ),
    st.from_regex(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[a-z])?)?", fullmatch=True),
    max_size=4,
)
AMOUNTS = st.one_of(
    st.integers(0, (1 << 63) - 1),
    st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,3})?(m|k|M|Gi)?", fullmatch=True),
)
RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        kind: st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), AMOUNTS)
        for kind in ("limits", "requests")
    },
)
BYTES = st.integers(1, (1 << 63) - 1)
CACHES = st.one_of(
    st.just((None, CacheSpec())),
    NAMES.map(lambda name: ({"claimName": name}, CacheSpec("claimName", claim=name))),
    BYTES.map(lambda size: ({"emptyDir": {"sizeLimit": size}}, CacheSpec("emptyDir", size))),
    st.tuples(BYTES, NAMES).map(
        lambda each: (
            {"ephemeralClaim": {"size": str(each[0]), "storageClassName": each[1]}},
            CacheSpec("ephemeralClaim", each[0], storage_class=each[1]),
        )
    ),
)


@given(
    cache=CACHES,
    secrets=st.lists(NAMES, max_size=4),
    labels=LABELS,
    notes=st.dictionaries(st.sampled_from(["a", "example.com/b"]), st.text(max_size=20)),
    surge=st.integers(1, 1000),
    unavailable=st.integers(0, 1000),
    restarts=st.integers(0, 1000),
    silence=st.integers(2, 3600),
    deadline=st.integers(1, (1 << 31) - 1),
    resources=RESOURCES,
    keys=st.none() | NAMES,
    drain=st.integers(0, 3600),
    paused=st.booleans(),
)
def test_any_valid_manifest_means_what_it_says(
    cache: tuple[dict[str, Any] | None, CacheSpec],
    secrets: list[str],
    labels: dict[str, str],
    notes: dict[str, str],
    surge: int,
    unavailable: int,
    restarts: int,
    silence: int,
    deadline: int,
    resources: dict[str, Any],
    keys: str | None,
    drain: int,
    paused: bool,
) -> None:
    made = cluster(
        cache=cache[0],
        imagePullSecrets=[{"name": name} for name in secrets],
        podLabels=labels,
        podAnnotations=notes,
        rollout={"maxSurge": surge, "maxUnavailable": unavailable},
        recovery={"maxRestarts": restarts, "replaceAfterSeconds": silence},
        gateway={
            "requestDeadlineSeconds": deadline,
            "resources": resources,
            "apiKeysSecretRef": None if keys is None else {"name": keys, "key": "k"},
        },
        drainSeconds=drain,
        paused=paused,
    )
    assert made == dataclasses.replace(
        PLAIN,
        cache=cache[1],
        image_pull_secrets=tuple(secrets),
        pod_labels=labels,
        pod_annotations=notes,
        rollout=RolloutSpec(unavailable, surge),
        recovery=RecoverySpec(restarts, silence),
        gateway=GatewaySpec(
            api_keys_secret=None if keys is None else SecretKey(keys, "k"),
            resources=resources,
            request_deadline_s=deadline,
        ),
        drain_s=drain,
        paused=paused,
    )
