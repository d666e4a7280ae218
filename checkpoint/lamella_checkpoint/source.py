"""Where a model's files are: a folder, or a repository on a hub. `open_source` finds out which.

Knows names, sizes and byte ranges; does not know what the bytes mean (headers.py does). Everything
that reads a model (the inspector, a stage, the gateway's tokenizer) opens it here.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from lamella_checkpoint.errors import NeedsConversion
from lamella_checkpoint.gguf import find_gguf
from lamella_checkpoint.progress import Progress, ProgressSnapshot
from lamella_contract.errors import CorruptModel, InvalidSpec, ModelNotFound

OnProgress = Callable[[ProgressSnapshot], None]


@runtime_checkable
class Source(Protocol):
    """A model's files at one commit. Safe to read from many threads.

    Names are relative POSIX paths. Ranges are half-open byte ranges of a file. Every method may
    raise a `lamella_contract.errors.ModelError`.
    """

    uri: str
    commit: str
    progress: Progress

    @property
    def local_path(self) -> Path | None:
        """The folder that holds every file whole; None when there is none."""

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the folder, the cache or the network so far, headers included."""

    def list(self) -> tuple[str, ...]:
        """Names of all files, sorted."""

    def size(self, name: str) -> int:
        """Bytes of a file. `ModelNotFound` when there is no such file."""

    def read_text(self, name: str) -> str:
        """A small file as UTF-8 text."""

    def read_into(self, name: str, start: int, end: int, buffer: memoryview) -> None:
        """Fill ``buffer``, exactly ``end - start`` writable bytes, with that range."""

    def read_scatter(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers one after another with the bytes from ``start`` on, in one read."""

    def metadata_folder(self) -> Path:
        """A folder with the small files (config, tokenizer, templates), as transformers wants."""

    def close(self) -> None:
        """Give back files and connections; the source is not read again."""


def open_source(
    uri: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    offline: bool | None = None,
    on_progress: OnProgress | None = None,
    stall_timeout_s: float = 30.0,
) -> Source:
    """Open ``uri``: a folder's path, ``file:`` + path, or ``hf://org/name[@revision]``.

    ``cache_dir`` (default ``~/.cache/lamella``), ``token`` (default: huggingface_hub's own, from
    environment or file), ``offline`` (default: ``HF_HUB_OFFLINE``) and ``stall_timeout_s``
    concern hubs only. Raises `NeedsConversion` for a GGUF file, `ModelNotFound`, `InvalidSpec`
    for another scheme, and what the hub answers.
    """
    if uri.startswith("hf://"):
        # Imported here: a folder needs no HTTP client, and importing one takes half a second.
        from lamella_checkpoint.hub import HubOptions, HubSource

        repo, at, pinned = uri.removeprefix("hf://").strip("/").partition("@")
        if at and revision and pinned != revision:
            raise InvalidSpec("model.revision", revision, f"the revision in the uri ({pinned})")
        return HubSource.open(
            repo,
            revision=pinned or revision or "main",
            options=HubOptions(
                cache_dir=cache_dir or default_cache_dir(),
                token=token,
                offline=offline,
                stall_timeout_s=stall_timeout_s,
            ),
            progress=Progress(on_progress),
        )
    return LocalSource(local_folder(uri), uri=uri, progress=Progress(on_progress))


def default_cache_dir() -> Path:
    """``LAMELLA_HOME`` when set, else ``~/.cache/lamella``."""
    home = os.environ.get("LAMELLA_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "lamella"


def local_folder(uri: str) -> Path:
    """The folder that a path or a ``file:`` URI names.

    Raises `NeedsConversion` when it is a GGUF file (or holds one and no config), `ModelNotFound`
    when it is absent or no folder, `InvalidSpec` for a scheme that is not known.
    """
    path = _path_of(uri)
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist")
    found = find_gguf(path)
    if found is not None:
        raise NeedsConversion(found)
    if not path.is_dir():
        raise ModelNotFound(f"{path} is a file; want a model folder or a GGUF file")
    return path


def _path_of(uri: str) -> Path:
    if uri.startswith("file:"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise InvalidSpec("model.uri", uri, "file:///absolute/path or file:relative/path")
        return Path(unquote(parts.path)).expanduser()
    if "://" in uri:
        raise InvalidSpec("model.uri", uri, "a folder, file:PATH or hf://org/name[@revision]")
    if not uri:
        raise InvalidSpec("model.uri", uri, "a folder, file:PATH or hf://org/name[@revision]")
    return Path(uri).expanduser()


def checked_name(name: str) -> str:
    """``name`` when it stays inside the model; `CorruptModel` for what would leave it.

    Names of files come from index files and hubs, so they are not to be trusted.
    """
    path = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise CorruptModel(f"file name {name!r} leads out of the model")
    return name


def checked_range(name: str, size: int, start: int, end: int) -> None:
    """Raise `CorruptModel` unless ``[start, end)`` lies in a file of ``size`` bytes."""
    if not 0 <= start <= end <= size:
        raise CorruptModel(f"{name}: bytes {start} to {end} were wanted of a file of {size}")


class LocalSource:
    """A folder on this machine; files are opened once and read with pread."""

    def __init__(self, folder: Path, *, uri: str = "", progress: Progress | None = None) -> None:
        self.folder = folder
        self.uri = uri or str(folder)
        self.progress = progress or Progress()
        self._sizes = {
            entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()
        }
        self.commit = self._fingerprint()
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._bytes_read = 0

    def _fingerprint(self) -> str:
        """``local-`` and a hash over names, sizes and times of change: moves with any edit."""
        digest = hashlib.sha256()
        for name in sorted(self._sizes):
            changed_ns = (self.folder / name).stat().st_mtime_ns
            digest.update(f"{name}\0{self._sizes[name]}\0{changed_ns}\n".encode())
        return f"local-{digest.hexdigest()[:32]}"

    @property
    def local_path(self) -> Path | None:
        return self.folder

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def list(self) -> tuple[str, ...]:
        return tuple(sorted(self._sizes))

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of that name."""
        return name in self._sizes

    def size(self, name: str) -> int:
        try:
            return self._sizes[checked_name(name)]
        except KeyError:
            raise ModelNotFound(f"{self.folder} holds no {name}") from None

    def read_text(self, name: str) -> str:
        data = bytearray(self.size(name))
        self.progress.expect(len(data))
        self.read_into(name, 0, len(data), memoryview(data))
        return decoded(name, data)

    def read_into(self, name: str, start: int, end: int, buffer: memoryview) -> None:
        checked_range(name, self.size(name), start, end)
        assert len(buffer) == end - start, (len(buffer), start, end)
        self.read_scatter(name, start, [buffer])

    def read_scatter(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        pending = [buffer for buffer in buffers if len(buffer)]
        wanted = sum(len(buffer) for buffer in pending)
        checked_range(name, self.size(name), start, start + wanted)
        descriptor, offset = self._open(name), start
        while pending:
            got = os.preadv(descriptor, pending[:_IOV_MAX], offset)
            if got == 0:
                raise CorruptModel(
                    f"{self.folder / name} ends at byte {offset}; it had {self.size(name)} bytes "
                    "when it was opened"
                )
            offset += got
            pending = after(pending, got)
        with self._lock:
            self._bytes_read += wanted
        self.progress.advance(wanted)

    def metadata_folder(self) -> Path:
        return self.folder

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()

    def _open(self, name: str) -> int:
        with self._lock:
            descriptor = self._files.get(name)
            if descriptor is None:
                try:
                    descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise ModelNotFound(f"{self.folder / name}: {error.strerror}") from error
                self._files[name] = descriptor
            return descriptor


_IOV_MAX = 512  # buffers in one preadv; Linux allows 1024


def after(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers once their first ``count`` bytes are filled."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def decoded(name: str, data: bytes | bytearray) -> str:
    """UTF-8 text, or `CorruptModel`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{name} is not UTF-8 text: {error}") from error
