"""The chart as the real helm renders it: compared whole, then refused where it should be."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from chart_rendering import CHART, ROOT, Object, one, without_crds

if TYPE_CHECKING:
    from chart_rendering import Helm

NAMESPACED = {"namespaces": ["team-a", "team-b"], "crds": {"install": False}}
DIGEST = "sha256:" + "ab" * 32
EVERYTHING: Mapping[str, Any] = {
    "global": {"imageRegistry": "registry.example.com/mirror"},
    "image": {"tag": "1.2.3"},
    "workerImage": {"digest": DIGEST},
    "pullPolicy": "IfNotPresent",
    "pullSecrets": ["registry", "mirror"],
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
    "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
    "podLabels": {"team": "platform"},
    "podAnnotations": {"example.com/note": "x"},
    "log": {"level": "DEBUG", "format": "text"},
    "models": {
        "hubEndpoint": "https://hub.example.com",
        "proxy": {
            "http": "http://proxy.example.com:3128",
            "https": "http://proxy.example.com:3129",
            "noProxy": ".svc,10.0.0.0/8",
        },
        "caConfigMap": "company-ca",
        "priorityClassName": "models",
        "allowHostPath": True,
        "fsGroup": 0,
        "restrictEgress": True,
        "metricsNamespace": "monitoring",
        "clusterDomain": "example.internal",
        "memory": {
            "workerRuntime": "2Gi",
            "staging": "4096Mi",
            "deviceRuntime": "512Mi",
            "gateway": "2Gi",
            "inspector": "1536Mi",
        },
    },
    "networkPolicy": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True},
    "prePull": {
        "enabled": True,
        "nodeSelector": {"gpu": "true"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
    "test": {
        "model": "qwen3-32b",
        "namespace": "models",
        "apiKeySecret": {"name": "keys", "key": "keys"},
    },
}
RENDERS = {"default": {}, "namespaced": NAMESPACED, "everything": EVERYTHING}


@pytest.mark.parametrize("name", RENDERS)
def test_what_is_rendered_is_the_golden_file(
    name: str, helm: Helm, golden: Callable[[str, str], None]
) -> None:
    golden(f"chart-{name}.yaml", without_crds(helm.text(RENDERS[name])))


@pytest.mark.parametrize("name", RENDERS)
def test_lint_finds_nothing(name: str, helm: Helm) -> None:
    code, said = helm.run("lint", "--strict", str(CHART), values=RENDERS[name])
    assert code == 0, said
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


REFUSED = {
    "an unknown value": ({"replicaCount": 3}, "additional properties 'replicaCount' not allowed"),
    "an unknown inner value": ({"models": {"hub": "x"}}, "additional properties 'hub' not allowed"),
    "a number as text": ({"replicas": "2"}, "got string, want integer"),
    "a negative number": ({"replicas": -1}, "minimum: got -1, want 0"),
    "a truth as text": ({"crds": {"install": "no"}}, "got string, want boolean"),
    "one namespace as text": ({"namespaces": "team-a"}, "got string, want array"),
    "a namespace twice": ({"namespaces": ["a", "a"]}, "items at 0 and 1 are equal"),
    "no namespace's name": ({"namespaces": ["Team_A"]}, "does not match pattern"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "does not match pattern"),
    "an unknown log level": ({"log": {"level": "TRACE"}}, "value must be one of"),
    "a memory with a fraction": ({"models": {"memory": {"staging": "1.5Gi"}}}, "pattern"),
    "a key without its secret": ({"test": {"apiKeySecret": {"key": "k"}}}, "'name' required"),
    "a label that is no text": ({"podLabels": {"a": 1}}, "got number, want string"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_values_are_refused(values: Mapping[str, Any], message: str, helm: Helm) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        helm.text(values)


def _documented(schema: Object, values: Object, path: str = "") -> list[str]:
    """Paths of all leaves; fails where values and schema name different things."""
    assert set(schema["properties"]) == set(values), path
    if path != ".global":  # which a parent chart may use for its own ends
        assert schema["additionalProperties"] is False, path
    leaves = []
    for key, inner in schema["properties"].items():
        at = f"{path}.{key}"
        if "properties" in inner and values[key] != {}:
            leaves += _documented(inner, values[key], at)
        else:
            leaves.append(at)
    return leaves


def test_schema_and_values_name_the_same_things_and_each_is_documented() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    leaves = _documented(schema, yaml.safe_load(text))
    documented = re.findall(r"^ *# -- .*\n(?: *# .*\n)* *(\w+):", text, re.MULTILINE)
    assert documented == [path.rpartition(".")[2] for path in leaves]


# -- the custom resource -----------------------------------------------------------------------


def test_the_charts_copy_of_the_crd_is_the_crd(request: pytest.FixtureRequest) -> None:
    ours, copy = ROOT / "crds" / "shardedmodels.yaml", CHART / "files" / "shardedmodels.yaml"
    if request.config.getoption("--update-golden"):
        shutil.copy(ours, copy)
    assert copy.read_bytes() == ours.read_bytes(), "`make golden` copies it"


def test_the_crd_is_upgraded_with_the_chart_and_kept_by_uninstall(helm: Helm) -> None:
    rendered = one(helm.objects(), "CustomResourceDefinition")
    crd = yaml.safe_load((ROOT / "crds" / "shardedmodels.yaml").read_text())
    assert rendered == crd
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not (CHART / "crds").exists(), "helm never upgrades what lies in a folder crds/"


def test_the_crd_can_be_left_to_somebody_else(helm: Helm) -> None:
    kinds = {each["kind"] for each in helm.objects({"crds": {"install": False}})}
    assert "CustomResourceDefinition" not in kinds


# -- names and images --------------------------------------------------------------------------

LONG = "a-release-whose-name-is-as-long-as-helm-allows-it-abc"  # 53 characters
NAMES = {
    "the release is called like the chart": ("lamella", {}, "lamella"),
    "the release has a name of its own": ("prod", {}, "prod-lamella"),
    "the chart's name is in the release's": ("my-lamella", {}, "my-lamella"),
    "a name of its own": ("lamella", {"fullnameOverride": "gpu-models"}, "gpu-models"),
    "63 characters fit": ("lamella", {"fullnameOverride": "x" * 63}, "x" * 63),
}


@pytest.mark.parametrize(("release", "values", "want"), NAMES.values(), ids=NAMES)
def test_objects_are_named_after_the_release(
    release: str, values: Mapping[str, Any], want: str, helm: Helm
) -> None:
    objects = type(helm)(helm.program, release).objects(values)
    assert one(objects, "Deployment")["metadata"]["name"] == want


@pytest.mark.parametrize("release", [LONG, "lamella"])
def test_long_names_are_cut_and_stay_different(release: str, helm: Helm) -> None:
    def names(override: str) -> set[tuple[str, str]]:
        values = {**EVERYTHING, "fullnameOverride": override}
        objects = type(helm)(helm.program, release).objects(values)
        return {
            (each["kind"], each["metadata"]["name"])
            for each in objects
            if each["kind"] != "CustomResourceDefinition"
        }

    first, second = names("x" * 80 + "1"), names("x" * 80 + "2")
    assert all(len(name.rpartition(":")[2]) <= 63 for kind, name in first if "Cluster" not in kind)
    assert not first & second
    assert len(first) == len(second)


IMAGES = {
    "the chart's appVersion": ({}, "lamella-operator:0.1.0", "lamella-worker:0.1.0"),
    "a registry for all": (
        {"global": {"imageRegistry": "registry.example.com/"}},
        "registry.example.com/lamella-operator:0.1.0",
        "registry.example.com/lamella-worker:0.1.0",
    ),
    "a digest wins over a tag": (
        {"image": {"tag": "x", "digest": DIGEST}, "workerImage": {"tag": "y"}},
        f"lamella-operator@{DIGEST}",
        "lamella-worker:y",
    ),
}


@pytest.mark.parametrize(("values", "operator", "worker"), IMAGES.values(), ids=IMAGES)
def test_images_are_named_so(
    values: Mapping[str, Any], operator: str, worker: str, helm: Helm
) -> None:
    objects = helm.objects({**values, "prePull": {"enabled": True}})
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    (puller,) = one(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    assert (container["image"], puller["image"]) == (operator, worker)
    assert f"--operator-image={operator}" in container["args"]
    assert f"--worker-image={worker}" in container["args"]


def test_the_charts_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])


# -- what the pods may do ----------------------------------------------------------------------


def test_every_pod_may_do_nothing_but_its_work(helm: Helm) -> None:
    objects = helm.objects(EVERYTHING)
    pods = [one(objects, "Pod")["spec"]] + [
        one(objects, kind)["spec"]["template"]["spec"] for kind in ("Deployment", "DaemonSet")
    ]
    for pod in pods:
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    talkers = [pod for pod in pods if pod.get("automountServiceAccountToken", True)]
    assert [pod.get("serviceAccountName") for pod in talkers] == ["lamella"]
