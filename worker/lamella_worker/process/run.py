"""One stage's process after the fork: it puts the parts together and runs until told to stop.

Knows the order of things and nothing else: join first (so that loading is visible), then load,
then serve. Returns the exit status: 0 when told to end, 78 when trying again cannot help.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os

import zmq
from setproctitle import setproctitle

from lamella_contract import logs, names
from lamella_contract.config import StageConfig
from lamella_contract.errors import (
    InvalidConfig,
    InvalidSpec,
    LamellaError,
    ModelError,
    OutOfMemory,
    PlanError,
    StageReplaced,
)
from lamella_worker import shared_ring
from lamella_worker.head import HeadLoop
from lamella_worker.links import OutLink
from lamella_worker.membership.channel import ChannelEnd, channel
from lamella_worker.membership.control import StageControl
from lamella_worker.membership.head_control import HeadControl, new_incarnation
from lamella_worker.membership.orders import Loaded, Order, Report
from lamella_worker.membership.resolver import Resolve, system_resolve
from lamella_worker.process import cores, last_words
from lamella_worker.process.loading import LoadEngine, load_at_last, load_engine
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.restarts import EXIT_PERMANENT
from lamella_worker.process.server import StageServer
from lamella_worker.process.stopping import StopFlag
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.sampling import Sampler
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.scheduling.slots import SlotTable
from lamella_worker.stage import StageEngine, StageLoop, StepRunner
from lamella_worker.transport import KeyPair, Network, PullLink

log = logging.getLogger(__name__)

LAST_TOKENS_MS = 500
"""What a drained pipeline told its gateways last has this long to leave."""

PERMANENT = (ModelError, PlanError, InvalidConfig, InvalidSpec, OutOfMemory)
"""What trying again cannot help; `loading` has tried again what it can."""


def run_stage(
    config: StageConfig,
    pulse: Pulse,
    load: LoadEngine | None = None,
    resolve: Resolve = system_resolve,
) -> int:
    """Everything that one stage does, from fork to exit. `load` None is `load_engine`; `resolve`
    looks stage 0's name up."""
    logs.configure(config.role)
    pipeline = config.pipeline
    first, end = pipeline.layer_range(config.stage)
    setproctitle(
        names.stage_title(config.stage, pipeline.num_stages, pipeline.name, f"layers {first}-{end}")
    )
    # All stages load, and try what is fastest here, at the same time: they take turns only later.
    cores.begin(config.threads // (pipeline.num_stages if config.in_turn else 1))
    telemetry = Telemetry(config.stage, pipeline.num_stages, os.getpid(), (first, end))
    telemetry.counters.restarts = pulse.restarts
    telemetry.ring.in_turn = config.in_turn
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
            stage = Stage(config, pulse, telemetry, network, server.port, resolve)
            stage.serve(stop, load or load_engine)
    except PERMANENT as error:
        return fail(config, telemetry, error)
    except MemoryError as error:
        return fail(config, telemetry, OutOfMemory(f"the host has no memory: {error}"))
    return 0


def fail(config: StageConfig, telemetry: Telemetry, error: LamellaError) -> int:
    """Say why this stage ends for good; the exit status."""
    telemetry.set_state("failed", ready=False, reason=str(error))
    log.error(str(error), extra={"kind": error.kind})
    last_words.leave(config.termination_log, error, last_words.secrets_of(config))
    return EXIT_PERMANENT


class Stage:
    """One stage's parts, put together."""

    def __init__(
        self,
        config: StageConfig,
        pulse: Pulse,
        telemetry: Telemetry,
        network: Network,
        http_port: int,
        resolve: Resolve,
    ) -> None:
        self._config = config
        self._pulse = pulse
        self._telemetry = telemetry
        self._network = network
        self._http_port = http_port
        self._resolve = resolve

    def serve(self, stop: StopFlag, load: LoadEngine) -> None:
        """Bind, join, load, then run the loop until told to stop."""
        config, telemetry, network = self._config, self._telemetry, self._network
        control_end: ChannelEnd[Order, Report]
        compute_end: ChannelEnd[Report, Order]
        control_end, compute_end = channel(network, "orders")
        data = listen_for_frames(config, network)
        control = self._control(control_end, data)
        control.start()
        if not config.in_turn:
            cores.pin(config.cpu, config.threads)
        try:
            engine = load_at_last(config, telemetry, load)
            if config.in_turn:
                cores.pin(config.cpu, config.threads)
            loop = make_loop(config, engine, telemetry, self._pulse, network, compute_end, data)
            if isinstance(loop, HeadLoop) and config.drain_s:
                stop.then(loop, functools.partial(loop.drain, config.drain_s))
            else:
                stop.then(loop)
            compute_end.put(Loaded())
            loop.run()
            if telemetry.draining:
                network.linger_ms = LAST_TOKENS_MS
        except PERMANENT as error:
            telemetry.set_state("failed", ready=False, reason=str(error))  # stage 0 is told
            raise
        finally:
            control.stop()
            control.join()

    def _control(
        self, end: ChannelEnd[Order, Report], data: PullLink | None
    ) -> HeadControl | StageControl:
        data_address = data.address if data is not None else "self"
        common = (self._config, self._network, end, self._telemetry, self._pulse)
        if self._config.is_first:
            return HeadControl(*common, incarnation=new_incarnation(), data_address=data_address)
        return StageControl(
            *common,
            data_address=data_address,
            http_port=self._http_port,
            resolve=self._resolve,
            replaced=self._end_replaced,
        )

    def _end_replaced(self, error: StageReplaced) -> None:
        """Called by the control thread: the compute thread may be anywhere, and nothing that this
        process has is of use to anyone."""
        os._exit(fail(self._config, self._telemetry, error))


def waits_awake(config: StageConfig) -> bool:
    """Whether this stage has a core to itself, on which it may wait without sleeping."""
    return config.pipeline.num_stages > 1 and config.cpu is not None and not config.in_turn


def listen_for_frames(config: StageConfig, network: Network) -> PullLink | None:
    """The socket that the previous stage pushes to; on stage 0 the last stage's StepDones.

    None for a pipeline of one stage: nothing leaves the process.
    """
    stages = config.pipeline.num_stages
    if stages == 1:
        return None
    previous = names.stage_role((config.stage - 1) % stages)
    socket = network.listen(zmq.PULL, config.data_bind, domain="data", roles=[previous])
    short_cut = config.cpu is not None and shared_ring.usable()
    return PullLink(socket, shared_ring.SharedRing.create() if short_cut else None)


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
    awake = waits_awake(config)
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
        depth=1 if config.in_turn else pipeline.num_stages,
        eos_token_ids=pipeline.eos_token_ids,
        vocab_size=pipeline.vocab_size,
    )
