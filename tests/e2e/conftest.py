"""Fixtures of the tests on a real cluster: one installed chart, one model that most tests share.

    scripts/e2e                                        all of it, on a cluster of its own
    pytest -m "e2e and not slow" tests/e2e             on the cluster of KUBECONFIG

A failed test leaves evidence (objects, events, logs) under the folder of --e2e-report.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _helper(name: str) -> ModuleType:
    """Import a file beside this one as ``e2e_<name>``: helpers beside tests have no import path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"e2e_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kube_module = _helper("kube")
faults = _helper("faults")
models = _helper("models")
release_module = _helper("release")
report = _helper("report")
traffic = _helper("traffic")
_helper("tls_pod")
_helper("webhook")
_helper("autoscaling")

SPACE = "lamella-e2e"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Evidence of a failure is taken at once: fixtures then delete what it is about."""
    found = yield
    kube = getattr(item, "funcargs", {}).get("kube")
    if found.failed and kube is not None:
        folder = Path(item.config.getoption("--e2e-report") or "build/e2e-evidence")
        spaces = [
            space["metadata"]["name"]
            for space in kube.list("namespaces")
            if space["metadata"]["name"].startswith("lamella-")
        ]
        kube.save_evidence(folder / item.name, spaces)
        (folder / item.name / f"{found.when}.txt").write_text(found.longreprtext)
    return found


@pytest.fixture(scope="session")
def kube() -> Iterator[Any]:
    """The cluster; without one the tests say so and are skipped."""
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} on PATH and a cluster in KUBECONFIG")
    kube = kube_module.Kube()
    yield kube
    kube.close()


@pytest.fixture(scope="session")
def report_folder(pytestconfig: pytest.Config) -> Path | None:
    given = pytestconfig.getoption("--e2e-report")
    return None if given is None else Path(given)


@pytest.fixture(scope="session")
def table(report_folder: Path | None) -> Any:
    """Where each test writes what it saw."""
    return report.Table(report_folder)


@pytest.fixture(scope="session")
def machines() -> Any:
    return faults.Machines()


@pytest.fixture(scope="session")
def hub(kube: Any) -> Any:
    return release_module.Hub(kube)


@pytest.fixture(scope="session")
def release(kube: Any) -> Any:
    """The chart, installed; the last test of all takes it away."""
    release = release_module.Release(kube)
    release.install()
    release.until_led()
    return release


@pytest.fixture(scope="session")
def space(kube: Any) -> str:
    return str(kube.namespace(SPACE))


@pytest.fixture(scope="session")
def _main(kube: Any, release: Any, space: str) -> Any:
    return models.Model(kube, space, "main").apply()


@pytest.fixture
def main(_main: Any) -> Any:
    """The shared model: two stages, one pipeline, two gateways, Ready."""
    if _main.object["spec"].get("replicas", 1) != 1:
        _main.scale(1)
    _main.until_ready()
    return _main


@pytest.fixture
def load(main: Any) -> Iterator[Any]:
    """Four streams on the shared model, each text checked; ended at the test's end at the
    latest."""
    with traffic.Traffic(main.url, main.name) as running:
        running.flow()
        yield running


@pytest.fixture
def make(kube: Any, release: Any, space: str) -> Iterator[Callable[..., Any]]:
    """``make(name, **spec)`` applies a model of this test's own, deleted after it."""
    made: list[Any] = []

    def one(name: str, namespace: str = space, **spec: Any) -> Any:
        made.append(models.Model(kube, namespace, name, **spec))
        return made[-1].apply()

    yield one
    for model in made:
        model.delete()
    for model in made:
        kube_module.wait_for(
            f"nothing is left of {model.name}", models.gone(kube, model.namespace, model.name), 90
        )


@pytest.fixture
def fresh_space(kube: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``fresh_space(suffix, labels)`` makes a namespace that goes with the test."""
    made: list[str] = []

    def one(suffix: str, labels: dict[str, str] | None = None) -> str:
        made.append(kube.namespace(f"{SPACE}-{suffix}", labels))
        return made[-1]

    yield one
    for name in made:
        kube.delete("namespaces", name)


@pytest.fixture(autouse=True)
def _always_the_cluster(kube: Any) -> None:
    """So that a failed test's report finds it."""
