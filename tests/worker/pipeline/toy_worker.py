"""A worker whose engine is a toy: real processes, sockets, paging and sampling; no model.

The next token is a hash of *all* tokens of the sequence, read back through the block table from
pages that each stage keeps for itself. So a lost page, a wrong table or a replay that leaves
something out changes the answer. `next_token` is the oracle.

Run as `python toy_worker.py stage-0.json stage-1.json ...`, or with no file to fork workers when
told. The file that TOY_DNS names holds what stage 0's name means, a JSON list of addresses; an
empty one is a DNS that is down. TOY_ANNOUNCE is where others are to send this stage's frames,
instead of where it listens: a proxy is there. TOY_LOAD names a pipe: loading takes until its other
end is closed, and fails if the kind of an error is written.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lamella_contract.config import StageConfig
from lamella_contract.errors import OutOfMemory, from_kind
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.process import run
from lamella_worker.process.nursery import Nursery
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import PullLink

VOCABULARY = 97
POISON = 13
"""A prompt that begins with this token makes stage 1 run out of memory."""


def next_token(tokens: list[int] | np.ndarray) -> int:
    """What the toy answers to these tokens; never the poison, never 0 or 1."""
    value = 7
    for token in tokens:
        value = (value * 31 + int(token) + 1) % 1_000_003
    return 14 + value % (VOCABULARY - 14)


class ToyEngine:
    """One stage: writes tokens into its own pages, and on the last stage reads them all back."""

    def __init__(self, config: StageConfig) -> None:
        pipeline = config.pipeline
        self._pages = np.full(pipeline.num_blocks * pipeline.block_size, -1, np.int64)
        self._block_size = pipeline.block_size
        self._stage = config.stage
        self._is_last = config.is_last

    def step(self, batch: StepBatch, bundle: Bundle) -> Bundle:
        tokens = bundle["token_ids"]
        self._pages[batch.cache_rows] = tokens.numpy()
        if self._stage == 1 and any(self._first(batch, s) == POISON for s in batch.segments):
            raise OutOfMemory("the toy was poisoned")
        if not self._is_last:
            return {"token_ids": tokens}
        logits = torch.zeros(len(batch.sampled), VOCABULARY)
        for row, segment in enumerate(batch.sampled):
            rows = np.arange(segment.length)
            at = segment.blocks[rows // batch.block_size] * batch.block_size
            logits[row, next_token(self._pages[at + rows % batch.block_size])] = 1.0
        return {"logits": logits}

    def _first(self, batch: StepBatch, segment: object) -> int:
        return int(self._pages[segment.blocks[0] * batch.block_size])  # type: ignore[attr-defined]

    @property
    def rewindable(self) -> bool:
        return True  # pages are all there is

    def copy_blocks(self, sources: Sequence[int], blocks: Sequence[int]) -> None:
        pages = self._pages.reshape(-1, self._block_size)
        pages[list(blocks)] = pages[list(sources)]

    def release(self, slot: int) -> None:
        return None

    def reset(self) -> None:
        self._pages.fill(-1)

    def memory(self) -> dict[str, int]:
        return {}


def load(config: StageConfig, telemetry: Telemetry) -> ToyEngine:
    if pipe := os.environ.get("TOY_LOAD"):
        telemetry.load.bytes_total, telemetry.load.bytes_done = 100, 40
        if kind := Path(pipe).read_text():
            raise from_kind(kind, "the toy was told to fail")
    return ToyEngine(config)


def resolve(host: str) -> list[str]:
    addresses: list[str] = json.loads(Path(os.environ["TOY_DNS"]).read_text())
    if not addresses:
        raise OSError(f"{host}: temporary failure in name resolution")
    return addresses


class Proxied(PullLink):
    """Listens as ever, and tells others to dial the proxy."""

    @property
    def address(self) -> str:
        return os.environ["TOY_ANNOUNCE"]


def stage_main(config: StageConfig, pulse: Pulse) -> int:
    if "TOY_ANNOUNCE" in os.environ:
        run.PullLink = Proxied  # type: ignore[misc]
    return run.run_stage(config, pulse, load, resolve)


def work(paths: list[str]) -> int:
    """What a parent of stages does, once all is imported."""
    configs = [StageConfig.from_json(Path(path).read_text()) for path in paths]
    return Nursery(configs, stage_main).run()


def fork_workers() -> None:
    """Starts a worker for each line of stdin, JSON as `Pods.pod` writes it, and says its pid.

    What takes seconds, importing torch, is done once for all of them. A keeper waits for each, as a
    kubelet would, and leaves its exit code in the file `exit`.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    for line in sys.stdin.buffer:
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        order = json.loads(line)
        worker = os.fork()
        if not worker:
            os.environ.update(order["environment"])
            os._exit(work([order["config"]]))
        os.write(1, f"{worker}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        fresh = Path(order["exit"] + ".fresh")
        fresh.write_text(str(code))
        fresh.replace(order["exit"])
        os._exit(0)


if __name__ == "__main__":
    sys.exit(work(sys.argv[1:]) if sys.argv[1:] else fork_workers())
