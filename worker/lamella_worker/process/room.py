"""Whether a stage's slice and pages fit where they are to go, said before anything is read.

Knows the planner's sums and what the system says is free; it loads nothing. A pipeline whose
memory was declared is planned to fit; one of unknown memory, or a device that somebody else uses
too, is found out here, with both numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lamella_checkpoint.inspector import inspect
from lamella_checkpoint.source import Source
from lamella_contract.config import StageConfig
from lamella_contract.errors import OutOfMemory
from lamella_contract.plan import plan
from lamella_contract.units import human

_CGROUP = Path("/sys/fs/cgroup")


def needed_bytes(config: StageConfig, source: Source) -> int:
    """Bytes of the stage's weights and caches, by the headers of `source`; ModelError, PlanError.

    Scratch and the runtime's own memory come on top, so this much is surely not too much.
    """
    pipeline = config.pipeline
    ranges = [pipeline.layer_range(stage) for stage in range(pipeline.num_stages)]
    stages = plan(
        inspect(source, dtype=pipeline.dtype, stored=pipeline.quantization),
        split=tuple(end - first for first, end in ranges),
        max_sequences=pipeline.max_sequences,
        block_size=pipeline.block_size,
    ).stages
    return stages[config.stage].needed_bytes(pipeline.num_blocks * pipeline.block_size)


def check_room(config: StageConfig, needed: int, free: int) -> None:
    """OutOfMemory, with both numbers, when `needed` bytes do not fit into `free`."""
    if needed > free:
        raise OutOfMemory(shortage(config, needed, free))


def shortage(config: StageConfig, needed: int, free: int) -> str:
    """The sentence with both numbers (0 needed: not known)."""
    first, end = config.pipeline.layer_range(config.stage)
    wanted = human(needed) if needed else "more"
    return (
        f"stage {config.stage} (layers {first} to {end - 1}) needs {wanted} on {config.device}, "
        f"{human(free)} are free; give it more memory, more stages, or less context"
    )


def free_bytes(device: str) -> int:
    """Bytes free on a device; of the host what this container may still take."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return host_free_bytes(Path("/proc/meminfo"), _CGROUP)


def host_free_bytes(meminfo: Path, cgroup: Path) -> int:
    """The smaller of what the host has and what the control group (v2) leaves."""
    found = []
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    most, used = _lines(cgroup / "memory.max"), _lines(cgroup / "memory.current")
    if most and used and most[0].isdigit():
        # Cached files are counted as used, and given back when memory is asked for.
        cached = [int(s.split()[1]) for s in _lines(cgroup / "memory.stat") if s[:5] == "file "]
        found.append(max(0, int(most[0]) - int(used[0]) + sum(cached)))
    return min(found, default=0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")
    except OSError:
        return []
