"""Loading and saving a shard's weights as safetensors, and nothing else.

It knows no step. A checkpoint is read by the same code as a model: header first, then this shard's
tensors alone, strictly. Files outside the given path are never opened, nothing is unpickled, and
the weights in use stay until the new ones are complete.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lamella_checkpoint.headers import TensorInfo
from lamella_checkpoint.slices import SliceReader
from lamella_checkpoint.source import LocalSource, Source
from lamella_contract.errors import CorruptModel, EngineError, ModelNotFound, OutOfMemory
from lamella_worker.engine_base import EngineBase
from lamella_worker.engine_models import LoadedSlice, ShardReader, open_slice
from lamella_worker.oom import is_out_of_memory
from lamella_worker.shard import Shard

_log = logging.getLogger("lamella_worker.engine")

SUFFIX = ".safetensors"


class CheckpointSource(LocalSource):
    """The weights of a checkpoint (a file or a folder), with the configuration of the model."""

    def __init__(self, path: Path, config_folder: Path) -> None:
        folder = path if path.is_dir() else path.parent
        check_confined(path)
        super().__init__(folder)
        self._config_folder = config_folder
        self._only = None if path.is_dir() else path.name

    def list(self) -> tuple[str, ...]:
        return super().list() if self._only is None else (self._only,)

    def metadata_folder(self) -> Path:
        return self._config_folder


def check_confined(path: Path) -> None:
    """CorruptModel when a weight file of the checkpoint, links followed, lies outside of it."""
    folder = (path if path.is_dir() else path.parent).resolve()
    files = path.glob(f"*{SUFFIX}*") if path.is_dir() else [path]
    for file in files:
        if not file.resolve().is_relative_to(folder):
            raise CorruptModel(f"{file} leads out of the checkpoint, to {file.resolve()}")


def is_checkpoint(path: Path) -> bool:
    """True for a `.safetensors` file's name and for a folder that holds such files."""
    return path.suffix == SUFFIX or (path.is_dir() and any(path.glob(f"*{SUFFIX}")))


def check_shapes(used: Iterable[TensorInfo], found: Mapping[str, TensorInfo]) -> None:
    """CorruptModel when a tensor that is in use has another shape in the checkpoint."""
    for info in used:
        new = found.get(info.name)
        if new is not None and new.shape != info.shape:
            raise CorruptModel(
                f"tensor {info.name} has shape {list(new.shape)}, wanted {list(info.shape)}"
            )


class CheckpointCalls(EngineBase):
    """`load_checkpoint` and `save_checkpoint`."""

    async def load_checkpoint(self, shard: Shard, path: str | Path) -> None:
        """Replace the weights of the loaded `shard` by those in a safetensors file or folder.

        Every tensor of the shard must be there in the right shape; on any error the weights in use
        stay. Another format is not read at all: an INFO record says so. Raises ModelError, and
        EngineError when another shard is loaded.
        """
        found = Path(path)
        if not is_checkpoint(found):
            _log.info(
                "Checkpoint loading not fully implemented for this format: wanted safetensors",
                extra={"path": str(found)},
            )
            return
        await self._on_thread(self._load_checkpoint, shard, found)

    def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        if not path.exists():
            raise ModelNotFound(f"{path}: no such checkpoint")
        with self._lock:
            held = self._loaded(shard)
            assert self.model_directory is not None, "set with the slice"
            source = CheckpointSource(path, self.model_directory)
            reader = ShardReader(lambda: source)
            try:
                check_shapes(held.reader.taken, reader.infos)
                fresh = open_slice(
                    type(held.model),
                    reader,
                    held.config,
                    shard.layers,
                    dtype=held.dtype,
                    device=held.device,
                    runner=held.runner,
                )
            except Exception as error:  # out of memory has no type of its own on most devices
                reader.close()
                if is_out_of_memory(error):
                    raise OutOfMemory(f"{held.device} has no memory for {path}: {error}") from error
                raise
            directory = self.model_directory
            # Keys and values of the old weights mean nothing to the new ones.
            self.clear_model()
            self._publish(fresh, shard, directory)

    async def save_checkpoint(self, shard: Shard, path: str | Path) -> None:
        """Write the loaded shard's tensors, under the model's own names, to a safetensors file.

        `path` is the file, or a folder that gets `model.safetensors`. The file appears whole or not
        at all. Tensors are copied from where they were read, bit by bit, so a quantised or fused
        layout in memory changes nothing.
        """
        await self._on_thread(self._save_checkpoint, shard, Path(path))

    def _save_checkpoint(self, shard: Shard, path: Path) -> None:
        with self._lock:
            held = self._loaded(shard)
            target = path if path.suffix == SUFFIX else path / f"model{SUFFIX}"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(target, held.reader.source, held.reader.taken)

    def _loaded(self, shard: Shard) -> LoadedSlice:
        if not self._holds(shard) or self._slice is None:
            held = self.current_shard
            raise EngineError(f"{shard} is not loaded (loaded: {held}): call ensure_shard first")
        return self._slice


def write_safetensors(target: Path, source: Source, infos: Iterable[TensorInfo]) -> None:
    """Copy tensors from `source` into one new file; at most a read-ahead is held in memory.

    Format: https://github.com/huggingface/safetensors#format
    """
    ordered = sorted(infos, key=lambda info: (info.file, info.start))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for info in ordered:
        header[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            start = file.tell()
            for name, buffer in SliceReader(source, ordered):
                file.seek(start + header[name]["data_offsets"][0])
                file.write(buffer.data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
