"""A link that is dialled while the next stage is dead: a newer epoch must not wait for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from lamella_worker.links import LINK_TIMEOUT_S, OutLink
from lamella_worker.membership.orders import Relink
from lamella_worker.process.telemetry import Telemetry
from lamella_worker.transport import KeyPair, Network

HASH, INCARNATION = bytes(16), b"i" * 16


@pytest.fixture
def network() -> Iterator[Network]:
    public, secret = zmq.curve_keypair()
    made = Network(KeyPair(public, secret), {"stage-2": public.decode()}, credit=4)
    yield made
    made.close()


def test_a_dead_stage_is_waited_for_only_until_the_next_epoch(network: Network) -> None:
    telemetry = Telemetry(1, 3, 0, (0, 1))
    telemetry.epoch = 5
    with socket.create_server(("127.0.0.1", 0)) as dumb:  # takes connections and says nothing
        address = f"tcp://127.0.0.1:{dumb.getsockname()[1]}"
        out = OutLink(network, HASH, telemetry)
        overtake = threading.Timer(0.1, lambda: setattr(telemetry, "epoch", 6))
        overtake.start()
        began_s = time.monotonic()
        assert not out.dial(Relink(INCARNATION, 5, address, "stage-2"))
        assert time.monotonic() - began_s < LINK_TIMEOUT_S / 2
        overtake.join()
