"""A stage of a peer is killed: what is seen of one that hangs, ends or goes on, and that nothing of
it is left. The peer is a twin (twin_peer.py)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from benchmarks.peers import faults
from benchmarks.peers.running import Running
from benchmarks.peers.systems import Files, Process, System, Tools

from lamella import bench
from lamella.bench_client import Address

TWIN = str(Path(__file__).with_name("twin_peer.py"))
CORE = min(os.sched_getaffinity(0))
PAUSES = (sys.executable, "-c", "import signal; signal.pause()")


def twin(then: str, kill: str | None, *more: Process) -> System:
    """A system of the twin, of whose server `kill` is killed, and of other processes before it."""

    def build(
        tools: Tools, files: Files, cores: tuple[int, int], ports: tuple[int, ...]
    ) -> list[Process]:
        argv = (sys.executable, TWIN, str(ports[0]), then)
        return [*more, Process(argv, cores, kill=kill)]

    return System("twin", "a twin", "", 2, 1, build)


@contextlib.contextmanager
def running(system: System, folder: Path) -> Iterator[Running]:
    it = Running(system, Tools(), Files(folder, folder), (CORE, CORE), folder)
    try:
        it.start()
        it.wait_ready()
        yield it
    finally:
        it.end()


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill(it: Running, patience_s: float) -> faults.Seen:
    return faults.kill(it, bench.Asking(Address.of(it.url), "bench"), 3, patience_s)


def test_a_peer_that_hangs_is_given_up_when_patience_ends(tmp_path: Path) -> None:
    with running(twin("hangs", "worker"), tmp_path) as it:
        seen = kill(it, 0.5)
        everyone = it.processes()
    assert (seen.whole, seen.failed, seen.hanging) == (0, 0, 3)
    assert (seen.answers_again_s, seen.exited) == (None, False)
    assert len(everyone) == 2, "server and engine"
    assert not any(map(lives, everyone))


def test_what_a_server_that_ends_leaves_behind_is_ended(tmp_path: Path) -> None:
    with running(twin("ends", "worker"), tmp_path) as it:
        seen = kill(it, 60.0)
        everyone = it.processes()
    assert (seen.whole, seen.failed, seen.hanging) == (0, 3, 0)
    assert (seen.answers_again_s, seen.exited) == (None, True)
    assert len(everyone) == 1, "its engine lives on without it"
    assert not any(map(lives, everyone))


def test_a_killed_process_that_clients_do_not_talk_to_is_not_the_end_of_the_server(
    tmp_path: Path,
) -> None:
    stage = Process(PAUSES, (CORE,), kill="", serves=False)
    with running(twin("hangs", None, stage), tmp_path) as it:
        seen = kill(it, 0.5)
        assert it.serves()
    assert (seen.hanging, seen.exited) == (3, False)


def test_every_stream_is_in_mid_answer_when_a_stage_is_killed(tmp_path: Path) -> None:
    with running(twin("goes-on", "worker"), tmp_path) as it:
        seen = kill(it, 60.0)
        with pytest.raises(faults.NotKilled, match="no stage is told"):
            kill(it, 1.0)
    assert (seen.whole, seen.failed, seen.hanging) == (3, 0, 0)
    assert seen.answers_again_s is not None


def test_streams_that_end_before_all_have_begun_are_told_and_nothing_is_killed(
    tmp_path: Path,
) -> None:
    with running(twin("goes-on", None, Process(PAUSES, (CORE,), kill="")), tmp_path) as it:
        with pytest.raises(faults.NotKilled, match="had ended"):
            faults.kill(it, bench.Asking(Address("127.0.0.1", 1, "", False), "bench"), 3, 1.0)
        assert it.alive()
