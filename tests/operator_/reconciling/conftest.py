"""The tests' helpers of this folder, importable as ``operator_<name>``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _helper(name: str) -> None:
    """Import a file of the folder above, once for all folders."""
    if f"operator_{name}" in sys.modules:
        return
    path = Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"operator_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


for _name in ("twin_api", "virtual_time"):
    _helper(_name)
