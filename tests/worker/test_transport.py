"""Real sockets on loopback: who gets in, what arrives, and what a missing peer costs."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from lamella_contract.errors import InvalidConfig
from lamella_worker.transport import (
    MAX_PART_BYTES,
    KeyPair,
    Network,
    PullLink,
    PushLink,
    split_parts,
)

ROLES = ("stage-0", "stage-1", "stage-2")
ANY_PORT = "tcp://127.0.0.1:*"
SOON_S = 5.0


@pytest.fixture
def networks() -> Iterator[dict[str, Network]]:
    """A network for each role, and one of a stranger who knows every public key."""
    pairs = {role: KeyPair(*zmq.curve_keypair()) for role in (*ROLES, "stranger")}
    public = {role: pairs[role].public.decode() for role in ROLES}
    made = {role: Network(pair, public, credit=2) for role, pair in pairs.items()}
    yield made
    for network in made.values():
        network.close()


def listening(network: Network, *roles: str) -> PullLink:
    return PullLink(network.listen(zmq.PULL, ANY_PORT, domain="data", roles=roles))


def dialled(network: Network, address: str, role: str) -> PushLink:
    return PushLink(network.dial(zmq.PUSH, address, role=role))


def arrived(link: PullLink) -> list[bytes]:
    parts = None
    while parts is None:  # a socket can be readable an instant before its message is whole
        assert link.socket.poll(int(SOON_S * 1000)), "nothing arrived"
        parts = link.receive()
    return [bytes(part) for part in parts]


def test_a_frame_arrives_whole_with_large_tensors_in_parts(networks: dict[str, Network]) -> None:
    pull = listening(networks["stage-1"], "stage-0")
    push = dialled(networks["stage-0"], pull.address, "stage-1")
    assert push.wait_connected(SOON_S)
    tensor = bytes(range(256)) * 4096  # 1 MiB
    assert push.send(b"header", [memoryview(tensor), memoryview(b"small")])
    header, *parts = arrived(pull)
    assert header == b"header"
    assert [len(part) for part in parts] == [MAX_PART_BYTES] * 4 + [5]
    assert b"".join(parts[:4]) == tensor


@pytest.mark.parametrize("who", ["stage-2", "stranger"])
def test_a_peer_without_the_allowed_key_gets_nowhere_though_it_knows_the_servers_key(
    networks: dict[str, Network], who: str
) -> None:
    pull = listening(networks["stage-1"], "stage-0")
    intruder = dialled(networks[who], pull.address, "stage-1")
    friend = dialled(networks["stage-0"], pull.address, "stage-1")
    assert friend.wait_connected(SOON_S)
    assert not intruder.wait_connected(0.2)
    assert not intruder.send(b"poison")
    assert friend.send(b"good")
    assert arrived(pull) == [b"good"]
    assert pull.receive() is None
    assert networks["stage-1"].refused >= 1


def test_a_peer_that_speaks_no_curve_gets_nowhere(networks: dict[str, Network]) -> None:
    pull = listening(networks["stage-1"], "stage-0")
    with zmq.Context() as context, context.socket(zmq.PUSH) as plain:
        plain.immediate, plain.linger = 1, 0
        plain.connect(pull.address)
        friend = dialled(networks["stage-0"], pull.address, "stage-1")
        assert friend.wait_connected(SOON_S)
        assert not plain.poll(200, zmq.POLLOUT)


def test_a_frame_to_nobody_is_reported_lost_at_once(networks: dict[str, Network]) -> None:
    with socket.socket() as taken:  # bound, so nobody else listens here, and not listening
        taken.bind(("127.0.0.1", 0))
        push = dialled(networks["stage-0"], f"tcp://127.0.0.1:{taken.getsockname()[1]}", "stage-1")
        assert not push.wait_connected(0.05)
        assert not push.send(b"header", [memoryview(b"tensor")])


def test_the_handshake_proves_the_role_not_the_claimed_identity(
    networks: dict[str, Network],
) -> None:
    server = networks["stage-0"].listen(
        zmq.ROUTER, ANY_PORT, domain="control", roles=["stage-1", "stage-2"]
    )
    address = server.last_endpoint.decode()
    liar = networks["stage-2"].dial(zmq.DEALER, address, role="stage-0", identity="stage-1")
    liar.send(b"I am stage 1")
    identity, frame = server.recv_multipart(copy=False)
    assert identity.bytes == b"stage-1"
    assert networks["stage-0"].role_of(frame) == "stage-2"


def test_a_restarted_peer_takes_its_identity_over(networks: dict[str, Network]) -> None:
    server = networks["stage-0"].listen(zmq.ROUTER, ANY_PORT, domain="control", roles=["stage-1"])
    address = server.last_endpoint.decode()
    for word in (b"first", b"second"):
        peer = networks["stage-1"].dial(zmq.DEALER, address, role="stage-0", identity="stage-1")
        peer.send(word)
        assert server.recv_multipart() == [b"stage-1", word]
        server.send_multipart([b"stage-1", b"hello"])
        assert peer.recv() == b"hello"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="absent"),
        pytest.param("{", id="not-json"),
        pytest.param("[]", id="not-an-object"),
        pytest.param(json.dumps({"public": "x"}), id="no-secret"),
        pytest.param(json.dumps({"public": 1, "secret": 2}), id="not-text"),
    ],
)
def test_a_bad_key_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "stage-0.key.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidConfig, match="key_file"):
        KeyPair.load(str(path))


def test_an_empty_tensor_is_one_empty_part() -> None:
    assert [part.nbytes for part in split_parts(memoryview(b""))] == [0]
