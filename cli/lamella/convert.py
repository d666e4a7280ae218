"""GGUF files become folders that stages can read slices of, once, in the cache.

Knows where conversions are kept and how to start the converter; the converting itself takes torch
and is the worker's. Used by `serve` for a GGUF that the user names, and by `demo` for the demo
model.
"""

import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from rich.console import Console

from lamella import machine
from lamella.errors import UsageError
from lamella_checkpoint import gguf

DTYPE = "bfloat16"
"""A GGUF's own numbers are coarser than this, and float32 would double every byte read per
token."""
_BYTES_PER_GGUF_BYTE = 8
"""Room asked for: 4-bit weights in the file become 16 bits, and both lie on the disk for a
moment."""


def converted(path: Path, cache_home: Path, console: Console, *, dtype: str = DTYPE) -> Path:
    """The folder made from the GGUF at `path`, made now if it was not. Raises ModelError or
    UsageError."""
    folder = gguf.converted_folder(path, cache_home, dtype)
    if not gguf.is_converted(folder, dtype=dtype):
        run(path, folder, console, dtype=dtype)
    return folder


def run(path: Path, folder: Path, console: Console, *, dtype: str) -> None:
    """Runs the converter and shows what it says; raises UsageError with its last line when it
    fails."""
    wanted_bytes = path.stat().st_size * _BYTES_PER_GGUF_BYTE
    machine.require_space(folder.parent, wanted_bytes, f"converting {path.name}")
    command = [
        sys.executable, "-P", "-m", "lamella_worker.convert", str(path), str(folder),
        "--dtype", dtype,
    ]  # fmt: skip
    # Its bars redraw one line, which a log or a pipe would keep a hundred times.
    environment = os.environ if console.is_terminal else {**os.environ, "TQDM_DISABLE": "1"}
    last: deque[str] = deque(maxlen=1)
    with (
        console.status(f"converting {path.name} to {dtype}, once (about a minute)") as status,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                last.append(line.strip())
                if not console.is_terminal:
                    console.print(line.strip(), highlight=False, markup=False)
                status.update(f"converting {path.name} to {dtype}, once: {line.strip()}")
        except BaseException:
            _abandon(process, folder)
            raise
    if process.returncode != 0:
        said = last[0] if last else f"exit code {process.returncode}"
        raise UsageError(f"{path}: cannot be converted: {said}")


def _abandon(process: subprocess.Popen[str], folder: Path) -> None:
    """Ends a conversion that nobody wants any more, and what it has half written."""
    process.kill()
    process.wait()
    for half_made in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(half_made, ignore_errors=True)
