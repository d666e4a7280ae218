"""Pipelines, gateways and whoever starts them again, in one simulated world.

A *place* is one stage of one pipeline: a pod with an address, and in it one process at a time. The
parent in a pod forks its child again (twin of the nursery); a twin of the operator replaces a pod
that is gone or that stage 0 calls lost, and never a healthy one: that is checked here. `faults`
does harm to a world, `checks` says what must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lamella_contract.config import PipelineConfig, StageConfig
from lamella_contract.names import stage_role

from .engine import EOS, LAYERS, VOCABULARY, Oracle
from .gateway_process import GatewayProcess, Record
from .kernel import Kernel
from .schedule import Schedule
from .sockets import Net
from .stage_process import StageProcess

BLOCK_SIZE = 4
MAX_MODEL_LEN = 48
SUSPECT_S, REPLACE_S = 1.0, 2.5
DEADLINE_S = 25.0
OPERATOR_EVERY_S = 1.0
NURSERY_EVERY_S = 0.5
UNREACHABLE_S = 4.0  # a stage 0 that does not answer for so long is replaced
LOAD_S = 0.05
NEVER_S = float("inf")
ORACLE = Oracle(MAX_MODEL_LEN)  # of all worlds: they ask much the same


@dataclass(eq=False)
class Place:
    """One stage of one pipeline. `trouble_s`: until when it is excused for being silent."""

    pipeline: int
    stage: int
    host: str = ""
    pod: str = ""
    run: StageProcess | None = None
    pods: int = 0
    children: int = 0
    frozen: bool = False  # the whole pod, its parent too
    coming: bool = False  # a pod is on its way
    trouble_s: float = 0.0
    zombies: list[StageProcess] = field(default_factory=list)

    @property
    def is_up(self) -> bool:
        return self.run is not None and self.run.process.alive and not self.run.process.stopped

    def trouble(self, until_s: float) -> None:
        self.trouble_s = max(self.trouble_s, until_s)


class World:
    """`stage_class` and `gateway_class` are the programs that run in it; mutants are other ones."""

    def __init__(
        self,
        schedule: Schedule,
        *,
        stage_class: type[StageProcess] = StageProcess,
        gateway_class: type[GatewayProcess] = GatewayProcess,
    ) -> None:
        self.schedule = schedule
        self.kernel = Kernel()
        self.net = Net(self.kernel, schedule.seed)
        self.stage_class = stage_class
        self.gateway_class = gateway_class
        self.oracle = ORACLE
        self.records: list[Record] = []
        self.dns_is_down = False
        self.counts: Counter[str] = Counter()
        self.hurt_s = 0.0  # how long all faults together may keep a request waiting
        self.runs: list[StageProcess] = []
        self._hosts = 0
        self._to_come: list[Callable[[], None]] = []
        self.pipelines = [
            [Place(p, k) for k in range(stages)] for p, stages in enumerate(schedule.stages)
        ]
        self._configs = [_pipeline_config(schedule, p) for p in range(len(schedule.stages))]
        for place in self.places:
            self.start_pod(place)
        self.gateways: list[GatewayProcess] = []
        self._gateways = 0
        for _ in range(schedule.gateways):
            self.start_gateway()
        self.kernel.after(OPERATOR_EVERY_S, self._operate)
        self.kernel.after(NURSERY_EVERY_S, self._nurse)

    @property
    def places(self) -> list[Place]:
        return [place for pipeline in self.pipelines for place in pipeline]

    @property
    def model_hash(self) -> bytes:
        return self._configs[0].model_hash()

    # -- pods ------------------------------------------------------------------------------------

    def start_pod(self, place: Place) -> None:
        """A new pod with a new address; what runs in an older one becomes a zombie."""
        self._hosts += 1
        place.pods += 1
        place.coming = place.frozen = False
        place.host = f"10.0.{self._hosts >> 8}.{self._hosts & 255}"
        place.pod = f"pod-{place.pipeline}-{place.stage}-{place.pods}"
        if place.run is not None and place.run.process.alive:
            place.zombies.append(place.run)
        self.fork(place)

    def replace_pod(self, place: Place, after_s: float) -> None:
        """Another pod takes the place, once it is there."""
        if place.coming:
            return
        place.coming = True
        place.trouble(self.kernel.now_s + after_s + LOAD_S + 1.0)
        pods = place.pods

        def start() -> None:
            if place.pods == pods:
                self.start_pod(place)

        self._later(after_s, start)

    def fork(self, place: Place) -> None:
        """A new child in the place's pod."""
        place.children += 1
        place.run = self.stage_class(
            self.net,
            self._stage_config(place),
            host=place.host,
            name=f"{place.pod}.{place.children}",
            load_s=LOAD_S,
            recurrent=self.schedule.recurrent,
            resolve=self.resolve_head(place.pipeline),
            ended=partial(self._ended, place),
        )
        self.runs.append(place.run)
        place.trouble(self.kernel.now_s + LOAD_S + 1.0)

    def fork_again(self, place: Place, after_s: float) -> None:
        """The child is dead: its parent forks another, unless the pod is gone by then."""
        place.trouble(self.kernel.now_s + after_s + LOAD_S + 1.0)
        pods, children = place.pods, place.children

        def again() -> None:
            if (place.pods, place.children, place.coming) == (pods, children, False):
                self.fork(place)

        self._later(after_s, again)

    def _later(self, after_s: float, start: Callable[[], None]) -> None:
        self._to_come.append(start)
        self.kernel.after(after_s, start)

    def hasten(self, after_s: float) -> None:
        """Whoever is to come comes soon: nobody waits for them any more."""
        for start in self._to_come:
            self.kernel.after(after_s, start)
        self._to_come.clear()

    def _ended(self, place: Place, run: StageProcess, why: str) -> None:
        if why == "replaced":
            assert run is not place.run, f"{run.process} is the present one, and is told to end"
            self.counts["told to end"] += 1
        elif run is place.run:
            self.replace_pod(place, 0.3)

    def resolve_head(self, pipeline: int) -> object:
        def resolve(host: str) -> list[str]:
            if self.dns_is_down:
                raise OSError("no answer")
            return [self.pipelines[pipeline][0].host]

        return resolve

    def heads(self) -> tuple[str, ...]:
        """Where gateways find stage 0s."""
        if self.dns_is_down:
            raise OSError("no answer")
        return tuple(sorted(f"tcp://{places[0].host}:5700" for places in self.pipelines))

    def _stage_config(self, place: Place) -> StageConfig:
        host, pipeline = place.host, self._configs[place.pipeline]
        is_head = place.stage == 0
        keys = [(stage_role(k), "k" * 40) for k in range(pipeline.num_stages)]
        return StageConfig(
            pipeline=pipeline,
            stage=place.stage,
            device="cpu",
            threads=1,
            cpu=None,
            control_address=f"tcp://{host if is_head else 'head'}:5701",
            gateway_address=f"tcp://{host}:5700" if is_head else "",
            data_bind=f"tcp://{host}:*",
            http_address=f"{host}:0",
            key_file="/keys",
            peer_keys=(*keys, ("gateway-0", "k" * 40)),
            cache_dir="",
            hub_token_file="",
            suspect_after_s=SUSPECT_S,
            replace_after_s=REPLACE_S,
        )

    # -- those who start things again -----------------------------------------------------------

    def _nurse(self) -> None:
        """The parent in each pod kills a child that shows no sign of life."""
        self.kernel.after(NURSERY_EVERY_S, self._nurse)
        for place in self.places:
            run = place.run
            if run is None or place.frozen or not run.process.alive:
                continue
            if run.pulse.is_dead(REPLACE_S):
                self.check_trouble(place, "killed by its parent")
                run.kill()
                self.fork_again(place, 0.2)

    def _operate(self) -> None:
        """Twin of the operator: a lost pod is replaced, and only a lost one."""
        self.kernel.after(OPERATOR_EVERY_S, self._operate)
        for places in self.pipelines:
            head = places[0]
            assert head.run is not None
            if head.frozen and not head.coming:
                if self.kernel.now_s - head.run.pulse.beat_s > UNREACHABLE_S:
                    self.counts["pods replaced"] += 1
                    self.replace_pod(head, 0.5)
                continue
            if not head.is_up or head.run.telemetry.lost[0] is None:
                continue
            stage, pod = head.run.telemetry.lost
            assert stage is not None
            place = places[stage]
            if place.pod != pod or place.coming:
                continue
            self.check_trouble(place, "called lost")
            self.counts["pods replaced"] += 1
            if not place.frozen and place.run is not None:
                place.run.kill()
            self.replace_pod(place, 0.5)

    def check_trouble(self, place: Place, what: str) -> None:
        """Only who was in trouble a moment ago may be replaced."""
        excused = not place.is_up or self.kernel.now_s < place.trouble_s + REPLACE_S + 2.5
        assert excused, f"a healthy stage was {what}: {place.pod}"

    # -- gateways ----------------------------------------------------------------------------------

    def start_gateway(self, instead_of: GatewayProcess | None = None) -> GatewayProcess:
        self._gateways += 1
        self._hosts += 1
        gateway = self.gateway_class(
            self.net,
            name=f"g{self._gateways}",
            host=f"10.0.{self._hosts >> 8}.{self._hosts & 255}",
            model_hash=self.model_hash,
            eos=(EOS,),
            deadline_s=DEADLINE_S,
            max_queued_tokens=100_000,
            resolve=self.heads,
        )
        if instead_of is None:
            self.gateways.append(gateway)
        else:
            self.gateways[self.gateways.index(instead_of)] = gateway
        return gateway


def _pipeline_config(schedule: Schedule, pipeline: int) -> PipelineConfig:
    stages = schedule.stages[pipeline]
    return PipelineConfig(
        name="toy",
        model_uri="file:/toy",
        model_path="/toy",
        commit="c",
        num_layers=LAYERS,
        splits=tuple(k * LAYERS // stages for k in range(stages)),
        dtype="float32",
        block_size=BLOCK_SIZE,
        num_blocks=schedule.blocks,
        max_sequences=schedule.sequences,
        max_model_len=MAX_MODEL_LEN,
        max_step_tokens=12,
        max_queued_tokens=100_000,
        eos_token_ids=(EOS,),
        vocab_size=VOCABULARY,
        model_uid="uid",
        replica=pipeline,
    )
