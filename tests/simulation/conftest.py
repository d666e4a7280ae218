"""Makes this folder importable, as ``simulation``; leaves the long runs out unless asked for."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

NAME = "simulation"

if NAME not in sys.modules:
    package = types.ModuleType(NAME)
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules[NAME] = package


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NAME in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason=f"minutes; run with -m {NAME}")
    for item in items:
        if item.get_closest_marker(NAME) is not None:
            item.add_marker(skip)
