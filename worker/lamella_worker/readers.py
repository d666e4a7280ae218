"""Tensors of a model's files as torch tensors, read by exact byte ranges.

Knows no layer and no name of the model's code (weights.py does).
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class FolderReader:
    """Reads tensors of the safetensors files in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._infos: dict[str, tuple[Path, str, list[int], int, int]] = {}
        self.bytes_read = 0
        for path in sorted(Path(folder).glob("*.safetensors")):
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size))
            for name, info in header.items():
                if name != "__metadata__":
                    a, b = info["data_offsets"]
                    self._infos[name] = (
                        path, info["dtype"], info["shape"], 8 + size + a, 8 + size + b,
                    )  # fmt: skip

    @property
    def names(self) -> Iterable[str]:
        return self._infos.keys()

    def read(self, names: Sequence[str]) -> Mapping[str, torch.Tensor]:
        tensors = {}
        for name in names:
            path, dtype, shape, start, end = self._infos[name]
            with path.open("rb") as file:
                file.seek(start)
                buffer = bytearray(file.read(end - start))
            self.bytes_read += len(buffer)
            if not buffer:
                tensors[name] = torch.empty(shape, dtype=_DTYPES[dtype])
                continue
            tensors[name] = torch.frombuffer(buffer, dtype=_DTYPES[dtype]).view(shape)
        return tensors
