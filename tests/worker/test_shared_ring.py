"""The ring of frames in shared memory, between real processes and beside real sockets."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from lamella_worker import shared_ring
from lamella_worker.shared_ring import (
    SLOT_BYTES,
    SLOTS,
    ByRing,
    BySocket,
    SharedRing,
    digest,
)
from lamella_worker.transport import RING_MARK, PullLink, PushLink, split_address
from lamella_worker.waiting import Waiter

pytestmark = pytest.mark.skipif(
    not shared_ring.usable(), reason=f"no shared ring on {sys.platform} {os.uname().machine}"
)

LARGE = bytes(SLOT_BYTES)
WAIT_S = 30.0


def no_bell(address: str) -> str:
    pid, memory, _, token = address.split(":")
    return f"{pid}:{memory}:999999:{token}"


@pytest.fixture
def ends() -> Iterator[tuple[SharedRing, SharedRing]]:
    """Reader's and writer's end of one ring."""
    reader = SharedRing.create()
    writer = SharedRing.open(reader.address)
    assert writer is not None
    yield reader, writer
    writer.close()
    reader.close()


@pytest.fixture
def links() -> Iterator[tuple[PullLink, PushLink]]:
    """A data link with a ring beside its socket (plain TCP: encryption is tested elsewhere)."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PULL) as pull,
        context.socket(zmq.PUSH) as push,
    ):
        pull.bind("tcp://127.0.0.1:*")
        reader = PullLink(pull, SharedRing.create())
        endpoint, ring = split_address(reader.address)
        push.connect(endpoint)
        writer = PushLink(push, ring)
        assert writer.wait_connected(5.0)
        yield reader, writer
        writer.close_ring()
        assert reader.ring is not None
        reader.ring.close()
        push.linger = 0


def taken(ring: SharedRing) -> list[bytes]:
    frame = ring.peek()
    assert isinstance(frame, ByRing)
    ring.take()
    return [bytes(part) for part in frame.parts]


def received(link: PullLink) -> list[bytes]:
    parts = link.receive()
    while parts is None:
        assert link.socket.poll(5000), "nothing came"
        parts = link.receive()
    return [bytes(part) for part in parts]


@given(st.lists(st.lists(st.binary(max_size=200), min_size=1, max_size=5), max_size=60))
def test_frames_come_out_as_they_went_in(frames: list[list[bytes]]) -> None:
    reader = SharedRing.create()
    writer = SharedRing.open(reader.address)
    assert writer is not None
    for frame in frames:
        assert writer.publish(frame)
        assert taken(reader) == frame
    assert reader.peek() is None
    writer.close()
    reader.close()


def test_a_full_ring_takes_no_more_and_goes_on_when_it_is_read(
    ends: tuple[SharedRing, SharedRing],
) -> None:
    reader, writer = ends
    for number in range(SLOTS):
        assert writer.publish([bytes([number])])
    assert not writer.publish([b"one too many"])
    assert taken(reader) == [b"\0"]
    assert writer.publish([b"now"])


def test_a_frame_of_exactly_a_slot_fits_and_a_byte_more_does_not(
    ends: tuple[SharedRing, SharedRing],
) -> None:
    reader, writer = ends
    most = bytes(SLOT_BYTES - 12)
    assert writer.fits([most])
    assert not writer.fits([most + b"x"])
    assert writer.publish([most])
    assert taken(reader) == [most]
    with pytest.raises(ValueError, match="does not fit"):
        writer.publish([most + b"x"])


def test_a_new_link_voids_what_an_earlier_one_left(ends: tuple[SharedRing, SharedRing]) -> None:
    reader, writer = ends
    writer.publish([b"old"])
    writer.announce(b"old and large")
    writer.begin()
    assert reader.peek() is None
    writer.publish([b"new"])
    assert taken(reader) == [b"new"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda a: "nonsense", id="no-address"),
        pytest.param(lambda a: a.rsplit(":", 1)[0] + ":" + "0" * 32, id="another-token"),
        pytest.param(lambda a: "0:0:0:" + a.rsplit(":", 1)[1], id="no-such-process"),
        pytest.param(lambda a: f"{os.getpid()}:0:0:" + a.rsplit(":", 1)[1], id="another-file"),
        pytest.param(no_bell, id="no-bell"),
    ],
)
def test_a_ring_that_cannot_be_reached_is_done_without(spoil: object) -> None:
    reader = SharedRing.create()
    assert callable(spoil)
    assert SharedRing.open(spoil(reader.address)) is None
    assert split_address(f"tcp://127.0.0.1:5{RING_MARK}nonsense") == ("tcp://127.0.0.1:5", None)
    reader.close()


def test_another_process_reads_what_this_one_writes() -> None:
    reader = SharedRing.create()
    pid = os.fork()
    if pid == 0:
        writer = SharedRing.open(f"{os.getppid()}:{reader.address.split(':', 1)[1]}")
        done = writer is not None and all(writer.publish([bytes([n])]) for n in range(5))
        os._exit(0 if done else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert [taken(reader) for _ in range(5)] == [[bytes([n])] for n in range(5)]
    reader.close()


def test_small_and_large_frames_keep_their_order(links: tuple[PullLink, PushLink]) -> None:
    reader, writer = links
    frames = [b"small 0", b"large 1", b"small 2", b"large 3", b"large 4", b"small 5"]
    for header in frames:
        tensors = [memoryview(LARGE)] if header.startswith(b"large") else []
        assert writer.send(header, tensors)
    assert [received(reader)[0] for _ in frames] == frames
    assert reader.receive() is None


def test_a_sleeping_reader_is_woken_and_wakes_for_a_frame(
    links: tuple[PullLink, PushLink],
) -> None:
    reader, writer = links
    assert reader.ring is not None
    waiter = Waiter([reader.socket], awake=False, ring=reader.ring)
    woken: list[float] = []
    sleeper = threading.Thread(target=lambda: (waiter.wait(WAIT_S), woken.append(time.monotonic())))
    began_s = time.monotonic()
    sleeper.start()
    assert writer.send(b"wake up")
    sleeper.join()
    assert woken[0] - began_s < WAIT_S
    assert received(reader) == [b"wake up"]
    assert waiter.wait(0.0) == []  # the bell has fallen silent


def test_a_bell_that_nobody_hears_stops_no_sender(ends: tuple[SharedRing, SharedRing]) -> None:
    reader, writer = ends
    reader.sleeps(True)
    for _ in range(100_000):
        writer.wake()
    reader.silence()
    os.close(reader.bell)
    reader.bell = -1
    writer.wake()


def test_frames_of_a_sender_without_the_ring_are_taken_too(
    links: tuple[PullLink, PushLink],
) -> None:
    reader, writer = links
    assert PushLink(writer.socket).send(b"by socket", [memoryview(b"tensor")])
    assert received(reader) == [b"by socket", b"tensor"]


def test_a_large_frame_is_named_by_its_header(ends: tuple[SharedRing, SharedRing]) -> None:
    reader, writer = ends
    writer.announce(b"header")
    assert reader.peek() == BySocket(digest(b"header"))


def test_an_awake_waiter_rehearses_and_gives_up_when_nothing_comes(
    links: tuple[PullLink, PushLink],
) -> None:
    reader, writer = links
    rehearsals: list[int] = []
    waiter = Waiter(
        [reader.socket], awake=True, ring=reader.ring, rehearse=lambda: rehearsals.append(1)
    )
    waiter.worked()
    assert waiter.wait(0.001) == []
    assert rehearsals
    waiter.worked()
    assert writer.send(b"frame")
    assert waiter.wait(5.0) == []  # nothing at the socket: it lies in the ring
    assert received(reader) == [b"frame"]
