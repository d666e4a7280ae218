"""Recognising "out of memory" in whatever shape a device reports it.

It knows no engine and no model. Each allocator has its own way: CUDA raises
`torch.OutOfMemoryError`, the CPU allocator a plain RuntimeError with a text, MPS a RuntimeError
with another text, oneDNN a third, Python itself MemoryError.
"""

from __future__ import annotations

import gc

import torch

_TEXTS = (
    "can't allocate memory",  # DefaultCPUAllocator, and posix_memalign's errno text
    "cannot allocate memory",  # strerror(ENOMEM), as mmap and others report it
    "not enough memory",  # DefaultCPUAllocator on some platforms
    "out of memory",  # CUDA driver, MPS backend
    "failed to allocate",  # HIP and others
    "std::bad_alloc",  # C++ operator new inside a kernel
    "could not create a memory object",  # oneDNN
)
_MARGIN = 8  # causes looked through: a chain is never longer in practice


def is_out_of_memory(error: BaseException | None) -> bool:
    """True when `error`, or an error that it was raised from, says that memory ran out."""
    for _ in range(_MARGIN):
        if error is None:
            return False
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError | OSError) and _says_so(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_so(text: str) -> bool:
    text = text.lower()
    return any(part in text for part in _TEXTS)


def device_name(device: torch.device) -> str:
    """`CUDA`, `MPS` or `CPU`: how messages call the device."""
    return device.type.upper()


def release_scratch(device: torch.device) -> None:
    """Give back what only the allocator and dead frames hold. Weights and pages are kept.

    Call it outside the `except` block: a live traceback keeps the failed call's tensors alive.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
