"""The control thread of every stage but the first: it joins, beats, and passes orders on.

Knows no tensors: the compute thread may be deep in a step while this thread goes on beating, so a
long step never looks dead. Stage 0's counterpart is `head_control`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid

import zmq

from lamella_contract import names
from lamella_contract.config import StageConfig
from lamella_contract.errors import WireError
from lamella_contract.wire import (
    NO_INCARNATION,
    Envelope,
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
from lamella_worker.membership.orders import Broken, Linked, Loaded, Order, Relink, Report
from lamella_worker.process.pulse import Pulse
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import Network

log = logging.getLogger(__name__)

BEAT_S = 0.25
"""Seconds between heartbeats: four fit into the shortest silence that makes a stage suspect."""


def state_of(loaded: bool) -> str:
    """What a stage says of itself on the control link."""
    return "ready" if loaded else "loading"


def heartbeat(telemetry: Telemetry, loaded: bool, *, error: str, sequence: int) -> Heartbeat:
    """How this stage is, as every stage tells it."""
    return Heartbeat(
        stage=telemetry.stage,
        state=state_of(loaded),
        bytes_done=telemetry.load.bytes_done,
        bytes_total=telemetry.load.bytes_total,
        bytes_per_s=telemetry.load.bytes_per_s,
        error=error,
        last_step=telemetry.counters.steps,
        sequence=sequence,
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
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._config = config
        self._channel = channel
        self._telemetry = telemetry
        self._pulse = pulse
        self._data_address = data_address
        self._http_port = http_port
        self._socket = network.dial(
            zmq.DEALER,
            config.control_address,
            role=names.stage_role(0),
            identity=config.role,
        )
        self._hash = config.pipeline.config_hash()
        self._process = uuid.uuid4().hex
        self._incarnation = NO_INCARNATION
        self._epoch = 0
        self._linked_epoch = 0
        self._beats = 0
        self._loaded = False
        self._broken = ""
        self._head_heard_s = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        """Beat, listen and pass on until `stop`."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._channel.socket, zmq.POLLIN)
        next_beat_s = 0.0
        while not self._ended.is_set():
            now_s = time.monotonic()
            if now_s >= next_beat_s:
                self._beat()
                next_beat_s = now_s + BEAT_S
            poller.poll(max(1, int((next_beat_s - now_s) * 1000)))
            for report in self._channel.drain():
                self._report(report)
            self._listen()
            self._publish(time.monotonic())

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
                state=state_of(self._loaded),
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
            case Linked(epoch) if epoch == self._epoch:
                self._linked_epoch = epoch
                self._send(
                    MembersAck(
                        stage=self._config.stage,
                        incarnation=self._incarnation.hex(),
                        epoch=epoch,
                        last_step=self._telemetry.counters.steps,
                    )
                )
            case Broken(epoch, reason) if epoch == self._epoch:
                self._broken = reason
                self._beat()
            case _:
                log.debug("an outdated report was dropped", extra={"report": repr(report)})

    def _listen(self) -> None:
        while True:
            try:
                frame = self._socket.recv(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                envelope, message = decode_control(frame)
            except WireError as error:
                self._telemetry.counters.frames_refused += 1
                log.warning("a control frame was refused", extra={"error": str(error)})
                continue
            if envelope.config_hash != self._hash:
                self._telemetry.counters.frames_refused += 1
                continue
            self._head_heard_s = time.monotonic()
            match message:
                case Members():
                    self._enter(message)
                case Reject(reason):
                    log.error("stage 0 refuses this stage", extra={"reason": reason})

    def _enter(self, members: Members) -> None:
        incarnation = bytes.fromhex(members.incarnation)
        if incarnation == self._incarnation and members.epoch <= self._epoch:
            return
        self._incarnation, self._epoch, self._broken = incarnation, members.epoch, ""
        self._telemetry.epoch = members.epoch
        relink = Relink(incarnation, members.epoch, members.next_address, members.next_role)
        self._channel.put(relink)

    def _publish(self, now_s: float) -> None:
        if not self._loaded:
            return
        if now_s - self._head_heard_s > self._config.suspect_after_s:
            self._telemetry.set_state("joining", ready=False, reason="stage 0 is not heard")
        elif self._linked_epoch != self._epoch or self._epoch == 0:
            self._telemetry.set_state("joining", ready=False, reason="links are being made")
        else:
            self._telemetry.set_state("serving", ready=True)

    def _send(self, message: Join | Heartbeat | MembersAck) -> None:
        envelope = Envelope(Kind.JOIN, self._hash, self._incarnation, self._epoch, self._beats)
        try:
            self._socket.send(encode_control(envelope, message), flags=zmq.NOBLOCK)
        except zmq.Again:
            return  # stage 0 is not there now; the next beat says it all again
