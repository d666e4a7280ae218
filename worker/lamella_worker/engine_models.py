"""Opening a slice: where its files are, a reader that remembers, and the model object.

It knows no session and no step. The engine calls `open_slice` for the seed's shards, for a stage's
slice and for checkpoints alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamella_checkpoint.families import slice_names
from lamella_checkpoint.headers import TensorInfo, read_headers
from lamella_checkpoint.progress import ProgressSnapshot
from lamella_checkpoint.source import Source
from lamella_worker.downloader import ShardDownloader
from lamella_worker.readers import SourceReader

Progress = Callable[[int, int, int], None]
"""Called with bytes done, bytes wanted and bytes read, while a slice loads."""


class ShardReader:
    """A `TensorReader` that opens its source when it is first used, and remembers what it read."""

    def __init__(self, open_source: Callable[[], Source]) -> None:
        self._open_source = open_source
        self._source: Source | None = None
        self._reader: SourceReader | None = None
        self._infos: Mapping[str, TensorInfo] = {}
        self._taken: dict[str, None] = {}

    @property
    def source(self) -> Source:
        """The model's files."""
        if self._source is None:
            self._source = self._open_source()
        return self._source

    def _opened(self) -> SourceReader:
        if self._reader is None:
            self._infos = read_headers(self.source)
            self._reader = SourceReader(self.source, self._infos)
        return self._reader

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors in the model's files."""
        return self._opened().names

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Where every tensor of the model's files lies."""
        self._opened()
        return self._infos

    @property
    def taken(self) -> list[TensorInfo]:
        """The tensors that were read, once each."""
        return [self._infos[name] for name in self._taken]

    @property
    def bytes_needed(self) -> int:
        """Bytes of the tensors that were read."""
        return sum(info.nbytes for info in self.taken)

    def announce(self, num_layers: int, layers: range) -> None:
        """Say how many bytes a slice will need before its groups are read one by one, so that
        progress has an end. It goes by names; a family that reads otherwise is off by little."""
        names = slice_names(self.infos, num_layers, layers)
        self.source.progress.plan(sum(self.infos[name].nbytes for name in names))

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Exactly these tensors, as stored; MissingTensor, CorruptModel."""
        tensors = self._opened().read(names)
        self._taken.update(dict.fromkeys(names))
        return tensors

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Of rows [first, last) of one tensor those that there are; the other errors of `read`."""
        rows = self._opened().read_rows(name, first, last)
        self._taken[name] = None
        return rows

    def close(self) -> None:
        """Give files and connections back."""
        if self._source is not None:
            self._source.close()


@dataclass(frozen=True, slots=True)
class LoadedSlice:
    """A model object and where its weights came from, and how it was made."""

    model: Any
    reader: ShardReader
    config: Mapping[str, Any]
    dtype: torch.dtype
    device: torch.device
    runner: str


def source_opener(
    downloader: Any, place: str | Path, revision: str, on_progress: Progress | None
) -> Callable[[], Source]:
    """How to open `place`: a folder that the downloader gave, or a model's name."""
    found: list[Source] = []

    def tell(snapshot: ProgressSnapshot) -> None:
        if on_progress is not None:
            read = found[0].bytes_read if found else 0
            on_progress(snapshot.bytes_done, snapshot.bytes_total, read)

    def open_place() -> Source:
        # Any object may be the downloader: only ours is asked for more than `ensure_shard`.
        ours = downloader if isinstance(downloader, ShardDownloader) else ShardDownloader()
        if isinstance(place, Path):
            source = ours.source_of(place, tell)
        else:
            source = ours.open(place, revision, tell)
        found.append(source)
        return source

    return open_place


def open_slice(
    make: Callable[..., Any],
    reader: ShardReader,
    config: Mapping[str, Any],
    layers: range,
    *,
    dtype: torch.dtype,
    device: torch.device,
    runner: str = "auto",
    quantization: str = "none",
) -> LoadedSlice:
    """Load half-open `layers` of the model that `config` (of `load_model_config`) describes.

    `make` is ShardedGeneralModel, or what a test has put in its place: nothing is opened before it
    asks for tensors. Raises ModelError, PlanError.
    """
    # Whoever stands in for ShardedGeneralModel need not know of quantization.
    more = {} if quantization == "none" else {"quantization": quantization}
    model = make(
        config.get("hf_config"), layers, reader, dtype=dtype, device=device, runner=runner, **more
    )
    return LoadedSlice(model, reader, config, dtype, device, runner)
