"""Stage 0's socket to the gateways: who they are, what they ask, what they are told.

Knows no ring and no scheduler: requests go to the compute thread as `FromGateway`, and what is to
be told comes from outside. A gateway calls itself ``gateway-0/<instance>``: the role must be the
one that its key proves, the instance tells gateways of one role apart. A gateway that was told of
another model (or of another revision of it) is told how this pipeline is, so that it can say so,
and nothing more.
"""

from __future__ import annotations

import logging

import zmq

from lamella_contract import names
from lamella_contract.config import StageConfig
from lamella_contract.errors import WireError
from lamella_contract.wire import (
    Cancel,
    Envelope,
    Events,
    Hello,
    PipelineStatus,
    Replay,
    Submit,
    decode_gateway,
    encode_gateway,
)
from lamella_worker.membership.orders import DropOwner, FromGateway, ToGateway
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import Network, receive_from, send_to

log = logging.getLogger(__name__)

GATEWAY_SILENCE_S = 5.0
"""A gateway that says nothing for this long is gone; what it had submitted is freed."""


class GatewayPort:
    """Used by the control thread alone."""

    def __init__(self, config: StageConfig, network: Network, telemetry: Telemetry) -> None:
        self._network = network
        self._telemetry = telemetry
        self._hash = config.pipeline.model_hash()
        roles = [role for role, _ in config.peer_keys if role.startswith(names.ROLE_GATEWAY)]
        self.socket = network.listen(
            zmq.ROUTER, config.gateway_address, domain="gateway", roles=roles
        )
        self._heard_s: dict[bytes, float] = {}
        self.greeted: list[bytes] = []  # said hello and were not told yet

    def hear(self, now_s: float) -> list[FromGateway]:
        """Every message that has come. Gateways that said hello are told at the next `tell`."""
        heard = []
        while (received := receive_from(self.socket)) is not None:
            owner, frame = received
            try:
                envelope, message = decode_gateway(frame.buffer)
            except WireError as error:
                self._refuse(str(error))
                continue
            role = self._network.role_of(frame).encode()
            if not role or owner.partition(b"/")[0] != role:
                self._refuse("a foreign key")
                continue
            if envelope.config_hash != self._hash:
                if isinstance(message, Hello):
                    self.greeted.append(owner)
                else:
                    self._refuse("another model")
                continue
            self._heard_s[owner] = now_s
            match message:
                case Submit() | Cancel() | Replay():
                    heard.append(FromGateway(owner, message))
                case Hello():
                    self.greeted.append(owner)
        return heard

    def tell(self, envelope: Envelope, status: PipelineStatus, *, everyone: bool) -> None:
        """Send the pipeline's state to those that said hello since, or to all."""
        owners = list(dict.fromkeys((*self._heard_s, *self.greeted))) if everyone else self.greeted
        if owners:
            frame = encode_gateway(self._ours(envelope), status)
            for owner in owners:
                send_to(self.socket, owner, frame)
        self.greeted = []

    def pass_on(self, envelope: Envelope, news: ToGateway) -> None:
        """Send one step's events to the gateway that they belong to."""
        send_to(self.socket, news.owner, encode_gateway(self._ours(envelope), Events(news.events)))

    def expire(self, now_s: float) -> list[DropOwner]:
        """Forget gateways that have fallen silent."""
        gone = [o for o, heard_s in self._heard_s.items() if now_s - heard_s > GATEWAY_SILENCE_S]
        for owner in gone:
            log.warning("a gateway is gone", extra={"gateway": owner.decode("utf-8", "replace")})
            del self._heard_s[owner]
        return [DropOwner(owner) for owner in gone]

    def _ours(self, envelope: Envelope) -> Envelope:
        """Gateways compare the model, where stages compare the whole pipeline."""
        kind, incarnation = envelope.kind, envelope.incarnation
        return Envelope(kind, self._hash, incarnation, envelope.epoch, envelope.sequence)

    def _refuse(self, reason: str) -> None:
        self._telemetry.counters.frames_refused += 1
        log.warning("a gateway's frame was refused", extra={"reason": reason})
