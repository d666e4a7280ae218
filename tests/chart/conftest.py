"""The helm of the chart's tests: found, or the tests are skipped in plain sight."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chart_rendering import Helm

_spec = importlib.util.spec_from_file_location(
    "chart_rendering", Path(__file__).with_name("rendering.py")
)
assert _spec is not None
assert _spec.loader is not None
rendering = sys.modules["chart_rendering"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rendering)


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The real helm; skipped without, a failure where LAMELLA_REQUIRE_HELM is set."""
    program, reason = rendering.find_helm()
    if not program:
        pytest.fail(reason) if os.environ.get(rendering.REQUIRE) else pytest.skip(reason)
    found: Helm = rendering.Helm(program)
    return found
