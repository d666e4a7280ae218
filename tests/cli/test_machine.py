"""Ports, room, the run directory: the few places where the command line touches the machine."""

import json
import socket
import stat
from pathlib import Path

import pytest

from lamella import machine, rundir
from lamella.errors import NoSpace, PortInUse, UsageError


def test_free_ports_are_different_and_below_the_ephemeral_range() -> None:
    ports = machine.free_ports(20)
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 30_000 for port in ports)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"127.0.0.1:{port} is taken by another process"):
            machine.require_port("127.0.0.1", port)
    machine.require_port("127.0.0.1", port)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(UsageError, match="--host"):
        machine.require_port("no.such.host.invalid", 8000)


def test_a_full_disk_is_told_with_numbers(tmp_path: Path) -> None:
    machine.require_space(tmp_path / "new", 1, "a test")
    with pytest.raises(NoSpace, match=r"GB free, a test wants 1000000000\.0 GB"):
        machine.require_space(tmp_path, 10**18, "a test")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        machine.require_space(tmp_path / "file" / "sub", 1, "a test")


@pytest.mark.parametrize(
    ("environment", "home"),
    [
        ({"LAMELLA_HOME": "/a"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/lamella")),
        ({}, Path.home() / ".cache/lamella"),
    ],
    ids=["ours", "xdg", "home"],
)
def test_where_the_cache_is(environment: dict[str, str], home: Path) -> None:
    assert machine.cache_home(environment) == home


def test_this_machine_has_cores_and_memory() -> None:
    here = machine.look()
    assert here.cores
    assert 0 < here.free_bytes < 1 << 50


def test_only_this_user_reads_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    made = rundir.RunDirectory.create()
    assert made.path.parent == tmp_path
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    pair = rundir.mint_key_pair()
    path = made.write_keys("stage-0.key.json", pair)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"public": pair.public, "secret": pair.secret}
    assert len(pair.public) == len(pair.secret) == 40
    made.remove()
    made.remove()
    assert list(tmp_path.iterdir()) == []
