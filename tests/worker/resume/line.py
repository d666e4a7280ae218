"""A pipeline in one process: real engines, tables, sampler and scheduler, and frames in queues.

Steps lie in the stages' queues until `turn` lets a random stage take its next one, so a disturbance
finds them anywhere. What sockets and membership do is left out: `epoch` drops all frames in flight
and asks the stages what they hold.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lamella_contract.config import PipelineConfig, StageConfig
from lamella_contract.wire import Sampling, StageTime, StepDone, StepHeader, Submit
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.downloader import ShardDownloader
from lamella_worker.engine import TorchDynamicShardInferenceEngine
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.sampling import Sampler
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.requests import OwnedEvent
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.scheduling.slots import SlotTable
from lamella_worker.stage import StepRunner

BLOCK, BLOCKS, SEQUENCES, LONGEST, STEP_TOKENS = 4, 56, 5, 96, 24
VOCABULARY = 128
OWNER = b"gateway"


class Pressed:
    """An engine whose next steps find no memory, after they have changed what they could."""

    def __init__(self, engine: TorchDynamicShardInferenceEngine) -> None:
        self.engine = engine
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, batch: StepBatch, bundle: Bundle) -> Bundle:
        done = self.engine.step(batch, bundle)
        if self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("told to have none")
        return done


@dataclass
class Stage:
    """One stage and the steps on their way to it."""

    config: StageConfig
    inbox: deque[tuple[StepHeader, Bundle]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new process: its slice, and nothing else."""
        engine = TorchDynamicShardInferenceEngine(ShardDownloader(), device="cpu")
        engine.load_stage(self.config)
        pipeline, k = self.config.pipeline, self.config.stage
        self.engine = Pressed(engine)
        self.runner = StepRunner(
            self.engine,
            SlotTable(
                num_blocks=pipeline.num_blocks,
                block_size=pipeline.block_size,
                max_sequences=pipeline.max_sequences,
                max_model_len=pipeline.max_model_len,
            ),
            Sampler() if self.config.is_last else None,
            Telemetry(k, pipeline.num_stages, 0, pipeline.layer_range(k)),
            Pulse(),
        )

    def close(self) -> None:
        self.engine.close()


@dataclass
class Client:
    """What a gateway has of a request."""

    prompt: tuple[int, ...]
    sampling: Sampling
    attempt: int = 0
    received: list[int] = field(default_factory=list)
    finish: str = ""
    error: str = ""

    @property
    def answer(self) -> tuple[tuple[int, ...], str, str]:
        return tuple(self.received), self.finish, self.error


class Line:
    """Stages in a row, their scheduler, and its clients."""

    def __init__(
        self, folder: Path, layers: int, splits: tuple[int, ...], seed: int, *, cold: bool = False
    ) -> None:
        """`cold`: no request begins with what another left."""
        self.cold = cold
        self.random = random.Random(seed)
        self.stages = [Stage(stage_config(folder, layers, splits, k)) for k in range(len(splits))]
        self.clients: list[Client] = []
        self.done: deque[StepDone] = deque()
        self.counts = {"epochs": 0, "held": 0, "replayed": 0, "exhausted": 0, "found": 0}
        self.new_scheduler()

    def close(self) -> None:
        for stage in self.stages:
            stage.close()

    def new_scheduler(self) -> None:
        """Stage 0 begins anew; gateways submit what they have, as their next attempt."""
        if self.clients:
            self.counts["found"] += self.scheduler.stats().prefix_cache_hits
        self.scheduler = Scheduler(
            SchedulerLimits(
                num_blocks=BLOCKS,
                block_size=BLOCK,
                max_sequences=SEQUENCES,
                max_model_len=LONGEST,
                max_step_tokens=STEP_TOKENS,
                max_queued_tokens=1000,
                stages=len(self.stages),
                eos_token_ids=(2,),
            )
        )
        self.incarnation = self.random.randbytes(16)
        for number, client in enumerate(self.clients):
            if not client.finish:
                client.attempt += 1
                self._submit(number)
        self.epoch()

    def submit(self, prompt: tuple[int, ...], sampling: Sampling) -> None:
        self.clients.append(Client(prompt, sampling))
        self._submit(len(self.clients) - 1)

    def _submit(self, number: int) -> None:
        client = self.clients[number]
        ids = (*client.prompt, *client.received)
        name = number.to_bytes(16, "big")
        submit = Submit(name, client.attempt, len(client.prompt), ids, client.sampling)
        self.scheduler.submit(submit, OWNER)

    def epoch(self) -> None:
        """All frames in flight are lost; what the stages hold goes on."""
        self.done.clear()
        for stage in self.stages:
            stage.inbox.clear()
        held = [stage.runner.enter(self.incarnation) for stage in self.stages]
        self.counts["epochs"] += 1
        self.counts["held"] += sum(slot.length for answer in held for slot in answer or ())
        self.counts["replayed"] += self.scheduler.stats().rows_replayed
        self.scheduler.restart([None] if self.cold else held)

    def replace(self, k: int) -> None:
        """Stage k's process ended, and another has its place."""
        self.stages[k].close()
        self.stages[k].start()
        self.epoch()

    def exhaust(self, k: int) -> None:
        """Stage k has no memory for its next step."""
        self.stages[k].engine.failures += 1
        self.counts["exhausted"] += 1

    def serve(self, disturb: Callable[[Line, int], None], most: int = 6000) -> None:
        """Until all clients have their answers; `disturb` is called before each turn."""
        for turn in range(most):
            if all(client.finish for client in self.clients):
                self.counts["found"] += self.scheduler.stats().prefix_cache_hits
                return
            disturb(self, turn)
            self.turn()
        raise AssertionError("a request hangs")

    def turn(self) -> None:
        """One step of one stage, or a new step, or a result: whichever chance says."""
        able: list[Callable[[], None]] = [
            lambda stage=stage: self._advance(stage)  # type: ignore[misc]
            for stage in self.stages
            if stage.inbox
        ]
        if self.done:
            able.append(self._complete)
        if not able or self.random.random() < 0.3:
            step = self.scheduler.next_step(0.0)
            if step is not None:
                ids = torch.from_numpy(step.token_ids)
                self.stages[0].inbox.append((step.header, {"token_ids": ids}))
                return
        if able:
            self.random.choice(able)()
        self.scheduler.check_integrity()

    def _advance(self, stage: Stage) -> None:
        header, inputs = stage.inbox.popleft()
        bundle, rows, _, failed = stage.runner.run(header, {} if header.failed else inputs)
        if stage.config.is_last:
            trace = tuple(StageTime(1000, 0) for _ in self.stages)
            self.done.append(StepDone(header.step, rows, trace, failed))
            return
        onward = dataclasses.replace(header, failed=failed)
        self.stages[stage.config.stage + 1].inbox.append((onward, bundle))

    def _complete(self) -> None:
        self.take(self.scheduler.complete(self.done.popleft(), 0.0))

    def take(self, events: Sequence[OwnedEvent]) -> None:
        for _, event in events:
            client = self.clients[int.from_bytes(event.request_id, "big")]
            assert not client.finish, "an event after the end"
            assert event.attempt == client.attempt
            if event.finish != "error":
                assert event.position == len(client.received), "a token was lost or doubled"
                client.received += event.ids
            client.finish, client.error = event.finish, event.error


def stage_config(folder: Path, layers: int, splits: tuple[int, ...], stage: int) -> StageConfig:
    pipeline = PipelineConfig(
        name="tiny", model_uri=str(folder), model_path=str(folder), commit="", num_layers=layers,
        splits=splits, dtype="float32", block_size=BLOCK, num_blocks=BLOCKS,
        max_sequences=SEQUENCES, max_model_len=LONGEST, max_step_tokens=STEP_TOKENS,
        max_queued_tokens=1000, eos_token_ids=(2,), vocab_size=VOCABULARY, runner="auto",
    )  # fmt: skip
    return StageConfig(
        pipeline=pipeline, stage=stage, device="cpu", threads=1, cpu=None,
        control_address="tcp://127.0.0.1:1", gateway_address="tcp://127.0.0.1:2",
        data_bind="tcp://127.0.0.1:*", http_address="127.0.0.1:0", key_file="k", peer_keys=(),
        cache_dir="", hub_token_file="",
    )  # fmt: skip
