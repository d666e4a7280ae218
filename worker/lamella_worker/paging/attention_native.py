"""Decode rows by a small C function (decode.c) that reads pages in place; chunks as they were.

Knows no model. The function is taken from a library beside decode.c, where there is one, or else
compiled at start for the geometry and the processor at hand; where neither can be, `compiled` gives
None and the other backends remain. attention_choice.py tries it like any other.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lamella_worker.paging.attention import AttentionSpec
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.attention_views import ViewAttention
from lamella_worker.paging.cache import PagedPool

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("decode.c")
_COMPILE_S = 20.0
_INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_ARGUMENTS = (
    *(_POINTER, _INT, _POINTER, _POINTER, _POINTER),  # q, its row stride, k, v, out
    *(_INT, _INT, _INT),  # kv_heads, pool_rows, sequences
    *(_POINTER,) * 3,  # rows, spans, runs
    *(_FLOAT, _FLOAT, _INT),  # scale, cap, threads
)


@cache
def compiled(group: int, k_dim: int, v_dim: int, dtype: torch.dtype) -> Any:
    """decode.c for `group` query heads per key head, as a ctypes function; None where it cannot be.

    What is compiled is not kept between processes: who could write to a cache could run code here.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        return None
    symbol = f"decode_{group}_{k_dim}_{v_dim}_{str(dtype).removeprefix('torch.')}"
    geometry = [f"-DGROUP={group}", f"-DK_DIM={k_dim}", f"-DV_DIM={v_dim}"]
    kind = ["-DBF16"] if dtype == torch.bfloat16 else []
    try:
        function = prebuilt(_SOURCE.parent, symbol) or _compile([*geometry, *kind])
    except (OSError, subprocess.SubprocessError) as e:
        log.info("attention could not be compiled", extra={"reason": str(e)[:200]})
        return None
    return function


def prebuilt(folder: Path, symbol: str) -> Any:
    """`symbol` of the best library in `folder` that this processor can run; None without one.

    scripts/attention makes them, and ranks them by name. OSError: one that does not load.
    """
    for path in sorted(folder.glob("decode.*.so"), key=lambda path: path.stem, reverse=True):
        library = ctypes.CDLL(str(path))
        if library.supported():
            return _typed(library[symbol]) if hasattr(library, symbol) else None
    return None


def _compile(macros: list[str]) -> Any:
    """The function of decode.c with these macros; OSError or SubprocessError where it fails."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    with tempfile.TemporaryDirectory() as folder:
        compiled_file = f"{folder}/decode.o"
        flags = ["-O3", "-march=native", "-fopenmp", "-fPIC", *macros]
        _run([compiler, "-c", *flags, "-o", compiled_file, str(_SOURCE)])
        try:
            # Linked to no OpenMP: what torch has loaded answers, whatever its file is called. A
            # second runtime would have a second pool of threads, which spin against torch's.
            return _link([compiler, "-shared", compiled_file], f"{folder}/shared.so")
        except (OSError, subprocess.SubprocessError):  # torch's is none that can be seen
            return _link([compiler, "-shared", "-fopenmp", compiled_file], f"{folder}/own.so")


def _link(command: list[str], library: str) -> Any:
    _run([*command, "-o", library])
    return _typed(ctypes.CDLL(library).decode)


def _typed(function: Any) -> Any:
    function.argtypes, function.restype = _ARGUMENTS, None
    return function


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_S)


class NativeAttention:
    """One call per layer for all decode rows of a step, whatever their lengths and blocks.

    `function` is what `compiled` gave for the layers' geometry. It shares its work out to as many
    threads as torch has.
    """

    def __init__(self, function: Any, views: ViewAttention) -> None:
        self.name = f"decode native, for the rest: {views.name}"
        self._function = function
        self._views = views

    def attend(
        self, q: torch.Tensor, pool: PagedPool, layer: int, plan: AttentionPlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """See AttentionBackend."""
        decode = plan.decode_rows(spec.window)
        if spec.sinks is not None or decode is None:
            return self._views.attend(q, pool, layer, plan, spec)
        if q.stride(1) != spec.k_dim or q.stride(2) != 1:
            q = q.contiguous()
        out = torch.empty(q.shape[0], spec.heads * spec.v_dim, dtype=q.dtype)
        self._function(
            *(q.data_ptr(), q.stride(0)),
            *(pool.keys(layer).data_ptr(), pool.values(layer).data_ptr(), out.data_ptr()),
            *(spec.kv_heads, pool.rows, len(decode.rows)),
            *decode.addresses,
            *(spec.scale, spec.softcap or 0.0, torch.get_num_threads()),
        )
        if len(decode.rows) != q.shape[0]:
            for piece in plan.pieces(spec.window, grouped=True):
                if piece.count > 1:
                    rows = slice(piece.row, piece.row + piece.rows)
                    out[rows] = self._views.piece(q[rows], pool, layer, plan, piece, spec)
        return out
