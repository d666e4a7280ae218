"""A model's tensors as torch tensors, read by exact byte ranges.

Knows files and dtypes, no layer and no name of the model's code (weights.py does). It stands
between lamella_checkpoint, which knows no torch, and the loaders of the runners.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from lamella_checkpoint.headers import TensorInfo, read_headers
from lamella_checkpoint.slices import SliceReader
from lamella_checkpoint.source import LocalSource, Source
from lamella_contract.errors import CorruptModel, MissingTensor

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "C64": torch.complex64,
}  # fmt: skip


class TensorReader(Protocol):
    """What the loaders need of a model's files."""

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors in the model's files."""

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Exactly these tensors, as stored; MissingTensor when one is in no file."""

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Of rows `[first, last)` of one tensor those that there are; MissingTensor."""


class RenamedReader:
    """A reader of the same files under other names: `stored` maps the new ones to theirs."""

    def __init__(self, reader: TensorReader, stored: Mapping[str, str]) -> None:
        self._reader = reader
        self._stored = stored

    @property
    def names(self) -> Iterable[str]:
        """The new names."""
        return self._stored.keys()

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Exactly these tensors, as stored; MissingTensor when one is in no file."""
        own = {self._stored.get(name, name): name for name in names}
        found = self._reader.read(list(own))
        return {own[name]: tensor for name, tensor in found.items()}

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Of rows `[first, last)` of one tensor those that there are; MissingTensor."""
        return self._reader.read_rows(self._stored.get(name, name), first, last)


class SourceReader:
    """Reads tensors of a checkpoint source; counts what it read and what was needed."""

    def __init__(
        self, source: Source, infos: Mapping[str, TensorInfo] | None = None, max_workers: int = 8
    ) -> None:
        self._source = source
        self._infos = read_headers(source) if infos is None else infos
        self._max_workers = max_workers
        self.bytes_read = 0
        self.bytes_needed = 0

    @property
    def names(self) -> Iterable[str]:
        """Names of all tensors in the model's files."""
        return self._infos.keys()

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Exactly these tensors, as stored, each in memory of its own."""
        return self._read(self._infos_of(names))

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Of rows `[first, last)` of one tensor those that there are, and no other byte."""
        [whole] = self._infos_of([name])
        rows = whole.shape[0]
        part = whole.rows(min(first, rows), min(last, rows))
        return self._read([part])[name]

    def _infos_of(self, names: Sequence[str]) -> list[TensorInfo]:
        missing = [name for name in names if name not in self._infos]
        if missing:
            raise MissingTensor(f"{missing[:4]}: in no file of {self._source.uri}")
        return [self._infos[name] for name in names]

    def _read(self, infos: Sequence[TensorInfo]) -> dict[str, torch.Tensor]:
        trim_heap()
        wanted = {info.name: info for info in infos}
        slices = SliceReader(self._source, infos, max_workers=self._max_workers)
        tensors = {}
        for name, buffer in slices:
            tensors[name] = _as_tensor(torch.from_numpy(buffer), wanted[name])
        self.bytes_read += slices.bytes_read
        self.bytes_needed += slices.bytes_needed
        return tensors


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    A loader frees what it converted before it reads on; without this the heap keeps it, and a
    stage's memory peaks far above its slice.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _find_malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None


_malloc_trim = _find_malloc_trim()


def _as_tensor(data: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    dtype = _DTYPES.get(info.dtype)
    if dtype is None:
        raise CorruptModel(f"{info.name}: dtype {info.dtype} is none that torch can hold")
    if data.numel() == 0:
        return torch.empty(info.shape, dtype=dtype)
    return data.view(dtype).view(info.shape)


def folder_reader(folder: Path) -> SourceReader:
    """A reader of the safetensors files in a local folder."""
    return SourceReader(LocalSource(folder))
