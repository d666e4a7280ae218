"""Fixtures of the tests on a real API server; `scripts/control-plane` says where it comes from."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kube_control_plane import ControlPlane

FINDER = Path(__file__).parents[2] / "scripts" / "control-plane"
REQUIRE = "LAMELLA_REQUIRE_CONTROL_PLANE"
_numbers = itertools.count(1)


def _helper(name: str) -> ModuleType:
    """Import a file beside this one as ``kube_<name>``."""
    spec = importlib.util.spec_from_file_location(
        f"kube_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_processes = _helper("processes")
_control_plane = _helper("control_plane")
for _name in ("fake_kubelet", "fault_proxy", "operator_lab"):
    _helper(_name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the control plane carries the marker, so that nobody can forget it."""
    for item in items:
        if "control_plane" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.apiserver)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane that knows ShardedModels; one for the whole test session."""
    required = bool(os.environ.get(REQUIRE))
    command = [str(FINDER)] if required else [str(FINDER), "--find"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        reason = found.stderr.strip() or "no control plane"
        pytest.fail(reason) if required else pytest.skip(reason)
    plane = _control_plane.ControlPlane(
        Path(found.stdout.strip()), tmp_path_factory.mktemp("control-plane")
    )
    try:
        plane.start()
        yield plane
    finally:
        plane.close()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace that pods can be created in; deleted behind the test's back afterwards."""
    control_plane.restore()
    name = f"test-{next(_numbers)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    control_plane.api.request("POST", "/api/v1/namespaces", body)
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    _processes.wait_for(lambda: control_plane.api.exists(account), f"{account} exists")
    yield name
    control_plane.restore()
    control_plane.api.request("DELETE", f"/api/v1/namespaces/{name}")
