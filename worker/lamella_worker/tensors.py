"""Tensors as the raw buffers that a data link carries, and back.

Knows no socket and no step. A boundary's bundle becomes one header and one flat byte view per
tensor; on the other side the parts land in fresh CPU memory and move to the stage's device once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lamella_contract.errors import WireError
from lamella_contract.wire import TensorHeader
from lamella_worker.batch import Bundle
from lamella_worker.transport import split_parts

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def pack_bundle(bundle: Bundle) -> tuple[tuple[TensorHeader, ...], list[memoryview]]:
    """Headers and flat byte views of every tensor, in the bundle's order; the views stay valid
    while they are referenced."""
    headers, views = [], []
    for name, tensor in bundle.items():
        view = _bytes_of(tensor)
        headers.append(
            TensorHeader(
                name=name,
                dtype=NAMES[tensor.dtype],
                shape=tuple(tensor.shape),
                parts=len(split_parts(view)),
            )
        )
        views.append(view)
    return tuple(headers), views


def unpack_bundle(headers: Sequence[TensorHeader], parts: Sequence[memoryview]) -> Bundle:
    """The bundle that `headers` describe, made of `parts`, in CPU memory of its own.

    WireError if they do not fit exactly. The engine moves it to its device.
    """
    wanted = sum(header.parts for header in headers)
    if wanted != len(parts):
        raise WireError(f"tensor parts: got {len(parts)}, want {wanted}")
    bundle: Bundle = {}
    first = 0
    for header in headers:
        own = parts[first : first + header.parts]
        bundle[header.name] = _tensor_of(header, own)
        first += header.parts
    return bundle


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _tensor_of(header: TensorHeader, parts: Sequence[memoryview]) -> torch.Tensor:
    dtype = DTYPES.get(header.dtype)
    if dtype is None:
        raise WireError(f"tensor {header.name}: dtype {header.dtype!r}, want one of {list(DTYPES)}")
    size = math.prod(header.shape) * dtype.itemsize
    if sum(part.nbytes for part in parts) != size:
        got = sum(part.nbytes for part in parts)
        raise WireError(f"tensor {header.name}: got {got} bytes, want {size}")
    if not size:
        return torch.empty(header.shape, dtype=dtype)
    # One copy out of libzmq's memory, which is freed with its frame.
    raw = bytearray(parts[0]) if len(parts) == 1 else bytearray(b"".join(parts))
    return torch.frombuffer(raw, dtype=dtype).view(header.shape)
