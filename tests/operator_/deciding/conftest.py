"""Makes `world` importable, as ``operator_world``, without putting tests on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "operator_world"

if NAME not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        NAME, Path(__file__).parents[1] / "simulation" / "world.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
