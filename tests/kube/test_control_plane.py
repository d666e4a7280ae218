"""The control plane that other tests stand on: what it can do, and that it ends with them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from kube_control_plane import Api, ApiError, ControlPlane
from kube_processes import Program, wait_for

ROOT = Path(__file__).parents[2]
FINDER = ROOT / "scripts" / "control-plane"
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager")
MODELS = "/apis/lamella.dev/v1alpha1/namespaces/{}/shardedmodels"


def config_map(name: str, **metadata: object) -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}}


def model(name: str) -> dict:
    return {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {"name": name},
        "spec": {"model": {"uri": "hf://gpt2"}},
    }


def test_what_a_model_owns_goes_with_it(control_plane: ControlPlane, namespace: str) -> None:
    api = control_plane.api
    owner = api.request("POST", MODELS.format(namespace), model("m"))
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": "m",
        "uid": owner["metadata"]["uid"],
    }
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    api.request("POST", maps, config_map("owned", ownerReferences=[reference]))
    api.request("DELETE", f"{MODELS.format(namespace)}/m")
    wait_for(lambda: not api.exists(f"{maps}/owned"), "garbage is collected")


def test_quotas_are_held(control_plane: ControlPlane, namespace: str) -> None:
    base = f"/api/v1/namespaces/{namespace}"
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    control_plane.api.request("POST", f"{base}/resourcequotas", quota)

    def counted() -> bool:
        found = control_plane.api.request("GET", f"{base}/resourcequotas/none")
        return bool(found["status"])

    wait_for(counted, "the quota is in force")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    with pytest.raises(ApiError, match="exceeded quota") as refused:
        control_plane.api.request("POST", f"{base}/pods", pod)
    assert refused.value.code == 403


def test_it_can_go_away_and_come_back(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    control_plane.api.request("POST", path, config_map("kept"))
    with control_plane.api_server_gone(), pytest.raises(httpx.ConnectError):
        control_plane.api.request("GET", path)
    assert control_plane.api.exists(f"{path}/kept")


def test_it_can_hang(control_plane: ControlPlane, namespace: str) -> None:
    impatient = Api(control_plane.url, control_plane.authority, "any", timeout_s=0.5)
    with control_plane.api_server_frozen(), pytest.raises(httpx.TimeoutException):
        impatient.request("GET", "/version")
    impatient.close()
    assert control_plane.api.exists(f"/api/v1/namespaces/{namespace}")


def test_it_forgets_its_history(control_plane: ControlPlane, namespace: str) -> None:
    api = control_plane.api
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    old = api.request("POST", path, config_map("a"))["metadata"]["resourceVersion"]
    for number in range(3):
        api.request("POST", path, config_map(f"b-{number}"))
    control_plane.forget_history()
    seen = api.request("GET", path, watch="true", resourceVersion=old, timeoutSeconds="5")
    assert (seen["type"], seen["object"]["code"]) == ("ERROR", 410)


def token_of(kubeconfig: Path) -> str:
    assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600
    token: str = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
    return token


@pytest.mark.parametrize("everywhere", [False, True], ids=["in its namespace", "everywhere"])
def test_accounts_may_do_what_they_are_given(
    control_plane: ControlPlane, namespace: str, everywhere: bool
) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    kubeconfig = control_plane.kubeconfig_with(rules, namespace=namespace, everywhere=everywhere)
    limited = Api(control_plane.url, control_plane.authority, token_of(kubeconfig))
    assert limited.request("GET", f"/api/v1/namespaces/{namespace}/configmaps")
    assert limited.exists("/api/v1/configmaps") is everywhere
    with pytest.raises(ApiError, match="cannot list resource") as refused:
        limited.request("GET", f"/api/v1/namespaces/{namespace}/secrets")
    limited.close()
    assert (refused.value.code, refused.value.reason) == (403, "Forbidden")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux")
def test_a_program_ends_with_the_tests_that_started_it(tmp_path: Path) -> None:
    """Killed with SIGKILL, the tests can clean up nothing by themselves."""
    code = (
        "import importlib.util, pathlib, signal, sys\n"
        "spec = importlib.util.spec_from_file_location('processes', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "program = module.Program(pathlib.Path(sys.argv[2]), '/bin/sleep', '1000')\n"
        "program.start()\n"
        "print(program.pid, flush=True)\n"
        "signal.pause()\n"
    )
    helper = Path(__file__).with_name("processes.py")
    command = [sys.executable, "-c", code, str(helper), str(tmp_path / "log")]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # what it imports lies beside
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        wait_for(lambda: "sleep" in command_of(pid), "the program runs")
        tests.send_signal(signal.SIGKILL)
    wait_for(lambda: "sleep" not in command_of(pid), "the program is gone")


def command_of(pid: int) -> str:
    """Command line of a process, empty when it is gone or waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_program_that_fails_shows_its_log(tmp_path: Path) -> None:
    program = Program(tmp_path / "log", "/bin/sh", "-c", "echo what is wrong; exit 1")
    program.start()
    with pytest.raises(RuntimeError, match=r"(?s)sh ended; the end of .*what is wrong"):
        program.wait_until(lambda: False)


def programs(folder: Path, *names: str) -> Path:
    """A folder with programs of these names."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def find(tmp_path: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the script says where nothing is found unless ``environment`` says where."""
    return subprocess.run(
        [FINDER, *options],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


PLACES = {
    "where envtest puts it": ("KUBEBUILDER_ASSETS", "assets", "assets"),
    "on PATH": ("PATH", "path", "path"),
    "a test cluster's": ("CLUSTER_HOME", "cluster", "cluster/bin"),
}


@pytest.mark.parametrize(("variable", "value", "folder"), PLACES.values(), ids=PLACES)
def test_the_script_finds_it(tmp_path: Path, variable: str, value: str, folder: str) -> None:
    made = programs(tmp_path / folder, *NAMES)
    said = str(tmp_path / value) + (os.pathsep + os.environ["PATH"] if variable == "PATH" else "")
    found = find(tmp_path, "--find", **{variable: said})
    assert (found.returncode, found.stdout) == (0, f"{made}\n"), found.stderr


def test_a_folder_with_half_of_it_is_passed_over(tmp_path: Path) -> None:
    half = programs(tmp_path / "assets", "etcd", "kube-apiserver")
    whole = programs(tmp_path / "cluster" / "bin", *NAMES)
    found = find(
        tmp_path,
        "--find",
        KUBEBUILDER_ASSETS=str(half),
        CLUSTER_HOME=str(tmp_path / "cluster"),
    )
    assert found.stdout == f"{whole}\n"


REFUSALS = {
    "nothing there": (("--find",), "scripts/control-plane builds them once"),
    "nothing to build with": ((), "no Go to build them with: put Go 1.26 or newer on PATH"),
    "an unknown option": (("--fidn",), "unknown option '--fidn'; the only one is --find"),
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_the_script_says_what_is_missing(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    found = find(tmp_path, *options)
    assert (found.returncode, found.stdout) == (1, "")
    assert message in found.stderr
