"""Names are looked up on a thread of their own, and whatever comes of it is an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from lamella_contract.errors import InvalidConfig
from lamella_worker.membership.resolver import Resolver, endpoint_of, split_endpoint, system_resolve
from lamella_worker.process.telemetry import Counters


class Dns:
    """A twin: answers when it is let, with what it is told."""

    def __init__(self) -> None:
        self.answers: list[list[str] | Exception] = []
        self.go = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def __call__(self, host: str) -> list[str]:
        assert host == "head"
        self.asked.release()
        assert self.go.acquire(timeout=10)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def dns() -> Dns:
    return Dns()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def resolver(dns: Dns, counters: Counters) -> Iterator[Resolver]:
    made = Resolver("head", 5701, dns, counters)
    yield made
    made.close()


def waited(resolver: Resolver) -> list[str]:
    """The answer, once the thread has put it."""
    gate = threading.Event()
    while resolver.busy:
        found = resolver.answer()
        if not resolver.busy:
            return found
        gate.wait(0.001)
    raise AssertionError("nothing was asked")


def test_an_answer_comes_once_and_asking_twice_is_once(resolver: Resolver, dns: Dns) -> None:
    dns.answers = [["10.0.0.1", "fd00::7"]]
    resolver.ask()
    resolver.ask()
    assert dns.asked.acquire(timeout=10)
    assert resolver.answer() == []  # it is not waited for
    dns.go.release()
    assert waited(resolver) == ["tcp://10.0.0.1:5701", "tcp://[fd00::7]:5701"]
    assert resolver.answer() == []
    assert not dns.asked.acquire(blocking=False)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError("temporary failure in name resolution"), id="down"),
        pytest.param(UnicodeError("label too long"), id="no-name-at-all"),
    ],
)
def test_a_failure_is_counted_and_the_next_question_is_answered(
    resolver: Resolver, dns: Dns, counters: Counters, error: Exception
) -> None:
    dns.answers = [error, ["10.0.0.2"]]
    dns.go.release(2)
    resolver.ask()
    assert waited(resolver) == []
    assert counters.resolver_failures == 1
    resolver.ask()
    assert waited(resolver) == ["tcp://10.0.0.2:5701"]


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        ("tcp://127.0.0.1:5701", ("127.0.0.1", 5701, True)),
        ("tcp://[fd00::1]:5701", ("fd00::1", 5701, True)),
        ("tcp://fd00::1:5701", ("fd00::1", 5701, True)),
        ("tcp://ring-0.ns.svc.cluster.local:5701", ("ring-0.ns.svc.cluster.local", 5701, False)),
    ],
)
def test_endpoints_are_split(endpoint: str, wanted: tuple[str, int, bool]) -> None:
    assert split_endpoint(endpoint) == wanted
    host, port, literal = wanted
    if literal:
        assert split_endpoint(endpoint_of(host, port)) == wanted


@pytest.mark.parametrize("endpoint", ["tcp://:5701", "tcp://head", "tcp://head:x", ""])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidConfig, match="control_address"):
        split_endpoint(endpoint)


def test_the_system_knows_this_host() -> None:
    resolve: Callable[[str], list[str]] = system_resolve
    assert "127.0.0.1" in resolve("localhost")
