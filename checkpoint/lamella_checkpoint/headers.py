"""Safetensors headers: which tensor lies where, without reading one.

Knows the file format and the index file; does not know which layer a tensor belongs to
(families.py does). Format: 8 bytes little-endian header length, that many bytes of JSON, then the
tensors' bytes; offsets in the JSON count from the end of the header
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from lamella_checkpoint.source import Source, checked_name, decoded
from lamella_contract import names
from lamella_contract.errors import CorruptModel, MissingTensor, ModelNotFound, shown

# Bits of one element, by the name that safetensors gives the dtype.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
FLOAT_NAMES: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
MAX_HEADER_BYTES = 100_000_000  # the reference implementation's own limit
_GUESS_BYTES = 64 << 10  # over a network: length and most headers in one request
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: safetensors' dtype name, shape, and the bytes ``[start, end)`` of ``file``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def rows(self, first: int, last: int) -> TensorInfo:
        """The part ``[first, last)`` of the first axis: contiguous, so it is a range as well."""
        assert self.shape, "a scalar has no rows"
        assert 0 <= first <= last <= self.shape[0], (self.shape, first, last)
        row_bytes = self.nbytes // self.shape[0] if self.shape[0] else 0
        return replace(
            self,
            shape=(last - first, *self.shape[1:]),
            start=self.start + first * row_bytes,
            end=self.start + last * row_bytes,
        )


def read_headers(
    source: Source, wanted: Callable[[str], bool] | None = None, *, max_workers: int = 8
) -> dict[str, TensorInfo]:
    """All tensors of the model by name, from one file or from the files that an index names.

    With ``wanted`` (a test of names), files that the index gives no wanted tensor are not opened.
    Raises `ModelNotFound` when there are no safetensors files or the index names an absent one,
    `CorruptModel` for a damaged header, `MissingTensor` when a file lacks what the index promises.
    """
    index = read_index(source)
    files = _files(source) if index is None else sorted(set(index.values()))
    if index is not None and wanted is not None:
        files = sorted({file for name, file in index.items() if wanted(name)})
    with ThreadPoolExecutor(max_workers=max_workers, thread_name_prefix="headers") as pool:
        found = pool.map(lambda file: read_header(source, file), files)
        headers = dict(zip(files, found, strict=True))
    if index is not None:
        _check_index(index, headers)
    tensors: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        for name, info in header.items():
            if index is not None and index.get(name, file) != file:
                continue  # a second copy; the index says which one counts
            if name in tensors:
                raise CorruptModel(f"tensor {name} is in {tensors[name].file} and in {file}")
            tensors[name] = info
    return tensors


def read_index(source: Source) -> dict[str, str] | None:
    """Tensor name -> file name from the index file; None when the model is not indexed.

    As transformers does, a ``model.safetensors`` beside an index wins.
    """
    present = source.list()
    if names.SAFETENSORS_FILE in present or names.SAFETENSORS_INDEX_FILE not in present:
        return None
    file = names.SAFETENSORS_INDEX_FILE
    document = parsed_json(source.read_text(file), file)
    table = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(table, dict) or not table:
        raise CorruptModel(f"{file}: weight_map: got {shown(table)}, want an object of file names")
    for name, target in table.items():
        if not isinstance(target, str):
            raise CorruptModel(f"{file}: weight_map.{name}: got {shown(target)}, want a file name")
        if checked_name(target) not in present:
            raise ModelNotFound(f"{file} names {target}, which is not among the model's files")
    return table


def _files(source: Source) -> list[str]:
    """The safetensors files of a model without an index."""
    present = source.list()
    if names.SAFETENSORS_FILE in present:
        return [names.SAFETENSORS_FILE]
    found = [name for name in present if name.endswith(".safetensors") and "/" not in name]
    if found:
        return found
    pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth"))]
    hint = f"; {pickled[0]} is pickled, which is never read: convert it" if pickled else ""
    raise ModelNotFound(f"{source.uri} holds no safetensors file{hint}")


def _check_index(index: Mapping[str, str], headers: Mapping[str, Mapping[str, Any]]) -> None:
    for name, file in index.items():
        if file in headers and name not in headers[file]:
            raise MissingTensor(
                f"{names.SAFETENSORS_INDEX_FILE} promises tensor {name} in {file}, "
                "which does not hold it"
            )


def read_header(source: Source, file: str) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file. Raises `CorruptModel` with what is wrong and where."""
    size = source.size(file)
    if size < _LENGTH.size:
        raise CorruptModel(f"{file} has {size} bytes; a safetensors file has at least 8")
    guess = _LENGTH.size if source.local_path is not None else min(size, _GUESS_BYTES)
    head = _read(source, file, 0, guess)
    (length,) = _LENGTH.unpack_from(head)
    end = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or end > size:
        raise CorruptModel(
            f"{file} is truncated or no safetensors file: its header should take {length} bytes "
            f"and the file has {size}"
        )
    if end > len(head):
        head += _read(source, file, len(head), end)
    document = parsed_json(decoded(file, head[_LENGTH.size : end]), f"{file}: header")
    if not isinstance(document, dict):
        raise CorruptModel(f"{file}: header: got {shown(document)}, want an object")
    tensors = {
        name: _tensor(file, name, entry, end)
        for name, entry in document.items()
        if name != "__metadata__"
    }
    _check_ranges(file, size, tensors.values())
    return tensors


def _read(source: Source, file: str, start: int, end: int) -> bytearray:
    data = bytearray(end - start)
    source.progress.expect(len(data))
    source.read_into(file, start, end, memoryview(data))
    return data


def _tensor(file: str, name: str, entry: object, base: int) -> TensorInfo:
    """One entry of the header; ``base`` is where the tensors' bytes begin."""
    where = f"{file}: tensor {name}"
    if not isinstance(entry, dict):
        raise CorruptModel(f"{where}: got {shown(entry)}, want an object")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CorruptModel(f"{where}: dtype: got {shown(dtype)}, want one of safetensors' dtypes")
    if not _naturals(shape):
        raise CorruptModel(f"{where}: shape: got {shown(shape)}, want a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptModel(f"{where}: data_offsets: got {shown(offsets)}, want [begin, end]")
    bits, stored = math.prod(shape) * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if bits != stored * 8:
        raise CorruptModel(
            f"{where}: {dtype} {shape} takes {bits / 8:g} bytes and the file gives it {stored}"
        )
    return TensorInfo(name, dtype, tuple(shape), file, base + offsets[0], base + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_ranges(file: str, size: int, tensors: Iterable[TensorInfo]) -> None:
    """No two tensors share a byte, and none lies beyond the end of the file."""
    before: TensorInfo | None = None
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if before is not None and info.start < before.end:
            raise CorruptModel(f"{file}: tensors {before.name} and {info.name} overlap")
        if info.end > size:
            raise CorruptModel(
                f"{file} is truncated: tensor {info.name} ends at byte {info.end} and the file "
                f"has {size}"
            )
        if info.nbytes:
            before = info


def parsed_json(text: str, where: str) -> Any:
    """JSON that names no key twice, or `CorruptModel`."""
    try:
        return json.loads(text, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise CorruptModel(f"{where} is not valid JSON: {error}") from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"key {twin!r} appears twice")
    return document
