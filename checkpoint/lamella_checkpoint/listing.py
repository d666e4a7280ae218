"""Which files a repository holds at a revision: asked of the hub once, then kept on disk.

Knows the hub's API for listing and the cache's small files; moves no model bytes. Turns a branch or
tag into a commit, so that everything after it names the commit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi

from lamella_checkpoint import hfcache
from lamella_checkpoint.rangecache import room
from lamella_checkpoint.source import checked_name
from lamella_checkpoint.transfer import Connection, RemoteFile, bare_etag
from lamella_contract.errors import CorruptModel, HubUnreachable

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


def listing(
    connection: Connection, base: Path, hf_cache: Path, *, offline: bool
) -> Mapping[str, RemoteFile]:
    """The files at the connection's revision; sets the connection's revision to the commit.

    ``hf_cache`` is huggingface_hub's own cache: the last resort where no hub can be asked.
    """
    stated = connection.revision
    if _COMMIT.fullmatch(stated):
        cached = _cached_listing(base, stated)
        if cached is not None:
            return cached
    if offline:
        return _cached_revision(connection, base, hf_cache, HubUnreachable("offline mode"))
    try:
        commit, files = connection.call(lambda: _ask(connection), connection.asked())
    except HubUnreachable as error:
        files = _cached_revision(connection, base, hf_cache, error)
        log.warning(
            "the hub cannot be reached; using the cached commit",
            extra={"asked": f"hf://{connection.repo}@{stated}", "commit": connection.revision},
        )
        return files
    document = {name: [file.size, file.etag] for name, file in files.items()}
    write_atomically(base / commit / "files.json", json.dumps(document).encode())
    write_atomically(base / "refs" / quote(stated, safe=""), commit.encode())
    connection.revision = commit
    return files


def _ask(connection: Connection) -> tuple[str, Mapping[str, RemoteFile]]:
    """Commit and files of the connection's revision, in one request to the hub's API."""
    api = HfApi(endpoint=connection.endpoint, token=connection.token or False)
    info = api.model_info(
        connection.repo,
        revision=connection.revision,
        files_metadata=True,
        timeout=connection.stall_timeout_s,
    )
    commit = info.sha or ""
    if _COMMIT.fullmatch(commit) is None:
        raise CorruptModel(f"{connection.asked()}: the hub names no commit ({commit!r})")
    files = {}
    for sibling in info.siblings or ():
        name = checked_name(sibling.rfilename)
        tag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        if sibling.size is None:
            raise CorruptModel(f"{connection.asked(name)}: the hub does not say the file's size")
        files[name] = RemoteFile(name, int(sibling.size), bare_etag(tag or ""))
    return commit, files


def _cached_revision(
    connection: Connection, base: Path, hf_cache: Path, reason: HubUnreachable
) -> Mapping[str, RemoteFile]:
    """The files at the commit where a revision last stood; ``reason`` explains when unknown."""
    repo, revision = connection.repo, connection.revision
    ref = base / "refs" / quote(revision, safe="")
    commit = revision
    if _COMMIT.fullmatch(revision) is None:
        known = ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
        commit = known or hfcache.commit_of(hf_cache, repo, revision) or revision
    files = _cached_listing(base, commit)
    if files is None:
        folder = hfcache.snapshot(hf_cache, repo, commit)
        if folder is None:
            raise HubUnreachable(f"{connection.asked()} is not in the cache: {reason}") from reason
        files = hfcache.files_of(folder)
    connection.revision = commit
    return files


def _cached_listing(base: Path, commit: str) -> Mapping[str, RemoteFile] | None:
    try:
        document = json.loads((base / commit / "files.json").read_text(encoding="utf-8"))
        return {name: RemoteFile(name, int(s), str(tag)) for name, (s, tag) in document.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # absent or damaged: the hub is asked


def matches_etag(data: bytes | bytearray, etag: str) -> bool:
    """Whether bytes have the hash that an ETag is: git's SHA-1 of a blob, or SHA-256.

    An ETag of another form says nothing, and is taken as a match.
    """
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return hashlib.sha256(data).hexdigest() == etag
    if re.fullmatch(r"[0-9a-f]{40}", etag):
        blob = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        blob.update(data)
        return blob.hexdigest() == etag
    return True


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with room(path.parent, len(data)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
