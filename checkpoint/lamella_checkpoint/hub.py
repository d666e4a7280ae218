"""A model on a hub, read by byte ranges through a cache on disk: ``hf://org/name@revision``.

Knows repositories, commits and the cache's layout; does not know tensors. The revision is resolved
to a commit once, when the source is opened, and every request after that names the commit: a branch
that moves meanwhile cannot mix two revisions. What was read once is read from disk afterwards, with
no network.

Cache layout, under ``<cache_dir>/hub/<org>--<name>/``::

    refs/<revision>        the commit that a branch or tag last stood at
    <commit>/files.json    names, sizes and ETags of all files
    <commit>/ranges/       rangecache.py's files
    <commit>/files/        small files, whole, as transformers wants them
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants, get_token

from lamella_checkpoint import hfcache
from lamella_checkpoint.listing import listing, matches_etag, write_atomically
from lamella_checkpoint.progress import Progress
from lamella_checkpoint.rangecache import ExtentWriter, RangeCache
from lamella_checkpoint.source import LocalSource, after, checked_name, checked_range, decoded
from lamella_checkpoint.transfer import Connection, RemoteFile, RetryPolicy
from lamella_contract.errors import CorruptModel, HubUnreachable, InvalidSpec, ModelNotFound

log = logging.getLogger(__name__)

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_TRUE = ("1", "on", "yes", "true")
# What transformers reads beside the weights.
_SMALL = re.compile(r"[^/]+\.(json|model|txt|jinja|tiktoken|bpe)|chat_templates/[^/]+\.jinja")
_SMALL_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How a hub is spoken to.

    ``token`` None takes huggingface_hub's own (``HF_TOKEN``, then the login's file); ``offline``
    None asks ``HF_HUB_OFFLINE``; ``endpoint`` empty asks ``HF_ENDPOINT``. ``sleep`` None waits for
    real.
    """

    cache_dir: Path
    token: str | None = None
    offline: bool | None = None
    endpoint: str = ""
    hf_cache: Path | None = None
    stall_timeout_s: float = 30.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    sleep: Callable[[float], None] | None = None

    def is_offline(self) -> bool:
        stated = os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
        return bool(self.offline) or stated or bool(constants.is_offline_mode())

    def address(self) -> str:
        stated = self.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
        return str(stated).rstrip("/")


class HubSource:
    """One commit of a repository; a `Source`. Make it with `open`."""

    local_path: Path | None = None

    def __init__(
        self,
        connection: Connection,
        files: Mapping[str, RemoteFile],
        folder: Path,
        *,
        offline: bool,
        downloaded: Path | None = None,
    ) -> None:
        self.uri = f"hf://{connection.repo}@{connection.revision}"
        self.commit = connection.revision
        self.progress = connection.progress
        self.offline = offline
        self._connection = connection
        self._files = files
        self._folder = folder
        # What huggingface_hub has downloaded of this commit before; often nothing.
        self._downloaded = None if downloaded is None else LocalSource(downloaded)
        self._caches: dict[str, RangeCache] = {}
        self._lock = threading.Lock()
        self._bytes_read = self._bytes_fetched = 0

    @classmethod
    def open(
        cls, repo: str, *, revision: str, options: HubOptions, progress: Progress | None = None
    ) -> HubSource:
        """Resolve ``revision`` (branch, tag or commit) and list the files, from hub or cache.

        A commit whose list is cached asks nobody. A branch asks the hub, and where none can be
        reached takes the commit that it last stood at, with a warning.
        """
        if _REPO.fullmatch(repo) is None or ".." in repo:
            raise InvalidSpec("model.uri", f"hf://{repo}", "hf://org/name[@revision]")
        # it tells each request at INFO, with the signature that a redirected address carries
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        connection = Connection(
            repo,
            revision,
            options.address(),
            options.token or get_token(),
            stall_timeout_s=options.stall_timeout_s,
            policy=options.policy,
            progress=progress or Progress(),
        )
        if options.sleep is not None:
            connection.sleep = options.sleep
        base = options.cache_dir / "hub" / repo.replace("/", "--")
        hf_cache = options.hf_cache or Path(constants.HF_HUB_CACHE)
        offline = options.is_offline()
        files = listing(connection, base, hf_cache, offline=offline)
        folder = base / connection.revision
        downloaded = hfcache.snapshot(hf_cache, repo, connection.revision)
        return cls(connection, files, folder, offline=offline, downloaded=downloaded)

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    @property
    def bytes_fetched(self) -> int:
        """Bytes that came over the network."""
        return self._bytes_fetched

    def list(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    def size(self, name: str) -> int:
        return self._file(name).size

    def read_text(self, name: str) -> str:
        return decoded(name, self.read_whole(name))

    def read_whole(self, name: str) -> bytearray:
        """A small file, checked against the hash that its ETag is."""
        file = self._file(name)
        for _ in range(2):
            data = bytearray(file.size)
            self.progress.expect(file.size)
            self.read_into(name, 0, file.size, memoryview(data))
            if matches_etag(data, file.etag):
                return data
            log.warning("a file's hash is wrong; fetching it again", extra={"file": name})
            self._cache(file).drop_all()
        raise CorruptModel(f"{self.uri}, {name}: its bytes do not have the hash {file.etag}")

    def read_into(self, name: str, start: int, end: int, buffer: memoryview) -> None:
        assert len(buffer) == end - start, (len(buffer), start, end)
        self.read_scatter(name, start, [buffer])

    def read_scatter(self, name: str, start: int, buffers: Sequence[memoryview]) -> None:
        file = self._file(name)
        end = start + sum(len(buffer) for buffer in buffers)
        checked_range(name, file.size, start, end)
        if self._is_downloaded(file):
            assert self._downloaded is not None
            self._downloaded.read_scatter(name, start, buffers)
            self._count(end - start, fetched=False)
            return
        target = _Cursor(buffers)
        cache = self._cache(file)
        cache.refresh()
        while start < end:
            extent = cache.find(start)
            if extent is None:
                stop = min(end, cache.next_start(start))
                self._fetch(file, cache, start, stop, target)
                start = stop
                continue
            stop = min(end, extent.end)
            data = cache.read(extent, start, stop)
            if data is not None:  # else it was damaged and is gone: look again
                target.write(data)
                self._count(len(data), fetched=False)
                start = stop

    def _is_downloaded(self, file: RemoteFile) -> bool:
        source = self._downloaded
        return source is not None and source.has(file.name) and source.size(file.name) == file.size

    def _fetch(
        self, file: RemoteFile, cache: RangeCache, start: int, end: int, target: _Cursor
    ) -> None:
        """Bring ``[start, end)`` from the hub into the buffers and the cache."""
        if self.offline:
            raise HubUnreachable(
                f"{self.uri}, {file.name}: bytes {start} to {end} are not in the cache, and "
                "offline mode forbids fetching them"
            )
        writer = ExtentWriter(cache, start)

        def sink(chunk: bytes) -> None:
            writer.write(chunk)
            target.write(chunk)
            self._count(len(chunk), fetched=True)

        try:
            self._connection.fetch(file, start, end, sink)
        finally:
            writer.close()

    def _count(self, nbytes: int, *, fetched: bool) -> None:
        with self._lock:
            self._bytes_read += nbytes
            if fetched:
                self._bytes_fetched += nbytes
        self.progress.advance(nbytes, fetched=fetched)

    def metadata_folder(self) -> Path:
        """Config, tokenizer and templates as files; fetched on the first call."""
        folder = self._folder / "files"
        for name, file in self._files.items():
            target = folder / name
            small = _SMALL.fullmatch(name) and file.size <= _SMALL_BYTES
            if not small or name.endswith(".index.json"):
                continue
            if not target.is_file() or target.stat().st_size != file.size:
                write_atomically(target, bytes(self.read_whole(name)))
        return folder

    def close(self) -> None:
        with self._lock:
            for cache in self._caches.values():
                cache.close()
            self._caches.clear()
        if self._downloaded is not None:
            self._downloaded.close()

    def _file(self, name: str) -> RemoteFile:
        file = self._files.get(checked_name(name))
        if file is None:
            raise ModelNotFound(f"{self.uri} holds no {name}")
        return file

    def _cache(self, file: RemoteFile) -> RangeCache:
        with self._lock:
            cache = self._caches.get(file.name)
            if cache is None:
                cache = RangeCache(self._folder / "ranges", file.name, file.size)
                self._caches[file.name] = cache
            return cache


class _Cursor:
    """Fills buffers one after another."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._left = [buffer for buffer in buffers if len(buffer)]

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            taken = min(len(view), len(self._left[0]))
            self._left[0][:taken] = view[:taken]
            self._left = after(self._left, taken)
            view = view[taken:]
