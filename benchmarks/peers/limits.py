"""What no system can beat: the weights that every decode step reads, at the speed of one core.

    python limits.py FOLDER CORE        prints bytes per step and bytes per second as JSON

One stream crosses the stages one after the other, so a second core does not lower this floor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

BUFFER_BYTES = 1 << 29  # far beyond any cache
ROUNDS = 7


def step_bytes(folder: Path) -> int:
    """Bytes of all weights but the embedding, of which a step reads a row per token."""
    with (folder / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    spans = {
        name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"
    }
    read = {name: end - begin for name, (begin, end) in spans.items() if "embed_tokens" not in name}
    return sum(read.values())


def read_bytes_per_s(core: int) -> float:
    """The best of several passes of one thread over memory."""
    os.sched_setaffinity(0, {core})
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy as np

    buffer = np.ones(BUFFER_BYTES // 4, np.float32)
    best_s = float("inf")
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        np.dot(buffer, buffer)  # reads it once: both operands are the same bytes
        best_s = min(best_s, time.perf_counter() - began_s)
    return BUFFER_BYTES / best_s


if __name__ == "__main__":
    figures = {
        "step_bytes": step_bytes(Path(sys.argv[1])),
        "read_bytes_per_s": read_bytes_per_s(int(sys.argv[2])),
    }
    print(json.dumps(figures))
