"""Stage 0's socket to the gateways, over real sockets: who is heard, told, and given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import zmq

from lamella_contract.config import PipelineConfig, StageConfig
from lamella_contract.wire import (
    Cancel,
    Envelope,
    Events,
    GatewayMessage,
    Hello,
    Kind,
    PipelineStatus,
    TokenEvent,
    decode_gateway,
    encode_gateway,
)
from lamella_worker.membership.gateway_port import GATEWAY_SILENCE_S, GatewayPort
from lamella_worker.membership.orders import DropOwner, FromGateway, ToGateway
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import KeyPair, Network

SOON_MS = 5000
STATUS = PipelineStatus(True, "", 10, 10, 0, 0, 0)
ASK = Cancel(b"r" * 16, 1)

PIPELINE = PipelineConfig(
    name="toy",
    model_uri="file:/model",
    model_path="/model",
    commit="c" * 40,
    num_layers=2,
    splits=(0,),
    dtype="float32",
    block_size=16,
    num_blocks=4,
    max_sequences=2,
    max_model_len=64,
    max_step_tokens=16,
    max_queued_tokens=64,
    eos_token_ids=(1,),
    vocab_size=32,
)


@dataclass
class Lab:
    """A port and its gateways, all in this thread."""

    pairs: dict[str, KeyPair]
    networks: list[Network] = field(default_factory=list)

    def network(self, role: str) -> Network:
        public = {known: pair.public.decode() for known, pair in self.pairs.items()}
        made = Network(self.pairs[role], public, credit=2)
        self.networks.append(made)
        return made

    def port(self) -> GatewayPort:
        config = StageConfig(
            pipeline=PIPELINE,
            stage=0,
            device="cpu",
            threads=1,
            cpu=None,
            control_address="tcp://127.0.0.1:*",
            gateway_address="tcp://127.0.0.1:*",
            data_bind="tcp://127.0.0.1:*",
            http_address="127.0.0.1:0",
            key_file="unused",
            peer_keys=tuple((role, pair.public.decode()) for role, pair in self.pairs.items()),
            cache_dir="",
            hub_token_file="",
        )
        return GatewayPort(config, self.network("stage-0"), Telemetry(0, 1, 0, (0, 2)))

    def dial(self, port: GatewayPort, identity: str, *, role: str = "gateway-0") -> Gateway:
        address = port.socket.last_endpoint.decode()
        socket = self.network(role).dial(zmq.DEALER, address, role="stage-0", identity=identity)
        return Gateway(socket)


@dataclass
class Gateway:
    socket: zmq.Socket[bytes]

    def send(self, message: GatewayMessage, model_hash: bytes = PIPELINE.model_hash()) -> None:
        assert self.socket.poll(SOON_MS, zmq.POLLOUT)
        self.socket.send(encode_gateway(Envelope(0, model_hash, bytes(16), 0, 0), message))

    def receive(self) -> tuple[Envelope, GatewayMessage]:
        assert self.socket.poll(SOON_MS), "nothing was told"
        return decode_gateway(self.socket.recv())


@pytest.fixture
def lab() -> Iterator[Lab]:
    roles = ("stage-0", "gateway-0", "gateway-1")
    made = Lab({role: KeyPair(*zmq.curve_keypair()) for role in roles})
    yield made
    for network in made.networks:
        network.close()


def heard(port: GatewayPort, now_s: float = 0.0) -> list[FromGateway]:
    assert port.socket.poll(SOON_MS), "nothing was said"
    return port.hear(now_s)


def envelope() -> Envelope:
    return Envelope(Kind.HEARTBEAT, PIPELINE.config_hash(), b"i" * 16, 3, 4)


@pytest.mark.parametrize(
    ("identity", "role", "is_heard"),
    [
        pytest.param("gateway-0", "gateway-0", True, id="no instance"),
        pytest.param("gateway-0/toy-gateway-1", "gateway-0", True, id="an instance"),
        pytest.param("gateway-0/a/b", "gateway-0", True, id="a slash in the instance"),
        pytest.param("gateway-1/a", "gateway-0", False, id="another role"),
        pytest.param("gateway-00/a", "gateway-0", False, id="nearly the role"),
        pytest.param("/a", "gateway-0", False, id="no role"),
        pytest.param("gateway-0/a", "gateway-1", False, id="another key"),
    ],
)
def test_a_gateway_is_who_its_key_says(lab: Lab, identity: str, role: str, is_heard: bool) -> None:
    port = lab.port()
    lab.dial(port, identity, role=role).send(ASK)
    expected = [FromGateway(identity.encode(), ASK)] if is_heard else []
    assert heard(port) == expected


def test_two_gateways_of_one_key_are_kept_apart(lab: Lab) -> None:
    port = lab.port()
    one, two = lab.dial(port, "gateway-0/one"), lab.dial(port, "gateway-0/two")
    one.send(ASK)
    assert [request.owner for request in heard(port, 0.0)] == [b"gateway-0/one"]
    two.send(ASK)
    assert [request.owner for request in heard(port, 3.0)] == [b"gateway-0/two"]
    event = TokenEvent(b"r" * 16, 1, 0, (5,))
    port.pass_on(envelope(), ToGateway(b"gateway-0/two", (event,)))
    told, message = two.receive()
    assert message == Events((event,))
    assert told.config_hash == PIPELINE.model_hash()
    port.tell(envelope(), STATUS, everyone=True)
    assert one.receive()[1] == two.receive()[1] == STATUS
    # the one that fell silent loses its requests, the other keeps its own
    gone_s = GATEWAY_SILENCE_S + 0.1
    assert port.expire(gone_s) == [DropOwner(b"gateway-0/one")]
    assert port.expire(gone_s) == []
    assert port.expire(3.0 + gone_s) == [DropOwner(b"gateway-0/two")]


def test_a_gateway_of_another_revision_is_told_and_not_served(lab: Lab) -> None:
    port = lab.port()
    other = lab.dial(port, "gateway-0/new")
    other.send(Hello("gateway-0"), b"o" * 16)
    assert heard(port) == []
    port.tell(envelope(), STATUS, everyone=False)
    told, message = other.receive()
    assert (told.config_hash, message) == (PIPELINE.model_hash(), STATUS)
    port.tell(envelope(), STATUS, everyone=True)  # once for each hello
    other.send(ASK, b"o" * 16)
    assert heard(port) == []
    assert not other.socket.poll(50)
    assert port.expire(100.0) == []
