"""The resource as people and other programs meet it: kubectl, autoscalers, owners of fields."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_control_plane import ApiError, ControlPlane

from lamella_contract.spec import parse

ROOT = Path(__file__).parents[2]
SAMPLE = yaml.safe_load((ROOT / "shardedmodel.yaml").read_text())
VERSION = "/apis/lamella.dev/v1alpha1"
Kubectl = Callable[..., str]


def at(namespace: str, *rest: str) -> str:
    return "/".join((VERSION, "namespaces", namespace, "shardedmodels", *rest))


def model(name: str = "m", **spec: Any) -> dict[str, Any]:
    body = {**SAMPLE["spec"], **spec}
    return {**SAMPLE, "metadata": {"name": name}, "spec": body}


@pytest.fixture
def kubectl(control_plane: ControlPlane, namespace: str) -> Kubectl:
    """Runs kubectl in the test's namespace and returns what it prints."""
    program = control_plane.programs / "kubectl"
    if not program.exists():
        pytest.skip(f"no kubectl in {control_plane.programs}")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, f"--namespace={namespace}", *arguments],
            env={**os.environ, "KUBECONFIG": str(control_plane.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    return run


def test_it_is_found_by_its_short_name_and_category(control_plane: ControlPlane) -> None:
    found = control_plane.api.request("GET", VERSION)["resources"]
    each = {one["name"]: one for one in found}
    assert set(each) == {"shardedmodels", "shardedmodels/status", "shardedmodels/scale"}
    model = each["shardedmodels"]
    assert (model["shortNames"], model["categories"]) == (["sm"], ["ai"])
    assert model["namespaced"] is True


def test_a_list_shows_what_people_look_for(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl
) -> None:
    api = control_plane.api
    made = api.request("POST", at(namespace), model())
    said = {
        "ready": "1/2",
        "stages": "7/8",
        "reason": "LoadingWeights",
        "url": f"http://m.{namespace}.svc.cluster.local:8000/v1",
    }
    api.request("PUT", at(namespace, "m", "status"), {**made, "status": said})
    head, line = kubectl("get", "sm").splitlines()
    assert head.split() == ["NAME", "READY", "STAGES", "MODEL", "REASON", "URL", "AGE"]
    told = ["m", "1/2", "7/8", "hf://Qwen/Qwen3-32B", "LoadingWeights", said["url"]]
    assert line.split()[:-1] == told
    assert said["url"] in kubectl("get", "ai")


def test_every_field_is_explained(kubectl: Kubectl) -> None:
    whole = kubectl("explain", "sm.spec", "--recursive")
    assert all(key in whole for key in ("stageMemory", "ephemeralClaim", "replaceAfterSeconds"))
    text = kubectl("explain", "sm.spec.pipeline.stageMemory")
    assert "Device memory of each stage, such as 24Gi." in text
    assert "ENUM:\n    bfloat16" in kubectl("explain", "sm.spec.pipeline.dtype")


def test_the_sample_is_applied_and_waited_for(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl
) -> None:
    path = str(ROOT / "shardedmodel.yaml")
    assert kubectl("apply", "-f", path) == "shardedmodel.lamella.dev/qwen3-32b created\n"
    assert kubectl("apply", "-f", path) == "shardedmodel.lamella.dev/qwen3-32b unchanged\n"
    assert "qwen3-32b serverside-applied" in kubectl("apply", "--server-side", "-f", path)
    name = "qwen3-32b"
    made = control_plane.api.request("GET", at(namespace, name))
    since = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": since}
    status = {"observedGeneration": 1, "conditions": [ready]}
    control_plane.api.request("PUT", at(namespace, name, "status"), {**made, "status": status})
    said = kubectl("wait", "--for=condition=Ready", f"sm/{name}", "--timeout=5s")
    assert said == f"shardedmodel.lamella.dev/{name} condition met\n"


@pytest.mark.parametrize(
    "options", [(), ("--server-side", "--force-conflicts")], ids=["", "server"]
)
def test_kubectl_installs_and_upgrades_it(kubectl: Kubectl, options: tuple[str, ...]) -> None:
    path = str(ROOT / "crds" / "shardedmodels.yaml")
    said = kubectl("apply", "--dry-run=server", *options, "-f", path)
    assert "customresourcedefinition.apiextensions.k8s.io/shardedmodels.lamella.dev" in said
    assert "(server dry run)" in said


def test_kubectl_says_what_is_misspelt(kubectl: Kubectl, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(model(pipeline={"stage": 4})))
    assert 'unknown field "spec.pipeline.stage"' in kubectl("apply", "-f", str(path))


def test_the_cache_can_change_its_kind(
    control_plane: ControlPlane, namespace: str, kubectl: Kubectl, tmp_path: Path
) -> None:
    """By kubectl's merge and by server-side apply alike."""
    caches: list[dict[str, Any]] = [
        {"emptyDir": {}},
        {"claimName": "a"},
        {"ephemeralClaim": {"size": "1Gi"}},
    ]
    for options in ((), ("--server-side", "--force-conflicts")):
        for cache in caches:
            path = tmp_path / "m.yaml"
            path.write_text(yaml.safe_dump(model(cache=cache)))
            kubectl("apply", *options, "-f", str(path))
            found = control_plane.api.request("GET", at(namespace, "m"))
            assert found["spec"]["cache"] == cache


def test_autoscalers_scale_it(control_plane: ControlPlane, namespace: str) -> None:
    api = control_plane.api
    made = api.request("POST", at(namespace), model())
    selector = "lamella.dev/model-uid=1,lamella.dev/role=stage,lamella.dev/stage=0"
    status = {"replicas": 1, "selector": selector}
    api.request("PUT", at(namespace, "m", "status"), {**made, "status": status})
    scale = api.request("GET", at(namespace, "m", "scale"))
    assert (scale["spec"], scale["status"]) == ({"replicas": 1}, status)
    scale["spec"]["replicas"] = 3
    api.request("PUT", at(namespace, "m", "scale"), scale)
    found = api.request("GET", at(namespace, "m"))
    assert (found["spec"]["replicas"], found["metadata"]["generation"]) == (3, 2)
    with pytest.raises(ApiError, match="less than or equal to 1000"):
        api.request("PATCH", at(namespace, "m", "scale"), {"spec": {"replicas": 1001}})


def test_spec_and_status_are_written_apart(control_plane: ControlPlane, namespace: str) -> None:
    api = control_plane.api
    made = api.request("POST", at(namespace), {**model(), "status": {"ready": "9/9"}})
    assert "status" not in made
    changed = copy.deepcopy(made)
    changed["spec"]["replicas"] = 7
    changed["status"] = {"ready": "0/1"}
    found = api.request("PUT", at(namespace, "m", "status"), changed)
    assert (found["spec"]["replicas"], found["status"]) == (1, {"ready": "0/1"})
    assert found["metadata"]["generation"] == 1


def test_every_field_may_change(control_plane: ControlPlane, namespace: str) -> None:
    """Another model, another cut, another name for clients: all of them are rolled out."""
    api = control_plane.api
    made = api.request("POST", at(namespace), model())
    other = yaml.safe_load((ROOT / "tests/cases/valid/everything.yaml").read_text())
    made["spec"] = other["spec"]
    changed = api.request("PUT", at(namespace, "m"), made)
    assert changed["metadata"]["generation"] == 2
    assert parse(changed).spec == parse(other).spec


def test_whole_statuses_are_kept(control_plane: ControlPlane, namespace: str) -> None:
    """Nothing that the operator says is cut off by the schema."""
    api = control_plane.api
    made = api.request("POST", at(namespace), model())
    found = api.request("PUT", at(namespace, "m", "status"), {**made, "status": STATUS})
    assert found["status"] == STATUS


LIFE = {
    each["moment"]: each["status"]
    for each in yaml.safe_load_all((ROOT / "tests/golden/status-life.yaml").read_text())
}


@pytest.mark.parametrize("status", LIFE.values(), ids=LIFE)
def test_each_moment_of_a_life_is_kept_whole(
    control_plane: ControlPlane, namespace: str, status: dict[str, Any]
) -> None:
    made = control_plane.api.request("POST", at(namespace), model())
    path = at(namespace, "m", "status")
    found = control_plane.api.request(
        "PUT", path, {**made, "status": status}, fieldValidation="Strict"
    )
    assert found["status"] == status


def test_unknown_fields_never_reach_the_operator(
    control_plane: ControlPlane, namespace: str
) -> None:
    """Clients that do not ask for strictness get a warning, and the field is dropped."""
    made = control_plane.api.request("POST", at(namespace), model(pipeline={"stage": 4}))
    assert made["spec"]["pipeline"] == {}
    parse(made)


STAGE = {
    "stage": 0,
    "state": "Loading",
    "pod": "m-0-0-abcdef12",
    "podUID": "1",
    "node": "node-1",
    "layers": "0-15",
    "bytesDone": 1 << 33,
    "bytesTotal": 1 << 34,
    "percent": 50,
    "bytesPerSecond": 1 << 30,
    "etaSeconds": 8,
    "restarts": 1,
    "reason": "LoadingWeights",
    "message": "8.0 of 16.0 GiB",
}
STATUS = {
    "observedGeneration": 3,
    "replicas": 2,
    "readyReplicas": 1,
    "updatedReplicas": 1,
    "selector": "lamella.dev/stage=0",
    "ready": "1/2",
    "stages": "7/8",
    "reason": "LoadingWeights",
    "message": "stage 3 of pipeline 1 loads",
    "url": "http://m.default.svc.cluster.local:8000/v1",
    "commit": "9216db57",
    "currentRevision": "a1",
    "updateRevision": "b2",
    "profile": {"key": "k", "attempts": 1, "data": "lamella-profile 1 ..."},
    "plan": {
        "stages": [
            {"layers": "0-15", "weightBytes": 1 << 34, "memoryBytes": 24 << 30, "kvTokens": 99}
        ],
        "kvTokens": 99,
        "maxLength": 32768,
        "maxSequences": 16,
        "capacity": "known",
    },
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Starting",
            "message": "",
            "observedGeneration": 3,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
    "pipelines": [
        {
            "replica": 1,
            "revision": "b2",
            "state": "Loading",
            "reason": "LoadingWeights",
            "message": "",
            "stages": [STAGE],
        }
    ],
    "omittedStages": 4,
    "failures": [{"reason": "CrashLoop", "message": "x", "time": "2026-01-01T00:00:00Z"}],
    "resumed": "1",
    "yields": [{"replica": 1, "at": "2026-01-01T00:00:00Z"}],
}
