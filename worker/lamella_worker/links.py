"""A stage's two data links: what comes in is checked, what goes out is numbered.

Knows no step's meaning. `InGate` decides which frames may be computed on: those of the present
epoch, in order, until one is missing or makes no sense; then nothing is taken before the next
epoch. `OutLink` dials the next stage anew at each epoch. `relink` does both, on every stage.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import zmq

from lamella_contract.wire import (
    Envelope,
    Expected,
    HeldSlot,
    Kind,
    StepDone,
    StepHeader,
    Verdict,
    check_envelope,
    encode_step,
    encode_step_done,
)
from lamella_worker.membership.channel import ChannelEnd
from lamella_worker.membership.orders import Broken, Linked, Order, Relink, Report
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import Network, PushLink, split_address

log = logging.getLogger(__name__)

LINK_TIMEOUT_S = 3.0
"""A next stage that does not answer by then is not linked; the ring tries again."""

LOOK_S = 0.05
"""Between two looks whether a newer epoch makes this wait useless."""


class InGate:
    """Which frames of the incoming link are to be trusted. Shut until the first Relink.

    `what` names a frame of this link in the reason that the control thread is told.
    """

    def __init__(
        self,
        config_hash: bytes,
        channel: ChannelEnd[Report, Order],
        telemetry: Telemetry,
        *,
        what: str,
    ) -> None:
        self._expected = Expected(config_hash, bytes(16), 0)
        self._channel = channel
        self._telemetry = telemetry
        self._what = what
        self.is_open = False

    @property
    def epoch(self) -> int:
        """The epoch whose frames pass."""
        return self._expected.epoch

    def open(self, order: Relink) -> None:
        """A new epoch: its frames pass, from the first on."""
        self._expected = Expected(self._expected.config_hash, order.incarnation, order.epoch)
        self.is_open = True
        self._telemetry.frames_taken = 0
        self._telemetry.counters.resyncs += 1

    def admits(self, envelope: Envelope) -> bool:
        """Whether this frame may be computed on; others are counted, and a gap shuts the gate."""
        verdict = check_envelope(envelope, self._expected)
        if verdict is Verdict.ACCEPT and self.is_open:
            self._expected = self._expected.after(envelope)
            self._telemetry.frames_taken += 1
            return True
        counters = self._telemetry.counters
        if verdict is Verdict.FOREIGN:
            counters.frames_refused += 1
        else:
            counters.frames_stale += 1
        if verdict is Verdict.GAP:
            self.shut(f"a {self._what} is missing")
        return False

    def refuse(self, error: Exception) -> None:
        """A frame made no sense: count it and trust no other."""
        self._telemetry.counters.frames_refused += 1
        self.shut(str(error))

    def shut(self, reason: str) -> None:
        """Ask for a new epoch, once."""
        if self.is_open:
            self.is_open = False
            log.warning("the link is broken", extra={"reason": reason})
            self._channel.put(Broken(self.epoch, reason))


class OutLink:
    """The link to the next stage: dialled anew at each epoch, frames numbered from 0."""

    def __init__(self, network: Network, config_hash: bytes, telemetry: Telemetry) -> None:
        self._network = network
        self._hash = config_hash
        self._telemetry = telemetry
        self._link: PushLink | None = None
        self._envelope = Envelope(Kind.STEP, config_hash, bytes(16), 0, 0)

    def dial(self, order: Relink) -> bool:
        """Drop the old link, make the new one; False if the next stage does not answer.

        A stage that has just died is found out by the next epoch: that is not kept waiting.
        """
        if self._link is not None:
            self._link.close_ring()
            self._network.forget(self._link.socket)
        endpoint, ring = split_address(order.next_address)
        socket = self._network.dial(zmq.PUSH, endpoint, role=order.next_role)
        self._link = PushLink(socket, ring)
        self._envelope = Envelope(Kind.STEP, self._hash, order.incarnation, order.epoch, 0)
        self._telemetry.frames_sent = self._telemetry.largest_frame = 0
        for _ in range(round(LINK_TIMEOUT_S / LOOK_S)):
            if self._link.wait_connected(LOOK_S):
                return True
            if self._telemetry.epoch != order.epoch:
                return False
        return False

    def send_step(self, header: StepHeader, tensors: Sequence[memoryview]) -> bool:
        """Pass a step on; False when the next stage takes nothing."""
        return self._send(encode_step(self._numbered(), header), tensors)

    def send_done(self, done: StepDone) -> bool:
        """Last stage: report a finished step to stage 0."""
        return self._send(encode_step_done(self._numbered(), done), ())

    def _numbered(self) -> Envelope:
        """The next frame's envelope: sequences count from 0 in each epoch."""
        envelope = self._envelope
        self._envelope = dataclasses.replace(envelope, sequence=envelope.sequence + 1)
        return envelope

    def _send(self, head: bytes, tensors: Sequence[memoryview]) -> bool:
        assert self._link is not None  # nothing is computed before the first Relink
        sent = self._link.send(head, tensors)
        telemetry, size = self._telemetry, len(head) + sum(part.nbytes for part in tensors)
        telemetry.largest_frame = max(telemetry.largest_frame, size)
        telemetry.frames_sent += 1
        telemetry.counters.frames_lost += not sent
        return sent


def relink(
    order: Relink,
    gate: InGate,
    out: OutLink | None,
    channel: ChannelEnd[Report, Order],
    held: tuple[HeldSlot, ...] | None,
) -> None:
    """Enter the order's epoch; the control thread hears of it, and of what this stage `held`, once
    the next stage answers.

    `out` is None for the only stage of a pipeline, which has nobody to dial.
    """
    gate.open(order)
    if out is None or out.dial(order):
        channel.put(Linked(order.epoch, held))
    else:
        log.warning("the next stage does not answer", extra={"role": order.next_role})
