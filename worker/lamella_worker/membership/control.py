"""The control thread of every stage but the first: it joins, beats, and passes orders on.

Knows no tensors: the compute thread may be deep in a step while this thread goes on beating, so a
long step never looks dead. Stage 0's counterpart is `head_control`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import zmq

from lamella_contract.config import StageConfig
from lamella_contract.errors import StageReplaced, WireError
from lamella_contract.wire import (
    NO_INCARNATION,
    Envelope,
    Flow,
    Heartbeat,
    Join,
    Kind,
    Members,
    MembersAck,
    Reject,
    decode_control,
    encode_control,
)
from lamella_worker.membership.channel import ChannelEnd
from lamella_worker.membership.head_link import HeadLink
from lamella_worker.membership.orders import Broken, Linked, Loaded, Order, Relink, Report
from lamella_worker.membership.resolver import MakeResolver, Resolve, Resolver
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import Network

log = logging.getLogger(__name__)

BEAT_S = 0.25
"""Seconds between heartbeats: four fit into the shortest silence that makes a stage suspect."""

SEARCH_S = 0.05
"""Seconds between two looks for an answer of DNS."""


def state_of(telemetry: Telemetry, loaded: bool) -> str:
    """What a stage says of itself on the control link."""
    if telemetry.state == "failed":
        return "failed"
    return "ready" if loaded else "loading"


def heartbeat(telemetry: Telemetry, loaded: bool, *, error: str, sequence: int) -> Heartbeat:
    """How this stage is, as every stage tells it."""
    state = state_of(telemetry, loaded)
    return Heartbeat(
        stage=telemetry.stage,
        state=state,
        bytes_done=telemetry.load.bytes_done,
        bytes_total=telemetry.load.bytes_total,
        bytes_per_s=telemetry.load.bytes_per_s,
        error=telemetry.reason if state == "failed" else error or telemetry.trouble,
        last_step=telemetry.counters.steps,
        sequence=sequence,
        flow=flow_of(telemetry),
    )


def flow_of(telemetry: Telemetry) -> Flow:
    """What went over this stage's data links."""
    return Flow(
        taken=telemetry.frames_taken,
        sent=telemetry.frames_sent,
        largest=telemetry.largest_frame,
        busy=telemetry.computing,
    )


class StageControl(threading.Thread):
    """Speaks with stage 0 on behalf of one other stage."""

    def __init__(
        self,
        config: StageConfig,
        network: Network,
        channel: ChannelEnd[Order, Report],
        telemetry: Telemetry,
        pulse: Pulse,
        *,
        data_address: str,
        http_port: int,
        resolve: Resolve,
        replaced: Callable[[StageReplaced], None],
        make_resolver: MakeResolver = Resolver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`resolve` looks stage 0's name up. `replaced` is called when stage 0 says that a newer
        process has this one's place: it ends the process."""
        super().__init__(name="control", daemon=True)
        self._config = config
        self._replaced = replaced
        self._poller = zmq.Poller()
        self._poller.register(channel.socket, zmq.POLLIN)
        self._channel = channel
        self._telemetry = telemetry
        self._pulse = pulse
        self._data_address = data_address
        self._http_port = http_port
        self._process = pulse.process
        self._head = HeadLink(
            config,
            network,
            telemetry,
            self._poller,
            identity=f"{config.role}/{self._process}",
            resolve=resolve,
            make_resolver=make_resolver,
        )
        self._clock = clock
        self._next_beat_s = 0.0
        self._hash = config.pipeline.config_hash()
        self._incarnation = NO_INCARNATION
        self._epoch = 0
        self._linked_epoch = 0
        self._beats = 0
        self._loaded = False
        self._broken = ""
        self._refusal = ""
        self._ended = threading.Event()

    def run(self) -> None:
        """Beat, listen and pass on until `stop`."""
        while not self._ended.is_set():
            self._poller.poll(max(1, int(self.patience_s() * 1000)))
            self.turn()
        failed = self._telemetry.state == "failed"
        if failed:
            self._beat()  # stage 0 is told why, before this process ends
        self._head.close(last_word=failed)

    def turn(self) -> None:
        """Take in what has come, pass it on, and beat when it is time to."""
        now_s = self._clock()
        self._head.turn(now_s)
        if now_s >= self._next_beat_s:
            self._beat()
            self._next_beat_s = now_s + BEAT_S
        for report in self._channel.drain():
            self._report(report)
        self._listen()
        self._publish(now_s)

    def patience_s(self) -> float:
        """Seconds until the next turn at the latest."""
        wait_s = self._next_beat_s - self._clock()
        return min(wait_s, SEARCH_S) if self._head.searching else wait_s

    def stop(self) -> None:
        """End the thread; safe from any thread."""
        self._ended.set()

    def _beat(self) -> None:
        self._pulse.beat()
        # Both each time: whoever has just become stage 0 learns everything within one beat.
        self._send(
            Join(
                role=self._config.role,
                stage=self._config.stage,
                data_address=self._data_address,
                http_port=self._http_port,
                pid=os.getpid(),
                state=state_of(self._telemetry, self._loaded),
                num_blocks=self._config.pipeline.num_blocks if self._loaded else 0,
                incarnation=self._incarnation.hex(),
                epoch=self._epoch,
                process=self._process,
            )
        )
        self._send(
            heartbeat(self._telemetry, self._loaded, error=self._broken, sequence=self._beats)
        )
        self._beats += 1

    def _report(self, report: Report) -> None:
        match report:
            case Loaded():
                self._loaded = True
                self._beat()
            case Linked(epoch, held) if epoch == self._epoch:
                self._linked_epoch = epoch
                self._send(
                    MembersAck(
                        stage=self._config.stage,
                        incarnation=self._incarnation.hex(),
                        epoch=epoch,
                        last_step=self._telemetry.counters.steps,
                        held=held,
                    )
                )
            case Broken(epoch, reason) if epoch == self._epoch:
                self._broken = reason
                self._beat()
            case _:
                log.debug("an outdated report was dropped", extra={"report": repr(report)})

    def _listen(self) -> None:
        for address, frame in self._head.receive():
            try:
                envelope, message = decode_control(frame)
            except WireError as error:
                self._telemetry.counters.frames_refused += 1
                log.warning("a control frame was refused", extra={"error": str(error)})
                continue
            if isinstance(message, Reject):
                self._rejected(address, envelope.incarnation, message)
            elif envelope.config_hash != self._hash:
                self._telemetry.counters.frames_refused += 1
            elif self._head.choice.heard(address, envelope.incarnation, self._clock()):
                if isinstance(message, Members):
                    self._enter(message)
            else:
                self._telemetry.counters.frames_stale += 1

    def _rejected(self, address: str, incarnation: bytes, reject: Reject) -> None:
        """One of the stage 0s there will not have this stage; another one may."""
        refusal = f"stage 0 at {address} refuses this stage: {reject.reason}"
        if refusal != self._refusal:  # it answers each beat so
            self._refusal = refusal
            log.error(refusal)
        if reject.replaced and self._head.choice.may_follow(address, incarnation, self._clock()):
            self._replaced(StageReplaced(refusal))

    def _enter(self, members: Members) -> None:
        incarnation = bytes.fromhex(members.incarnation)
        if incarnation == self._incarnation and members.epoch <= self._epoch:
            return
        self._incarnation, self._epoch, self._broken = incarnation, members.epoch, ""
        self._telemetry.epoch = members.epoch
        relink = Relink(incarnation, members.epoch, members.next_address, members.next_role)
        self._channel.put(relink)

    def _publish(self, now_s: float) -> None:
        if not self._loaded or self._telemetry.state == "failed":
            return
        if not self._head.choice.is_heard(now_s):
            reason = self._refusal or "stage 0 is not heard"
            self._telemetry.set_state("joining", ready=True, reason=reason)
        elif self._linked_epoch != self._epoch or self._epoch == 0:
            self._telemetry.set_state("joining", ready=True, reason="links are being made")
        else:
            self._refusal = ""
            self._telemetry.set_state("serving", ready=True)

    def _send(self, message: Join | Heartbeat | MembersAck) -> None:
        envelope = Envelope(Kind.JOIN, self._hash, self._incarnation, self._epoch, self._beats)
        self._head.send(encode_control(envelope, message))
