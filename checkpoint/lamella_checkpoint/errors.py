"""Errors of reading a model that only this package raises; the rest of the tree is the contract's.

Knows no file and no hub. Both stand under `lamella_contract.errors.ModelError`, so a caller that
handles "the model cannot be used" handles these too.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lamella_contract.errors import ModelError


class NeedsConversion(ModelError):
    """The model is a GGUF file: convert it once with ``python -m lamella_worker.convert``.

    ``path`` is the GGUF file. `lamella_checkpoint.gguf.converted_folder` names the folder that
    the conversion writes.
    """

    kind: ClassVar[str] = "needs_conversion"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a GGUF file and needs to be converted once: "
            f"python -m lamella_worker.convert {path} OUT_DIR"
        )
        self.path = path


class DiskFull(ModelError):
    """A cache or an output folder has no room left: free some, or choose another folder."""

    kind: ClassVar[str] = "disk_full"
