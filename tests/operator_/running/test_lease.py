"""Who leads: one at most, whatever clocks, pauses and API servers do. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_twin_api import Store
from operator_virtual_time import play

from lamella_operator.reconciling.client import Client, Clock
from lamella_operator.running.elector import LEASE_S, RENEW_S, RETRY_S, Elector, Record
from lamella_operator.running.lease import Leadership, LeadershipLost

MINE, THEIRS = Record("me", "1"), Record("them", "1")


@pytest.mark.parametrize(
    ("record", "after_s", "may"),
    [
        (None, 0, True),
        (Record("", "1"), 0, True),
        (MINE, 0, True),
        (THEIRS, 0, False),
        (THEIRS, LEASE_S - 0.1, False),
        (THEIRS, LEASE_S + 0.1, True),
        (Record("them", "1", duration_s=60), 59, False),
        (Record("them", "1", duration_s=60), 61, True),
        (Record("them", "1", duration_s=1), 14, False),
    ],
    ids=["none", "empty", "mine", "new", "fresh", "stale", "long", "long-stale", "never-short"],
)
def test_when_a_lease_may_be_written(record: Record | None, after_s: float, may: bool) -> None:
    elector = Elector("me").saw(record, 100.0).saw(record, 100.0 + after_s)
    assert elector.may_write(100.0 + after_s) is may


def test_a_renewal_starts_the_wait_anew_whatever_time_it_says() -> None:
    elector = Elector("me").saw(Record("them", "1", renewed="2030-01-01"), 100.0)
    elector = elector.saw(Record("them", "2", renewed="1999-01-01"), 110.0)
    assert not elector.may_write(110.0 + LEASE_S)
    assert elector.may_write(110.1 + LEASE_S)


def test_the_lead_ends_before_another_may_take_over() -> None:
    began_s = 50.0
    leader = Elector("me").wrote(MINE, began_s)
    assert leader.leads(began_s + RENEW_S - 0.1)
    assert leader.lost(began_s + RENEW_S)
    other = Elector("them").saw(MINE, began_s)  # at the earliest it sees the write when it is sent
    assert not other.may_write(began_s + RENEW_S)


def test_somebody_else_in_the_lease_ends_the_lead_at_once() -> None:
    leader = Elector("me").wrote(MINE, 50.0).saw(THEIRS, 51.0)
    assert not leader.leads(51.0)


@dataclass
class Contender:
    """One operator; ``frozen`` is a process that gets no time, ``away`` an API server."""

    name: str
    store: Store
    leadership: Leadership = field(init=False)
    led: list[tuple[float, float]] = field(default_factory=list)
    task: asyncio.Future[None] | None = None
    ended: str = ""

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        client = Client(self.store, clock=Clock(loop.time, asyncio.sleep, lambda: 0.5))
        self.leadership = Leadership(
            client, "system", "lease", Elector(self.name), loop.time, self.sleep, lambda: 0.5
        )
        self.gate = asyncio.Event()
        self.gate.set()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.gate.wait()

    def start(self) -> None:
        self.task = asyncio.ensure_future(self.live())

    async def live(self) -> None:
        await self.leadership.acquire()
        try:
            await self.leadership.keep()
        except LeadershipLost as error:
            self.ended = str(error)


async def leads(one: Contender) -> None:
    while not one.leadership.leads:
        await asyncio.sleep(0.1)


def test_of_two_one_leads_and_the_other_takes_over_when_it_dies() -> None:
    async def story() -> None:
        store = Store()
        one, two = Contender("one", store), Contender("two", store)
        one.start()
        two.start()
        await asyncio.sleep(60)
        assert [one.leadership.leads, two.leadership.leads].count(True) == 1
        leader, other = (one, two) if one.leadership.leads else (two, one)
        assert leader.task is not None
        leader.task.cancel()
        began_s = asyncio.get_running_loop().time()
        await leads(other)
        waited_s = asyncio.get_running_loop().time() - began_s
        assert LEASE_S - RETRY_S <= waited_s <= LEASE_S + 2 * RETRY_S
        lease = next(iter(store.objects.values()))
        assert lease["spec"]["holderIdentity"] == other.name
        assert lease["spec"]["leaseTransitions"] == 1

    play(story())


def test_a_clean_end_hands_over_at_once() -> None:
    async def story() -> None:
        store = Store()
        one, two = Contender("one", store), Contender("two", store)
        one.start()
        await leads(one)
        two.start()
        await asyncio.sleep(10)
        assert one.task is not None
        one.task.cancel()
        await one.leadership.release()
        began_s = asyncio.get_running_loop().time()
        await leads(two)
        assert asyncio.get_running_loop().time() - began_s <= 2 * RETRY_S

    play(story())


def test_a_leader_that_was_frozen_for_30_s_writes_nothing_more() -> None:
    async def story() -> None:
        store = Store()
        one, two = Contender("one", store), Contender("two", store)
        one.start()
        await leads(one)
        two.start()
        one.gate.clear()
        await asyncio.sleep(30)
        assert two.leadership.leads
        with pytest.raises(LeadershipLost):
            one.leadership.check()  # what each of its writes asks, the first after it wakes too
        one.gate.set()
        await asyncio.sleep(60)
        assert one.ended
        (lease,) = store.objects.values()
        assert lease["spec"]["leaseTransitions"] == 1
        assert two.leadership.leads

    play(story())


def test_a_leader_without_an_api_server_gives_up_in_time_and_a_standby_just_waits() -> None:
    async def story() -> None:
        store = Store()
        one, two = Contender("one", store), Contender("two", store)
        one.start()
        await leads(one)
        two.start()

        def away(*_: object) -> None:
            raise OSError("connection refused")

        store.before = away
        began_s = asyncio.get_running_loop().time()
        while not one.ended:
            await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - began_s < LEASE_S
        await asyncio.sleep(300)
        assert not two.leadership.leads
        store.before = lambda *_: None
        await leads(two)

    play(story())


def test_a_short_absence_of_the_api_server_costs_no_lead() -> None:
    async def story() -> None:
        store = Store()
        one = Contender("one", store)
        one.start()
        await leads(one)
        good: Callable[..., None] = store.before  # type: ignore[assignment]

        def away(*_: object) -> None:
            raise OSError("connection refused")

        store.before = away
        await asyncio.sleep(6)
        store.before = good  # type: ignore[assignment]
        await asyncio.sleep(60)
        assert one.leadership.leads
        assert not one.ended

    play(story())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 25), st.booleans()), max_size=12))
def test_never_two_leaders(pauses: list[tuple[int, float, bool]]) -> None:
    """Contenders freeze, wake and vanish; at no moment do two of them believe in their lead."""

    async def story() -> None:
        store = Store()
        all_of_them = [Contender(name, store) for name in ("a", "b", "c")]
        for one in all_of_them:
            one.start()

        async def look() -> None:
            while True:
                assert sum(one.leadership.leads for one in all_of_them) <= 1
                await asyncio.sleep(0.25)

        watcher = asyncio.ensure_future(look())
        for who, seconds, freeze in pauses:
            one = all_of_them[who]
            one.gate.clear() if freeze else one.gate.set()
            if one.ended:
                one = all_of_them[who] = Contender(f"{one.name}+", store)
                one.start()
            await asyncio.sleep(seconds)
            assert not watcher.done(), watcher.exception()
        watcher.cancel()

    play(story())
