"""One stage's process after the fork: it puts the parts together and runs until told to stop.

Knows the order of things and nothing else: join first (so that loading is visible), then load,
then serve. Returns the exit status: 0 when told to end, 78 when trying again cannot help.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zmq
from setproctitle import setproctitle

from lamella_contract import logs, names
from lamella_contract.config import StageConfig
from lamella_contract.errors import (
    DownloadStalled,
    HubUnreachable,
    InvalidConfig,
    ModelError,
    RateLimited,
)
from lamella_worker import shared_ring
from lamella_worker.downloader import ShardDownloader
from lamella_worker.engine import TorchDynamicShardInferenceEngine
from lamella_worker.head import HeadLoop
from lamella_worker.links import OutLink
from lamella_worker.membership.channel import ChannelEnd, channel
from lamella_worker.membership.control import StageControl
from lamella_worker.membership.head_control import HeadControl, new_incarnation
from lamella_worker.membership.orders import Loaded, Order, Report
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.restarts import EXIT_PERMANENT
from lamella_worker.process.server import StageServer
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.sampling import Sampler
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.scheduling.slots import SlotTable
from lamella_worker.stage import StageEngine, StageLoop, StepRunner
from lamella_worker.transport import KeyPair, Network, PullLink

log = logging.getLogger(__name__)

LoadEngine = Callable[[StageConfig, Telemetry], StageEngine]
"""Makes a stage's engine ready: reads its slice and reserves its pages."""

TRANSIENT = (HubUnreachable, DownloadStalled, RateLimited)
"""Model errors that another try may not meet: the parent starts the stage again."""


def run_stage(config: StageConfig, pulse: Pulse, load: LoadEngine | None = None) -> int:
    """Everything that one stage does, from fork to exit. `load` None is `load_engine`."""
    logs.configure(config.role)
    pipeline = config.pipeline
    first, end = pipeline.layer_range(config.stage)
    setproctitle(
        names.stage_title(config.stage, pipeline.num_stages, pipeline.name, f"layers {first}-{end}")
    )
    torch.set_num_threads(config.threads)
    telemetry = Telemetry(config.stage, pipeline.num_stages, os.getpid(), (first, end))
    stop = StopFlag()
    try:
        with contextlib.ExitStack() as stack:
            server = StageServer(config.http_address, telemetry)
            stack.callback(server.close)
            network = Network(
                KeyPair.load(config.key_file),
                dict(config.peer_keys),
                credit=pipeline.num_stages + 1,
            )
            stack.callback(network.close)
            serve(config, pulse, telemetry, network, server.port, stop, load or load_engine)
    except TRANSIENT:
        log.exception("the model could not be read; it will be tried again")
        return 1
    except (ModelError, InvalidConfig) as error:
        telemetry.set_state("failed", ready=False, reason=str(error))
        log.error(str(error), extra={"kind": error.kind})
        return EXIT_PERMANENT
    return 0


class StopFlag:
    """SIGTERM and SIGINT: while loading they end the process, while serving they end the loop."""

    def __init__(self) -> None:
        self._end: Callable[[], None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def then(self, end: Callable[[], None]) -> None:
        """From now on a signal calls `end` instead of leaving at once."""
        self._end = end

    def _on_signal(self, number: int, frame: object) -> None:
        if self._end is None:
            raise SystemExit(0)
        self._end()


def serve(
    config: StageConfig,
    pulse: Pulse,
    telemetry: Telemetry,
    network: Network,
    http_port: int,
    stop: StopFlag,
    load: LoadEngine,
) -> None:
    """Bind, join, load, then run the loop until told to stop."""
    control_end: ChannelEnd[Order, Report]
    compute_end: ChannelEnd[Report, Order]
    control_end, compute_end = channel(network, "orders")
    data = listen_for_frames(config, network)
    data_address = data.address if data is not None else "self"
    control: HeadControl | StageControl
    if config.is_first:
        control = HeadControl(
            config,
            network,
            control_end,
            telemetry,
            pulse,
            incarnation=new_incarnation(),
            data_address=data_address,
        )
    else:
        control = StageControl(
            config,
            network,
            control_end,
            telemetry,
            pulse,
            data_address=data_address,
            http_port=http_port,
        )
    control.start()
    pin(config.cpu)
    try:
        engine = load(config, telemetry)
        loop = make_loop(config, engine, telemetry, pulse, network, compute_end, data)
        stop.then(lambda: setattr(loop, "stopping", True))
        compute_end.put(Loaded())
        loop.run()
    finally:
        control.stop()
        control.join()


def pin(cpu: int | None) -> None:
    """Pin the calling thread, and what it starts from here on: the compute thread and torch's.

    The threads that exist already (sockets, control, probes) stay free: while a stage waits for its
    neighbour they find an idle core, and cost the steps nothing.
    """
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


def listen_for_frames(config: StageConfig, network: Network) -> PullLink | None:
    """The socket that the previous stage pushes to; on stage 0 the last stage's StepDones.

    None for a pipeline of one stage: nothing leaves the process.
    """
    stages = config.pipeline.num_stages
    if stages == 1:
        return None
    previous = names.stage_role((config.stage - 1) % stages)
    socket = network.listen(zmq.PULL, config.data_bind, domain="data", roles=[previous])
    awake = config.cpu is not None and shared_ring.usable()
    return PullLink(socket, shared_ring.SharedRing.create() if awake else None)


def load_engine(config: StageConfig, telemetry: Telemetry) -> StageEngine:
    """Read this stage's slice; progress shows in `telemetry` all the while."""
    began_s = time.monotonic()

    def on_progress(done: int, total: int, read: int) -> None:
        load = telemetry.load
        load.bytes_done, load.bytes_total, load.bytes_read = done, total, read
        elapsed_s = time.monotonic() - began_s
        load.bytes_per_s = done / elapsed_s if elapsed_s > 0 else 0.0

    downloader = ShardDownloader(
        cache_dir=config.cache_dir or None, token=read_token(config.hub_token_file)
    )
    engine = TorchDynamicShardInferenceEngine(downloader)
    engine.load_stage(config, on_progress)
    telemetry.load.bytes_total = telemetry.load.bytes_done  # what was announced was a forecast
    telemetry.memory = engine.memory()
    log.info("slice loaded", extra={"seconds": round(time.monotonic() - began_s, 2)})
    return engine


def read_token(path: str) -> str | None:
    """The hub's token from its file; None when no file is named."""
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise InvalidConfig(f"hub_token_file={path!r}: {error}") from error


def make_loop(
    config: StageConfig,
    engine: StageEngine,
    telemetry: Telemetry,
    pulse: Pulse,
    network: Network,
    channel_end: ChannelEnd[Report, Order],
    data: PullLink | None,
) -> HeadLoop | StageLoop:
    """The loop that fits this stage's place."""
    pipeline = config.pipeline
    config_hash = pipeline.config_hash()
    runner = StepRunner(
        engine,
        SlotTable(
            num_blocks=pipeline.num_blocks,
            block_size=pipeline.block_size,
            max_sequences=pipeline.max_sequences + 1,  # the last slot is the probe's
            max_model_len=pipeline.max_model_len,
        ),
        Sampler() if config.is_last else None,
        telemetry,
        pulse,
    )
    out = OutLink(network, config_hash, telemetry) if data is not None else None
    awake = config.cpu is not None and pipeline.num_stages > 1
    if config.is_first:
        scheduler = Scheduler(scheduler_limits(config))
        return HeadLoop(
            runner,
            scheduler,
            out,
            data,
            channel_end,
            telemetry,
            config_hash,
            probe_slot=pipeline.max_sequences,
            awake=awake,
        )
    assert out is not None
    assert data is not None
    return StageLoop(
        runner, out, data, channel_end, telemetry, config_hash, is_last=config.is_last, awake=awake
    )


def scheduler_limits(config: StageConfig) -> SchedulerLimits:
    """What the scheduler may hand out, from the pipeline's configuration."""
    pipeline = config.pipeline
    return SchedulerLimits(
        num_blocks=pipeline.num_blocks,
        block_size=pipeline.block_size,
        max_sequences=pipeline.max_sequences,
        max_model_len=pipeline.max_model_len,
        max_step_tokens=pipeline.max_step_tokens,
        max_queued_tokens=pipeline.max_queued_tokens,
        stages=pipeline.num_stages,
        eos_token_ids=pipeline.eos_token_ids,
        vocab_size=pipeline.vocab_size,
    )
