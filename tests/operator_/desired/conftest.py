"""Cases of the golden manifests: models of every scheme, cache and shape."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from lamella_operator.desired import children, gangs, inspector, pods, revisions
from lamella_operator.settings import Settings

SETTINGS = Settings(worker_image="registry.test/worker:1", operator_image="registry.test/op:1")
EVERYTHING = dataclasses.replace(
    SETTINGS,
    hub_endpoint="https://mirror.test:8443",
    proxy=(("HTTPS_PROXY", "http://user:pa$$(x)@proxy.test:3128"), ("NO_PROXY", "10.0.0.0/8")),
    ca_config_map="corporate-ca",
    image_pull_secrets=("registry",),
    pull_policy="IfNotPresent",
    metrics_namespace="monitoring",
    restrict_egress=True,
    allow_host_path=True,
    priority_class="models",
)
GPU = {"limits": {"nvidia.com/gpu": 1}}

CASES: Mapping[str, Mapping[str, Any]] = {
    "gpu-hub-4-stages": {
        "body": {
            "model": {
                "uri": "hf://Qwen/Qwen3-32B",
                "revision": "main",
                "tokenSecretRef": {"name": "hub", "key": "hf"},
            },
            "pipeline": {"stages": 4, "stageMemory": "24Gi"},
            "replicas": 2,
            "context": {"maxLength": 8192, "maxSequences": 16},
            "resources": GPU,
        },
    },
    "cpu-file-2-stages": {
        "body": {
            "model": {"uri": "file:/models/tiny"},
            "pipeline": {"split": [5, 3], "device": "cpu"},
            "resources": {"limits": {"cpu": "1500m"}},
            "drainSeconds": 5,
        },
        "commit": "",
    },
    "pvc-claim-cache": {
        "body": {
            "model": {"uri": "pvc://models/qwen/qwen3"},
            "pipeline": {"stages": 2},
            "cache": {"claimName": "slices"},
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "models", "operator": "Exists"}],
            "resources": {"requests": {"cpu": "2", "memory": "9Gi"}},
        },
    },
    "oci-ephemeral-cache": {
        "body": {
            "model": {"uri": "oci://registry.test/models/qwen3:1"},
            "pipeline": {"stages": 2, "stageMemory": "16Gi"},
            "cache": {"ephemeralClaim": {"size": "50Gi", "storageClassName": "fast"}},
            "images": {"worker": "mirror.test/worker@sha256:abc", "pullPolicy": "Always"},
            "resources": {"limits": {"amd.com/gpu": 1, "memory": "6Gi"}},
            "runtimeClassName": "amd",
            "disruption": "Never",
        },
    },
    "unequal-stages": {
        "body": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "pipeline": {
                "stageSpecs": [
                    {
                        "memory": "80Gi",
                        "resources": {"limits": {"nvidia.com/gpu": 1}},
                        "nodeSelector": {"gpu": "h100"},
                        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                    },
                    {"memory": "8Gi", "resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}},
                    {"memory": "24Gi"},
                ]
            },
            "resources": GPU,
            "nodeSelector": {"gpu": "a10"},
        },
    },
    "gang-of-kueue": {
        "body": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "pipeline": {"stages": 2, "stageMemory": "24Gi"},
            "resources": GPU,
            "scheduling": {"gang": "Kueue", "queueName": "team-a"},
            "podLabels": {"kueue.x-k8s.io/queue-name": "mine"},
        },
    },
    "gang-of-volcano": {
        "body": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "pipeline": {"stages": 2, "stageMemory": "24Gi"},
            "resources": GPU,
            "scheduling": {"gang": "Volcano", "queueName": "team-a"},
            "priorityClassName": "urgent",
        },
    },
    "gang-of-coscheduling": {
        "body": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "pipeline": {"stages": 2, "stageMemory": "24Gi"},
            "resources": GPU,
            "scheduling": {"gang": "Coscheduling", "schedulerName": "gangs"},
        },
    },
    "single-stage": {
        "body": {"model": {"uri": "hf://Qwen/Qwen3-0.6B"}, "gateway": {"replicas": 1}},
    },
    "everything": {
        "settings": EVERYTHING,
        "body": {
            "model": {"uri": "hf://Qwen/Qwen3-32B", "servedName": "big $(HOME) $model"},
            "pipeline": {"stages": 2, "stageMemory": "48Gi"},
            "resources": GPU,
            "cache": {"hostPath": "/var/cache/models"},
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {"key": "zone", "operator": "In", "values": ["a"]}
                                ]
                            }
                        ]
                    }
                },
                "podAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 1,
                            "podAffinityTerm": {
                                "topologyKey": "rack",
                                "labelSelector": {"matchLabels": {"app": "cache"}},
                            },
                        }
                    ]
                },
            },
            "priorityClassName": "urgent",
            "imagePullSecrets": [{"name": "own"}],
            "podLabels": {"team": "search", "app.kubernetes.io/name": "mine"},
            "podAnnotations": {"sidecar.istio.io/inject": "false"},
            "recovery": {"replaceAfterSeconds": 120},
            "scheduling": {"topologyKey": "rack"},
            "gateway": {
                "replicas": 3,
                "apiKeysSecretRef": {"name": "clients", "key": "keys"},
                "resources": {"limits": {"cpu": "2", "memory": "2Gi"}},
                "requestDeadlineSeconds": 120,
            },
            "drainSeconds": 90,
        },
        "annotations": {"lamella.dev/resume": "again"},
    },
    "long-name": {
        "name": "a-model-whose-name-is-as-long-as-the-schema-allows",
        "body": {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "pipeline": {"stages": 2}},
    },
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, make: Callable[..., Any]) -> tuple[str, Any]:
    """Each case's name and what is made of it."""
    wanted = dict(CASES[request.param])
    commit = wanted.pop("commit", None)
    made = make(wanted.pop("body"), **wanted)
    if commit is not None:
        profile = dataclasses.replace(made.profile, commit=commit)
        made = make(CASES[request.param]["body"], profile=profile, **wanted)
    return request.param, made


@pytest.fixture(scope="session")
def objects() -> Callable[[Any], list[Any]]:
    """All objects of a model with one replica, in the order in which a person reads them."""

    def made_objects(made: Any) -> list[Any]:
        model, revision = made.model, made.revision
        stages = [
            pods.stage_pod(
                template,
                model,
                replica=0,
                stage=stage,
                revision=revision.hash,
                predecessor="",
                restarts=0,
            )
            for stage, template in enumerate(revision.pods)
        ]
        return [
            inspector.inspector_pod(model, made.settings, "profile-key", 1),
            *stages,
            *filter(None, [gangs.group(model, 0, revision)]),
            children.gateway(model, revision),
            *children.services(model, [0]),
            *children.budgets(model, {0: (revision.stages, True)}),
            children.network_policy(model, made.settings),
            revisions.revision_object(model, revision, 1),
        ]

    return made_objects


@pytest.fixture(scope="session")
def expanded() -> Callable[..., dict[str, str]]:
    """``expanded(container, **fields)``: its environment as the kubelet makes it."""

    def environment(container: Mapping[str, Any], **fields: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in copy.deepcopy(container["env"]):
            if "valueFrom" in entry:
                found[entry["name"]] = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
                continue

            def one(match: re.Match[str], known: dict[str, str] = found) -> str:
                if match[0] == "$$":
                    return "$"
                return known.get(match[1], match[0])

            found[entry["name"]] = re.sub(r"\$\$|\$\(([A-Za-z0-9_.-]+)\)", one, entry["value"])
        return found

    return environment
