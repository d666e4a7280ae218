"""Stage 0's control thread: the membership of the ring, and the links to the gateways.

Knows no tensors and decides nothing itself: what was heard goes into `Ring`, what the ring says is
carried out. Gateways reach the scheduler through here, so a long step delays no heartbeat.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import zmq

from lamella_contract import names
from lamella_contract.config import StageConfig
from lamella_contract.errors import WireError
from lamella_contract.wire import (
    Envelope,
    Heartbeat,
    HeldSlot,
    Join,
    Kind,
    Members,
    MembersAck,
    Reject,
    StageReport,
    decode_control,
    encode_control,
)
from lamella_worker.membership import overview
from lamella_worker.membership.channel import ChannelEnd
from lamella_worker.membership.control import BEAT_S, flow_of, heartbeat
from lamella_worker.membership.gateway_port import GatewayPort
from lamella_worker.membership.orders import (
    Broken,
    Linked,
    Loaded,
    Order,
    Probed,
    Relink,
    Report,
    Resume,
    ToGateway,
)
from lamella_worker.membership.ring import (
    Action,
    Connect,
    Pause,
    Phase,
    Probe,
    Refuse,
    Ring,
    pod_of,
)
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import Network, receive_from, send_to

log = logging.getLogger(__name__)


class HeadControl(threading.Thread):
    """Runs the ring on stage 0."""

    def __init__(
        self,
        config: StageConfig,
        network: Network,
        channel: ChannelEnd[Order, Report],
        telemetry: Telemetry,
        pulse: Pulse,
        *,
        incarnation: bytes,
        data_address: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._config = config
        self._clock = clock
        self._next_beat_s = 0.0
        self._network = network
        self._channel = channel
        self._telemetry = telemetry
        self._pulse = pulse
        self._incarnation = incarnation
        self._hash = config.pipeline.config_hash()
        stages = config.pipeline.num_stages
        self._stages = network.listen(
            zmq.ROUTER,
            config.control_address,
            domain="control",
            roles=[names.stage_role(stage) for stage in range(1, stages)],
        )
        self._gateways = GatewayPort(config, network, telemetry)
        self._ring = Ring(stages, config.suspect_after_s, incarnation.hex())
        self._process = pulse.process
        self._ring.join(0, self._process, data_address, self._clock())
        self._loaded = False
        self._next_addresses: tuple[str, ...] = ()
        self._told = (False, "")
        self._held: dict[int, tuple[HeldSlot, ...] | None] = {}  # by stage, of the present epoch
        self._beats: dict[int, Heartbeat] = {}  # the last of each stage
        self._sent = 0
        self._ended = threading.Event()
        telemetry.members = self._reports()  # all absent, but known to belong here

    def run(self) -> None:
        """Listen, tick and beat until `stop`."""
        poller = zmq.Poller()
        for socket in (self._stages, self._gateways.socket, self._channel.socket):
            poller.register(socket, zmq.POLLIN)
        while not self._ended.is_set():
            poller.poll(max(1, int(self.patience_s() * 1000)))
            self.turn()
        for report in self._channel.drain():  # the last tokens of a pipeline that has drained
            self._report(report)

    def turn(self) -> None:
        """Take in what has come, pass it on, and tick when it is time to."""
        for report in self._channel.drain():
            self._report(report)
        self._hear_stages()
        now_s = self._clock()
        for request in self._gateways.hear(now_s):
            self._channel.put(request)
        if now_s >= self._next_beat_s:
            self._tick(now_s)
            self._next_beat_s = now_s + BEAT_S
        self._publish()

    def patience_s(self) -> float:
        """Seconds until the next turn at the latest."""
        return self._next_beat_s - self._clock()

    def stop(self) -> None:
        """End the thread; safe from any thread."""
        self._ended.set()

    def _tick(self, now_s: float) -> None:
        self._pulse.beat()
        flow = flow_of(self._telemetry)
        self._act(self._ring.heard(0, self._process, self._loaded, now_s, flow=flow))
        sent_s = self._telemetry.oldest_step_sent_s
        self._act(
            self._ring.tick(
                now_s,
                oldest_step_age_s=now_s - sent_s if sent_s else 0.0,
                predicted_step_s=self._telemetry.predicted_step_s,
            )
        )
        beat = heartbeat(self._telemetry, self._loaded, error="", sequence=self._sent)
        self._beats[0] = beat
        for stage in self._ring.members:
            self._tell_stage(stage, beat)
        self._telemetry.members = self._reports()
        self._find_lost(now_s)
        self._tell_gateways(everyone=True)
        for order in self._gateways.expire(now_s):
            self._channel.put(order)

    def _report(self, report: Report) -> None:
        now_s = self._clock()
        match report:
            case ToGateway():
                self._gateways.pass_on(self._envelope(), report)
            case Loaded():
                self._loaded = True
                self._act(self._ring.heard(0, self._process, True, now_s))
            case Linked(epoch, held):
                self._acknowledged(0, epoch, held, now_s)
            case Probed(epoch):
                self._act(self._ring.probed(epoch, now_s))
            case Broken(epoch, reason) if epoch == self._ring.epoch:
                self._act(self._ring.broken(reason, now_s))

    def _acknowledged(
        self, stage: int, epoch: int, held: tuple[HeldSlot, ...] | None, now_s: float
    ) -> None:
        if epoch == self._ring.epoch:
            self._held[stage] = held
        self._act(self._ring.acknowledged(stage, epoch, now_s))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect(epoch, next_addresses):
                    self._next_addresses = next_addresses
                    self._held.clear()
                    self._telemetry.epoch = epoch
                    log.info("the ring is connected anew", extra={"epoch": epoch})
                    for stage in self._ring.members:
                        self._tell_stage(stage, self._members(stage))
                    next_role = names.stage_role(1 % self._config.pipeline.num_stages)
                    self._channel.put(
                        Relink(self._incarnation, epoch, next_addresses[0], next_role)
                    )
                case Refuse(stage, process, reason):
                    self._telemetry.counters.retired_refusals += 1
                    log.warning(
                        "a process that was replaced is told to end",
                        extra={"stage": stage, "told": process},
                    )
                    self._send(_identity(stage, process), Reject(reason, replaced=True))
                case _:
                    if isinstance(action, Probe):
                        stages = range(self._config.pipeline.num_stages)
                        held = tuple(self._held[stage] for stage in stages)
                        self._channel.put(Resume(action.epoch, held))
                    if isinstance(action, Pause):
                        log.warning("the ring pauses", extra={"reason": action.reason})
                    self._channel.put(action)
        if actions:  # whoever reads that the ring is whole must not read of a loss of before
            self._find_lost(self._clock())

    def _find_lost(self, now_s: float) -> None:
        lost = self._ring.lost(now_s, self._config.replace_after_s)
        pod = "" if lost is None else pod_of(self._ring.members[lost].process)
        self._telemetry.lost = lost, pod

    def _members(self, stage: int) -> Members:
        stages = self._config.pipeline.num_stages
        return Members(
            incarnation=self._incarnation.hex(),
            epoch=self._ring.epoch,
            next_address=self._next_addresses[stage],
            next_role=names.stage_role((stage + 1) % stages),
            stages=stages,
            credit=stages + 1,
        )

    def _hear_stages(self) -> None:
        while (received := receive_from(self._stages)) is not None:
            identity, frame = received
            try:
                envelope, message = decode_control(frame.buffer)
            except WireError as error:
                self._refuse(str(error))
                continue
            claimed, _, process = identity.decode("utf-8", "replace").partition("/")
            role = self._network.role_of(frame)
            if role != claimed or envelope.config_hash != self._hash:
                reason = "another configuration" if role == claimed else "a foreign key"
                self._refuse(reason)
                self._send(identity, Reject(reason))
                continue
            parsed = names.parse_role(role)
            assert parsed is not None  # only stages' keys pass this socket's allow-list
            self._hear_stage(parsed[1], process, envelope, message)

    def _hear_stage(self, stage: int, process: str, envelope: Envelope, message: object) -> None:
        """A frame of a stage's `process`, as its socket is named: no process speaks for another."""
        now_s = self._clock()
        if isinstance(message, Join):
            seen = (message.incarnation, message.epoch)
            self._act(self._ring.join(stage, process, message.data_address, now_s, seen=seen))
            behind = seen != (self._incarnation.hex(), self._ring.epoch)
            if behind and self._ring.phase is Phase.CONNECTING and self._is_member(stage, process):
                self._tell_stage(stage, self._members(stage))  # the first telling was lost
            return
        if not self._is_member(stage, process):
            return
        ours = (envelope.incarnation, envelope.epoch) == (self._incarnation, self._ring.epoch)
        match message:
            case Heartbeat(state=state):
                self._beats[stage] = message
                loaded, failed = state == "ready", state == "failed"
                flow = message.flow if ours else None
                self._act(self._ring.heard(stage, process, loaded, now_s, failed=failed, flow=flow))
                if message.error and loaded and ours:
                    reason = f"stage {stage}: {message.error}"
                    self._act(self._ring.broken(reason, now_s))
            case MembersAck() if bytes.fromhex(message.incarnation) == self._incarnation:
                self._acknowledged(stage, message.epoch, message.held, now_s)

    def _is_member(self, stage: int, process: str) -> bool:
        member = self._ring.members.get(stage)
        return member is not None and member.process == process

    def _reports(self) -> tuple[StageReport, ...]:
        return overview.stage_reports(self._config, self._ring, self._beats, self._clock())

    def _publish(self) -> None:
        """Say at once when readiness turns, and keep /readyz in step."""
        ready, reason = overview.readiness(self._ring, self._telemetry)
        state = "serving" if ready else ("joining" if self._loaded else "loading")
        if self._telemetry.draining:
            state = overview.DRAINING
        if self._telemetry.state != "failed":
            self._telemetry.set_state(state, ready=ready, reason=reason)
        told, self._told = self._told, (ready, reason)
        turned = told != self._told
        if turned or self._gateways.greeted:  # else each step's events would pay for a status
            self._tell_gateways(everyone=turned)

    def _tell_gateways(self, *, everyone: bool) -> None:
        status = overview.pipeline_status(self._ring, self._telemetry, self._reports())
        self._gateways.tell(self._envelope(), status, everyone=everyone)

    def _tell_stage(self, stage: int, message: Members | Heartbeat) -> None:
        if stage:
            self._send(_identity(stage, self._ring.members[stage].process), message)

    def _send(self, identity: bytes, message: Members | Heartbeat | Reject) -> None:
        send_to(self._stages, identity, encode_control(self._envelope(), message))

    def _envelope(self) -> Envelope:
        self._sent += 1
        return Envelope(Kind.HEARTBEAT, self._hash, self._incarnation, self._ring.epoch, self._sent)

    def _refuse(self, reason: str) -> None:
        self._telemetry.counters.frames_refused += 1
        log.warning("a stage's frame was refused", extra={"reason": reason})


def _identity(stage: int, process: str) -> bytes:
    """The name of a stage's socket."""
    return f"{names.stage_role(stage)}/{process}".encode()


def new_incarnation(clock_ns: Callable[[], int] = time.time_ns) -> bytes:
    """A name for this run of the scheduler, 16 bytes: milliseconds since 1970 (6), then random.

    A later run's name is greater, as far as the clocks of two nodes agree.
    """
    return (clock_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)
