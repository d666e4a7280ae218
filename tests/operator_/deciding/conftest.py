"""Makes the simulated cluster importable (``operator_world``) without tests on the path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("things", "gangs", "cluster", "world", "losses"):
    if f"operator_{name}" in sys.modules:
        continue
    path = Path(__file__).parents[1] / "simulation" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"operator_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
