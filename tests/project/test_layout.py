"""Rules about the tree itself that no linter checks."""

from __future__ import annotations

import ast
import operator
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "contract/lamella_contract": ("torch", "zmq", "numpy", "transformers", "starlette"),
    "checkpoint/lamella_checkpoint": ("torch", "zmq", "starlette"),
    "gateway/lamella_gateway": ("torch",),
    "operator/lamella_operator": ("torch", "transformers", "starlette"),
    "cli/lamella": ("torch", "starlette"),
}
MODULES = sorted(
    path
    for package in [*PACKAGES, "worker/lamella_worker"]
    for path in (ROOT / package).rglob("*.py")
)


def test_no_folder_of_ours_hides_a_module_of_the_standard_library() -> None:
    assert Path(operator.__file__).name == "operator.py"
    assert [p for p in ROOT.glob("*/__init__.py") if ".venv" not in p.parts] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_can_be_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module docstring is missing"
    assert len(text.splitlines()) <= 330, "split it by idea"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names.isdisjoint({"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"})


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_without_what_its_package_refuses_to_know(package: str) -> None:
    name = Path(package).name
    modules = [
        ".".join((name, *path.relative_to(ROOT / package).with_suffix("").parts))
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in {"__init__", "__main__"}
    ]
    blocked = dict.fromkeys(PACKAGES[package])
    code = (
        f"import sys, importlib\nsys.modules.update({blocked})\n"
        f"for name in {modules}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
