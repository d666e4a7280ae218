"""Which links are made and dropped for what a name service says, and does not say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lamella_contract.errors import InvalidConfig
from lamella_gateway.discover import FORGET_S, Discovery, endpoint, look_up

A, B = "tcp://10.0.0.1:5700", "tcp://10.0.0.2:5700"
LATER = FORGET_S + 1.0


@dataclass
class Links:
    """A twin of the links: an address is connected when a test says so."""

    there: dict[str, bool] = field(default_factory=dict)
    problem: str = ""
    preferred: tuple[str, ...] = ()

    def add(self, address: str) -> None:
        assert address not in self.there
        self.there[address] = False

    def drop(self, address: str) -> None:
        assert not self.there.pop(address)

    def prefer(self, addresses: tuple[str, ...]) -> None:
        self.preferred = addresses

    def connected(self) -> Mapping[str, bool]:
        return dict(self.there)


def followed(*answers: tuple[float, tuple[str, ...] | OSError], connected: str = "") -> Links:
    """The links after answers at their times; ``connected`` is what connects after the first."""
    links, said = Links(), iter(answers)

    async def resolve(host: str, port: int) -> tuple[str, ...]:
        assert (host, port) == ("heads.svc", 5700)
        answer = next(said)[1]
        if isinstance(answer, OSError):
            raise answer
        return answer

    discovery = Discovery("heads.svc:5700", links, resolve)
    for now_s, _ in answers:
        asyncio.run(discovery.look(lambda now_s=now_s: now_s))
        if connected in links.there:
            links.there[connected] = True
    return links


@pytest.mark.parametrize(
    ("answers", "connected", "there"),
    [
        pytest.param([(0, (A,))], "", {A}, id="found"),
        pytest.param([(0, (A, B)), (1, (A, B))], "", {A, B}, id="each address is one"),
        pytest.param([(0, (A,)), (1, (A, B))], A, {A, B}, id="one more"),
        pytest.param([(0, (A,)), (LATER, (B,))], "", {B}, id="moved"),
        pytest.param([(0, (A,)), (2, (B,))], "", {A, B}, id="gone for a moment"),
        pytest.param([(0, (A,)), (2, (B,)), (3, (A,)), (7, (B,))], "", {A, B}, id="back again"),
        pytest.param([(0, (A,)), (LATER, (B,))], A, {A, B}, id="gone and connected"),
        pytest.param([(0, (A,)), (LATER, ())], A, {A}, id="nothing, and connected"),
        pytest.param([(0, (A,)), (LATER, ())], "", set(), id="nothing, and not connected"),
        pytest.param([(0, (A,)), (LATER, OSError("down"))], "", {A}, id="no answer"),
        pytest.param([(0, OSError("down")), (1, (A,))], "", {A}, id="an answer at last"),
        pytest.param([(0, (A,)), (9, OSError("down")), (10, (A,))], "", {A}, id="down between"),
    ],
)
def test_links_follow(
    answers: list[tuple[float, tuple[str, ...] | OSError]], connected: str, there: set[str]
) -> None:
    assert set(followed(*answers, connected=connected).there) == there


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param((A,), "", id="none"),
        pytest.param((), "no pipeline is there: heads.svc names none", id="nothing"),
        pytest.param(OSError("no server"), "heads.svc cannot be looked up (no server)", id="down"),
        pytest.param(TimeoutError(), "heads.svc cannot be looked up (TimeoutError)", id="slow"),
    ],
)
def test_the_problem_is_told(answer: tuple[str, ...] | OSError, problem: str) -> None:
    assert followed((0, answer)).problem == problem


@pytest.mark.parametrize("target", ["", "heads", "heads:", ":5700", "heads:http", "file:"])
def test_what_is_no_name(target: str) -> None:
    with pytest.raises(InvalidConfig, match="want host:port"):
        Discovery(target, Links(), look_up)


def test_a_file_is_read_again(tmp_path: Path) -> None:
    listed, links = tmp_path / "addresses", Links()
    discovery = Discovery(f"file:{listed}", links, look_up)

    def look(now_s: float) -> None:
        asyncio.run(discovery.look(lambda: now_s))

    look(0)
    assert links.problem.startswith(f"{listed} cannot be looked up")
    listed.write_text(f"{A}\n{B}\n")
    look(1)
    assert (set(links.there), links.preferred, links.problem) == ({A, B}, (A, B), "")
    links.there[A] = True
    listed.write_text(f"{B}\n")
    look(LATER + 1)
    assert (set(links.there), links.preferred) == ({A, B}, (B,))


def test_a_real_name() -> None:
    assert "tcp://127.0.0.1:5700" in asyncio.run(look_up("localhost", 5700))


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.0.0.7", "tcp://10.0.0.7:5700"), ("fd00::7", "tcp://[fd00::7]:5700")],
)
def test_an_address_as_zeromq_wants_it(address: str, expected: str) -> None:
    assert endpoint(address, 5700) == expected


def test_a_look_up_that_hangs_holds_nothing_up() -> None:
    async def hang(host: str, port: int) -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    async def run() -> float:
        task = asyncio.create_task(Discovery("heads.svc:5700", Links(), hang).run())
        await asyncio.sleep(0)
        began_s = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return time.monotonic() - began_s

    assert asyncio.run(run()) < 1.0
