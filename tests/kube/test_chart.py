"""The chart on a real API server: installed, upgraded with a newer CRD, uninstalled."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kube_processes import wait_for

if TYPE_CHECKING:
    from kube_control_plane import ControlPlane

CHART = Path(__file__).parents[2] / "helm" / "lamella"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/shardedmodels.lamella.dev"
KEPT_BY_HELM = {"app.kubernetes.io/managed-by": "Helm"}


def _rendering() -> Any:
    path = Path(__file__).parents[1] / "chart" / "rendering.py"
    spec = importlib.util.spec_from_file_location("chart_rendering", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Release:
    """One release of a chart, by the real helm."""

    def __init__(self, program: str, kubeconfig: Path, namespace: str) -> None:
        self._program, self._namespace = program, namespace
        self._env = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    def run(self, verb: str, *arguments: str) -> str:
        """What helm printed; fails with its words."""
        done = subprocess.run(
            [self._program, verb, "lamella", *arguments, "-n", self._namespace],
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def release(control_plane: ControlPlane, namespace: str) -> Release:
    rendering = _rendering()
    program, reason = rendering.find_helm()
    if not program:
        pytest.fail(reason) if os.environ.get(rendering.REQUIRE) else pytest.skip(reason)
    # the tests' own CRD is not helm's; handed over, as the chart's page says
    helms = {
        "metadata": {
            "labels": KEPT_BY_HELM,
            "annotations": {
                "meta.helm.sh/release-name": "lamella",
                "meta.helm.sh/release-namespace": namespace,
            },
        }
    }
    control_plane.api.request("PATCH", CRD, helms)
    return Release(program, control_plane.kubeconfig, namespace)


def test_the_server_takes_everything_but_what_needs_other_peoples_kinds(
    release: Release, namespace: str
) -> None:
    options = {
        "namespaces": [namespace],
        "networkPolicy": {"enabled": True},
        "dashboard": {"enabled": True},
        "prePull": {"enabled": True},
        "pullSecrets": ["registry"],
        "models": {"metricsNamespace": "monitoring", "proxy": {"noProxy": "a,b"}},
    }
    for values in ({}, options):
        flags = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
        said = release.run("install", str(CHART), "--dry-run=server", *flags)
        assert "kubectl apply" in said.partition("NOTES:")[2]


def test_every_pod_is_taken_by_a_namespace_that_enforces_restricted(
    release: Release, control_plane: ControlPlane, namespace: str
) -> None:
    api = control_plane.api
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.request("PATCH", f"/api/v1/namespaces/{namespace}", enforce)
    manifests = release.run("install", str(CHART), "--dry-run=server", "--set=prePull.enabled=true")
    found = [
        each
        for each in yaml.safe_load_all(manifests.partition("HOOKS:")[2].partition("NOTES:")[0])
        if each
    ]
    pods = {each["kind"]: each.get("spec", {}) for each in found if isinstance(each, dict)}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "lamella"}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    pods_path = f"/api/v1/namespaces/{namespace}/pods"
    specs = [pods["Pod"], *(pods[kind]["template"]["spec"] for kind in ("Deployment", "DaemonSet"))]
    for spec in specs:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "try"}, "spec": spec}
        api.request("POST", pods_path, pod, dryRun="All")
    pod["spec"] = {**specs[0], "securityContext": {}}  # and it does enforce it
    with pytest.raises(Exception, match="violates PodSecurity"):
        api.request("POST", pods_path, pod, dryRun="All")


def test_upgrade_brings_the_new_crd_and_uninstall_keeps_it(
    release: Release, control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    api = control_plane.api
    old = api.request("GET", CRD)
    newer = tmp_path / "lamella"
    shutil.copytree(CHART, newer)
    crd = newer / "files" / "shardedmodels.yaml"
    document = yaml.safe_load(crd.read_text())
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["brandNew"] = {"type": "string"}
    crd.write_text(yaml.safe_dump(document))
    try:
        notes = release.run("install", str(CHART), "--set=test.model=m")
        assert "helm test lamella" in notes
        _apply_model(control_plane, namespace)
        release.run("upgrade", str(newer))
        fields = _spec_fields(api.request("GET", CRD))
        assert "brandNew" in fields
        release.run("uninstall")
        assert _spec_fields(api.request("GET", CRD)) == fields
        model = f"/apis/lamella.dev/v1alpha1/namespaces/{namespace}/shardedmodels/kept"
        wait_for(lambda: api.exists(model), "the model is there and can be read again")
        deployments = api.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments")
        assert deployments["items"] == []
        release.run("install", str(CHART))  # again: the kept CRD is taken up, and as it was
        assert "brandNew" not in _spec_fields(api.request("GET", CRD))
        release.run("uninstall")
    finally:
        control_plane.apply_crd(
            yaml.safe_load((CHART / "files" / "shardedmodels.yaml").read_text())
        )
    assert _spec_fields(api.request("GET", CRD)) == _spec_fields(old)


def _spec_fields(crd: dict[str, Any]) -> set[str]:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return set(schema["properties"]["spec"]["properties"])


def _apply_model(control_plane: ControlPlane, namespace: str) -> None:
    model = {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {"name": "kept", "namespace": namespace},
        "spec": {"model": {"uri": "file:/models/tiny"}, "replicas": 0},
    }
    path = f"/apis/lamella.dev/v1alpha1/namespaces/{namespace}/shardedmodels/kept"
    control_plane.api.apply(path, model)
