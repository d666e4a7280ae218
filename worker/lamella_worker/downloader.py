"""`ShardDownloader`: from a model's name to a local folder, and to the source of its tensors.

It knows no layers' code and no torch. A local folder is its own answer. Of a model on a hub only
the small files (configuration, tokenizer) are put into a folder; tensors are read from the source
by the byte ranges of the shard alone (`open`), through the checkpoint package's cache on disk, so a
shard that was loaded once loads again without a network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from lamella_checkpoint.source import OnProgress, Source, open_source
from lamella_contract.errors import ModelNotFound
from lamella_contract.names import MODEL_CONFIG_FILE
from lamella_worker.shard import Shard


class ShardDownloader:
    """Opens models by name: a folder's path, `file:` or `hf://org/name@revision`.

    `cache_dir` None is the checkpoint package's own default. `offline` True never connects, what is
    not in the cache is then a typed error; None asks the environment. `opener` is for tests.
    """

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        *,
        token: str | None = None,
        offline: bool | None = None,
        opener: Callable[..., Source] = open_source,
    ) -> None:
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.offline = offline
        self._token = token
        self._opener = opener
        self._sources: dict[Path, tuple[str, str]] = {}

    def open(
        self, uri: str, revision: str | None = None, on_progress: OnProgress | None = None
    ) -> Source:
        """The source of a model's files; the caller closes it. Raises ModelError, InvalidSpec."""
        return self._opener(
            uri,
            revision=revision or None,
            cache_dir=self.cache_dir,
            token=self._token,
            offline=self.offline,
            on_progress=on_progress,
        )

    async def ensure_shard(self, shard: Shard) -> Path:
        """The folder of the shard's configuration and tokenizer.

        Raises ModelError: ModelNotFound, AuthRequired, HubUnreachable (offline and not cached) and
        others, each with the model's name.
        """
        return await asyncio.to_thread(self._ensure, shard.model_id)

    def source_of(self, folder: Path, on_progress: OnProgress | None = None) -> Source:
        """Where the tensors of a folder that `ensure_shard` gave are read from, same commit."""
        uri, commit = self._sources.get(folder, (str(folder), ""))
        return self.open(uri, commit, on_progress)

    def _ensure(self, uri: str) -> Path:
        source = self.open(uri)
        try:
            if MODEL_CONFIG_FILE not in source.list():
                raise ModelNotFound(f"{uri}: it has no {MODEL_CONFIG_FILE}")
            folder = source.metadata_folder()
            if source.local_path is None:
                # A branch may move between this and the reading of tensors: the commit does not.
                self._sources[folder] = (uri.partition("@")[0], source.commit)
            return folder
        finally:
            source.close()
