"""Models that huggingface_hub itself has downloaded before: read from its cache, fetched never.

Knows that cache's layout (``models--org--name/{refs,snapshots,blobs}``); makes no request and
writes nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lamella_checkpoint.transfer import RemoteFile


def snapshot(cache: Path, repo: str, commit: str) -> Path | None:
    """The folder with what was downloaded of a commit, maybe not all of its files."""
    folder = _repo(cache, repo) / "snapshots" / commit
    return folder if folder.is_dir() else None


def commit_of(cache: Path, repo: str, revision: str) -> str | None:
    """The commit that a branch or tag stood at when it was last downloaded."""
    ref = _repo(cache, repo) / "refs" / revision
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None


def files_of(folder: Path) -> Mapping[str, RemoteFile]:
    """The files of a snapshot; a link's target is named after the file's ETag."""
    return {
        path.name: RemoteFile(
            path.name, path.stat().st_size, path.resolve().name if path.is_symlink() else ""
        )
        for path in folder.iterdir()
        if path.is_file()
    }


def _repo(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"
