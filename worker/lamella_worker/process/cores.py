"""Which cores a stage computes on: its own thread on one, torch's other threads on the others.

Knows no engine. Threads that are left to the kernel are put side by side on one core again and
again where a process computes, waits for its neighbour and computes again: a step then takes up to
one and a half times as long as on cores that are told, now and then for minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

_SHARE = 1 << 17
"""Elements per thread of a sum that torch deals out to all of them."""


def begin(threads: int) -> None:
    """Compute with so many threads, at least one, wherever the kernel puts them."""
    torch.set_num_threads(max(1, threads))


def pin(cpu: int | None, threads: int) -> None:
    """Compute with so many threads: the calling one pinned to a core, torch's others to the rest of
    those it may use.

    The threads that exist already (sockets, control, probes) stay free: while a stage waits for its
    neighbour they find an idle core, and cost the steps nothing. What the calling thread starts
    from here on shares its core. None: the kernel decides.
    """
    if cpu is None:
        return
    torch.set_num_threads(threads)
    others = sorted(os.sched_getaffinity(0) - {cpu})
    if threads > 1 and others:
        before = _tasks()
        torch.ones(threads * _SHARE).sum()  # the first parallel work starts them
        for number, task in enumerate(sorted(_tasks() - before)):
            os.sched_setaffinity(task, {others[number % len(others)]})
    os.sched_setaffinity(0, {cpu})


def _tasks() -> set[int]:
    """All threads of this process."""
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}
