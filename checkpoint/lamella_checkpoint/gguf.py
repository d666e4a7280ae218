"""Finding GGUF files, and the folder that a GGUF's conversion lives in.

Knows nothing of what is inside a GGUF beyond its magic: converting takes torch and is the
worker's command (`lamella_worker.convert`). The command line calls `converted_folder` before and
after it starts that command, so both agree on the place without talking about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from lamella_contract.errors import ModelNotFound, UnsupportedFamily

MAGIC = b"GGUF"  # the first four bytes of every GGUF file
MARKER_FILE = "lamella_conversion.json"  # says from what a converted folder was made
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_HASH_BLOCK_BYTES = 1 << 20


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a file that begins as a GGUF does; the name's ending is not asked."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or that the folder ``path`` holds instead of a config.

    None when there is none. A folder with several GGUF files (the same model quantized in several
    ways, as publishers do) is ambiguous: `ModelNotFound` lists them. A model split over several
    GGUF files is `UnsupportedFamily`.
    """
    if path.is_dir():
        if (path / "config.json").exists():
            return None
        found = sorted(entry for entry in path.glob("*.gguf") if is_gguf(entry))
        if len(found) > 1 and not all(_PART.search(entry.name) for entry in found):
            names = ", ".join(entry.name for entry in found[:8])
            raise ModelNotFound(f"{path} holds several GGUF files ({names}): name one of them")
        if not found:
            return None
        path = found[0]
    elif not is_gguf(path):
        return None
    part = _PART.search(path.name)
    if part is not None and int(part[1]) > 1:
        raise UnsupportedFamily(
            f"{path.name} is one of {int(part[1])} parts of a split GGUF: merge them first "
            "(llama-gguf-split --merge)"
        )
    return path


def content_hash(path: Path) -> str:
    """SHA-256 of the file in hex; a gigabyte takes about two seconds."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def converted_folder(path: Path, cache_dir: Path, dtype: str = "float32") -> Path:
    """Where the conversion of the GGUF at ``path`` to ``dtype`` is kept under ``cache_dir``.

    The name holds the content's hash, so an edited file is never mistaken for the old one. The
    folder may not exist yet; `is_converted` tells.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "model"
    return cache_dir / "models" / f"{stem}-{content_hash(path)[:16]}-{dtype}"


def is_converted(folder: Path, source_sha256: str | None = None, dtype: str | None = None) -> bool:
    """Whether ``folder`` is a finished conversion (of that content and dtype, when given)."""
    try:
        marker = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(marker, dict)
        and source_sha256 in (None, marker.get("source_sha256"))
        and dtype in (None, marker.get("dtype"))
    )
