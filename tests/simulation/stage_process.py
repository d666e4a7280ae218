"""One run of a stage: the real loops, gates, scheduler, ring and control on simulated sockets.

Put together as `process.run` does it. Subclasses (mutants) replace one part by overriding the
`make_` functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from lamella_contract.config import StageConfig
from lamella_contract.errors import StageReplaced
from lamella_contract.names import stage_role
from lamella_contract.wire import StepDone, StepHeader, decode_envelope
from lamella_worker.head import PROBE_STEP, HeadLoop
from lamella_worker.links import OutLink
from lamella_worker.membership.control import StageControl
from lamella_worker.membership.head_control import HeadControl
from lamella_worker.membership.orders import Loaded
from lamella_worker.process.pulse import BUSY_FACTOR
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.sampling import Sampler
from lamella_worker.scheduling.limits import SchedulerLimits
from lamella_worker.scheduling.scheduler import Scheduler
from lamella_worker.scheduling.slots import SlotTable
from lamella_worker.stage import POLL_S, StageLoop, StepRunner
from lamella_worker.transport import PullLink

from .engine import ToyEngine
from .kernel import Kernel, Process, Thread
from .network import Network
from .sockets import Net


class Pulse:
    """What the parent reads of its child, under simulated time."""

    def __init__(self, kernel: Kernel, process: str) -> None:
        self._kernel = kernel
        self.process = process
        self.restarts = 0
        self.beat_s = kernel.now_s
        self._busy_s = self._idle_s = 0.0

    def beat(self) -> None:
        self.beat_s = self._kernel.clock()

    def busy(self) -> None:
        self._busy_s = self._kernel.clock()

    def idle(self) -> None:
        self._idle_s = self._kernel.clock()  # ahead of the world's time while a step goes on

    def is_dead(self, patience_s: float) -> bool:
        """As the real one judges."""
        now_s = self._kernel.now_s
        busy = now_s < self._idle_s
        return now_s - self.beat_s > patience_s or (
            busy and now_s - self._busy_s > BUSY_FACTOR * patience_s
        )


class Resolver:
    """Looks a name up without a thread; the answer takes a moment."""

    def __init__(self, process: Process, host: str, port: int, resolve: Any, counters: Any) -> None:
        self._process = process
        self._host = host
        self._port = port
        self._resolve = resolve
        self._counters = counters
        self._answers: list[list[str]] = []
        self.busy = False

    def ask(self) -> None:
        if not self.busy:
            self.busy = True
            self._process.kernel.after(0.01, lambda: self._process.carry_out(self._look))

    def answer(self) -> list[str]:
        if not self._answers:
            return []
        self.busy = False
        return self._answers.pop(0)

    def close(self) -> None:
        return None

    def _look(self) -> None:
        try:
            found = [f"tcp://{host}:{self._port}" for host in self._resolve(self._host)]
        except OSError:
            self._counters.resolver_failures += 1
            found = []
        self._answers.append(found)


class CheckedRunner(StepRunner):
    """Nothing is computed on a frame that was missed, seen before, or of another epoch."""

    _last_step = -1

    def enter(self, incarnation: bytes) -> Any:
        self._last_step = -1
        return super().enter(incarnation)

    def run(self, header: StepHeader, inputs: Any) -> Any:
        if header.step < PROBE_STEP:
            last, self._last_step = self._last_step, header.step
            assert last in (-1, header.step - 1), f"step {header.step} is computed after {last}"
        return super().run(header, inputs)


class CheckedStageLoop(StageLoop):
    """What is computed was sent under the epoch that this stage was last told."""

    def _take(self, parts: Sequence[memoryview]) -> None:
        self._came = parts
        super()._take(parts)

    def _step(self, header: StepHeader, parts: Sequence[memoryview]) -> None:
        check_epoch(self._came, self._out)
        super()._step(header, parts)


class CheckedHeadLoop(HeadLoop):
    """The same for results."""

    _came: Sequence[memoryview] = ()

    def _take(self, parts: Sequence[memoryview]) -> None:
        self._came = parts
        super()._take(parts)
        self._came = ()

    def _finish(self, done: StepDone) -> None:
        if self._came:
            check_epoch(self._came, self._out)
        super()._finish(done)


def check_epoch(came: Sequence[memoryview], out: OutLink | None) -> None:
    """A stage sends under the epoch that it is in."""
    assert out is not None
    got, want = decode_envelope(came[0]), out._envelope
    assert (got.incarnation, got.epoch) == (want.incarnation, want.epoch), (
        f"a frame of epoch {got.epoch} is taken in epoch {want.epoch}"
    )


COUNTS = (
    "scheduler",
    "oldest_step_sent_s",
    "predicted_step_s",
    "frames_taken",
    "frames_sent",
    "largest_frame",
    "computing",
)
"""What the compute thread alone writes and the control thread tells others."""


def counts_of(telemetry: Telemetry) -> tuple[Any, ...]:
    return tuple(getattr(telemetry, name) for name in COUNTS)


def set_counts(telemetry: Telemetry, counts: tuple[Any, ...]) -> None:
    for name, value in zip(COUNTS, counts, strict=True):
        setattr(telemetry, name, value)


class StageProcess:
    """`ended` is called when it ends by itself, with why: "drained" or "replaced"."""

    def __init__(
        self,
        net: Net,
        config: StageConfig,
        *,
        host: str,
        name: str,
        load_s: float,
        recurrent: bool,
        resolve: Callable[[str], list[str]],
        ended: Callable[[StageProcess, str], None],
    ) -> None:
        self.kernel = net.kernel
        self.net = net
        self.config = config
        self.process = Process(net.kernel, name, host)
        self.pulse = Pulse(net.kernel, name)
        self.recurrent = recurrent
        self.pod = name.partition(".")[0]
        self._ended = ended
        self._resolve = resolve
        pipeline = config.pipeline
        stages = pipeline.num_stages
        self.network = Network(net, self.process, config.role, credit=stages + 1)
        layers = pipeline.layer_range(config.stage)
        self.telemetry = Telemetry(config.stage, stages, 1, layers)
        self._control_end, self._compute_end = self.network.channel()
        self.data: PullLink | None = None
        if stages > 1:
            previous = stage_role((config.stage - 1) % stages)
            socket: Any = self.network.listen(
                zmq.PULL, f"tcp://{host}:*", domain="data", roles=[previous]
            )
            self.data = PullLink(socket)
        self.loop: HeadLoop | StageLoop | None = None
        self.engine: ToyEngine | None = None
        self.slots: SlotTable | None = None
        self.scheduler: Scheduler | None = None
        self.out: OutLink | None = None
        self._own = self._seen = counts_of(self.telemetry)
        self._in_turn = False
        self.control_thread = Thread(self.process, self._control_turn)
        self.compute_thread = Thread(self.process, self._compute_turn)
        self.network.control = self.control_thread
        self.network.compute = self.compute_thread
        with self.control_thread.making_turn():
            self.control = self._make_control()
        self.control_thread.wake()
        net.kernel.after(load_s, lambda: self.process.carry_out(self._loaded))

    @property
    def stage(self) -> int:
        return self.config.stage

    # -- parts; a mutant overrides one -----------------------------------------------------------

    def make_engine(self) -> ToyEngine:
        pipeline = self.config.pipeline
        return ToyEngine(
            layers=pipeline.layer_range(self.stage),
            num_blocks=pipeline.num_blocks,
            block_size=pipeline.block_size,
            recurrent=self.recurrent,
            spend=self._spend,
            seed=self.net.next_id(),
        )

    def make_scheduler(self, limits: SchedulerLimits) -> Scheduler:
        return Scheduler(limits)

    def make_runner(self, *parts: Any, **named: Any) -> StepRunner:
        return CheckedRunner(*parts, **named)

    def make_stage_loop(self, *parts: Any, **named: Any) -> StageLoop:
        return CheckedStageLoop(*parts, **named)

    def make_head_loop(self, *parts: Any, **named: Any) -> HeadLoop:
        return CheckedHeadLoop(*parts, **named)

    def make_out(self, *parts: Any) -> OutLink:
        return OutLink(*parts)

    def make_head_control(self, *parts: Any, **named: Any) -> HeadControl:
        return HeadControl(*parts, **named)

    # -- threads -----------------------------------------------------------------------------------

    def _make_control(self) -> HeadControl | StageControl:
        common: tuple[Any, ...] = (
            self.config,
            self.network,
            self._control_end,
            self.telemetry,
            self.pulse,
        )
        clock = self.kernel.clock
        address = self.data.address if self.data is not None else "self"
        if self.config.is_first:
            incarnation = self.net.next_id().to_bytes(16, "big")
            return self.make_head_control(
                *common, incarnation=incarnation, data_address=address, clock=clock
            )
        return StageControl(
            *common,
            data_address=address,
            http_port=1,
            resolve=self._resolve,
            replaced=self._replaced,
            make_resolver=lambda *parts: Resolver(self.process, *parts),  # type: ignore[arg-type]
            clock=clock,
        )

    def _control_turn(self) -> float:
        self.control.turn()
        return max(0.001, self.control.patience_s())

    def _loaded(self) -> None:
        with self.compute_thread.making_turn():
            self._make_loop()
            self._compute_end.put(Loaded())
        self.compute_thread.wake()

    def _make_loop(self) -> None:
        config, pipeline = self.config, self.config.pipeline
        clock = self.kernel.clock
        config_hash = pipeline.config_hash()
        self.engine = self.make_engine()
        self.slots = SlotTable(
            num_blocks=pipeline.num_blocks,
            block_size=pipeline.block_size,
            max_sequences=pipeline.max_sequences + 1,
            max_model_len=pipeline.max_model_len,
        )
        runner = self.make_runner(
            self.engine,
            self.slots,
            Sampler() if config.is_last else None,
            self.telemetry,
            self.pulse,
            clock_ns=lambda: int(clock() * 1e9),
        )
        if self.data is not None:
            self.out = self.make_out(self.network, config_hash, self.telemetry)
        if config.is_first:
            self.scheduler = self.make_scheduler(limits_of(config))
            self.loop = self.make_head_loop(
                runner,
                self.scheduler,
                self.out,
                self.data,
                self._compute_end,
                self.telemetry,
                config_hash,
                probe_slot=pipeline.max_sequences,
                awake=False,
                clock=clock,
            )
            return
        self.loop = self.make_stage_loop(
            runner,
            self.out,
            self.data,
            self._compute_end,
            self.telemetry,
            config_hash,
            is_last=config.is_last,
            awake=False,
        )

    def _spend(self, seconds: float) -> None:
        self._show()
        self.compute_thread.spend(seconds)

    def _show(self) -> None:
        """What the compute thread has counted up to here others see when the world is so far."""
        counts = counts_of(self.telemetry)

        def see() -> None:
            self._seen = counts
            if not self._in_turn:
                set_counts(self.telemetry, counts)

        self.process.do(see)

    def _compute_turn(self) -> float | None:
        loop, orders = self.loop, self._compute_end.socket
        if loop is None:
            return None
        ready: Any = (orders,) if orders.inbox else ()  # type: ignore[attr-defined]
        self._in_turn = True
        set_counts(self.telemetry, self._own)
        worked = loop.turn(ready)
        self._own = counts_of(self.telemetry)
        self._show()
        self._in_turn = False
        set_counts(self.telemetry, self._seen)
        if loop.stopping:
            self._end_drained()
            return None
        more = orders.inbox or (self.data is not None and self.data.socket.inbox)  # type: ignore[attr-defined]
        if worked or more:
            return 0.0
        return POLL_S if self.scheduler is not None else None

    # -- ends --------------------------------------------------------------------------------------

    def _end_drained(self) -> None:
        def end() -> None:
            self.control.turn()  # the last tokens
            self.network.linger_ms = 500
            self.network.close()
            self.process.die()
            self._ended(self, "drained")

        self.process.do(end)

    def _replaced(self, error: StageReplaced) -> None:
        self.kill()
        self._ended(self, "replaced")

    def kill(self, *, silently: bool = False) -> None:
        """SIGKILL, or (silently) its node has no power any more."""
        if self.process.alive:
            self.process.die()
            self.net.died(self.process, silently=silently)

    def stop(self) -> None:
        """SIGSTOP."""
        self.process.stop()

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.go_on()
        self.net.flow()


def limits_of(config: StageConfig) -> SchedulerLimits:
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
