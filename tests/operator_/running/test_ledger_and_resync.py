"""What a LIST finds that no watch told of, and what that says of the watches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from operator_twin_api import Store, status
from operator_virtual_time import play

from lamella_contract import names
from lamella_operator.reconciling.client import Client, Clock
from lamella_operator.reconciling.kinds import MODEL, POD, WATCHED
from lamella_operator.reconciling.observe import ModelKey
from lamella_operator.running.ledger import Ledger, Listed
from lamella_operator.running.resync import Resync, listed

KEY = ModelKey("ai", "tiny", "uid-m")


def seen(version: str = "1", uid: str = "u") -> Listed:
    return Listed(uid, version, KEY)


@dataclass(frozen=True)
class Case:
    """What the watch told (version, at, gone), what a LIST sent at 10 shows, who is woken."""

    told: list[tuple[str, float, bool]]
    shown: list[Listed]
    woken: bool
    owed: bool


CASES = {
    "nothing": Case([], [], False, False),
    "same": Case([("1", 5, False)], [seen()], False, False),
    "never told": Case([], [seen()], True, True),
    "changed and not told": Case([("1", 5, False)], [seen("2")], True, True),
    "told while the list was under way": Case([("2", 11, False)], [seen("1")], False, False),
    "deleted and not told": Case([("1", 5, False)], [], True, False),
    "made while the list was under way": Case([("1", 11, False)], [], False, False),
    "deleted and told while the list was under way": Case(
        [("1", 5, False), ("1", 11, True)], [seen("1")], False, False
    ),
    "deleted and told": Case([("1", 5, False), ("1", 6, True)], [], False, False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_a_list_finds(case: Case) -> None:
    ledger = Ledger()
    for version, at_s, gone in case.told:
        ledger.delivered("", "Pod", seen(version), at_s, gone=gone)
    assert ledger.compare("", "Pod", case.shown, 10, 12) == ({KEY} if case.woken else set())
    assert (ledger.lag_s("", 20) == 8) is case.owed


def test_a_debt_ends_with_the_event_or_with_the_object() -> None:
    ledger = Ledger()
    ledger.compare("", "Pod", [seen(uid="a"), seen(uid="b")], 10, 10)
    assert ledger.lag_s("", 50) == 40
    ledger.delivered("", "Pod", seen(uid="a"), 51)
    assert ledger.lag_s("", 52) == 42
    ledger.compare("", "Pod", [seen(uid="a")], 60, 60)
    assert ledger.lag_s("", 61) == 0


def test_what_a_watch_that_began_anew_tells_again_is_no_news() -> None:
    ledger = Ledger()
    assert ledger.delivered("", "Pod", seen("1"), 1)
    assert not ledger.delivered("", "Pod", seen("1"), 2)
    assert ledger.compare("", "Pod", [seen("2")], 3, 3) == {KEY}
    assert not ledger.delivered("", "Pod", seen("2"), 4), "the LIST has told of it"
    assert ledger.lag_s("", 50) == 0
    assert ledger.delivered("", "Pod", seen("3"), 5)
    assert ledger.delivered("", "Pod", seen("3"), 6, gone=True)
    assert ledger.delivered("", "Pod", seen("3"), 7), "made again, or told out of order"


def test_a_models_objects_share_its_key() -> None:
    ledger = Ledger()
    for uid in "abc":
        one = ModelKey("ai", "".join(["ti", "ny"]), "uid-m")
        ledger.delivered("", "Pod", Listed(uid, "1", one), 1)
    first, *others = ledger.keys("Pod")
    assert all(other is first for other in others)


def test_scopes_and_kinds_are_apart() -> None:
    ledger = Ledger()
    ledger.delivered("one", "Pod", seen(), 1)
    assert ledger.compare("two", "Pod", [], 10, 10) == set()
    assert ledger.compare("one", "Service", [], 10, 10) == set()
    assert ledger.compare("one", "Pod", [], 10, 10) == {KEY}


def test_what_is_owed_counts_anew_after_the_api_server_was_away() -> None:
    ledger = Ledger()
    ledger.compare("", "Pod", [seen()], 10, 10)
    ledger.excuse("", 100)
    assert ledger.lag_s("", 101) == 1


@pytest.mark.parametrize(
    ("kind", "document", "key"),
    [
        (MODEL, {"metadata": {"namespace": "ai", "name": "tiny", "uid": "uid-m"}}, KEY),
        (
            POD,
            {
                "metadata": {
                    "namespace": "ai",
                    "uid": "p",
                    "labels": {names.LABEL_MODEL: "tiny", names.LABEL_MODEL_UID: "uid-m"},
                }
            },
            KEY,
        ),
        (POD, {"metadata": {"namespace": "ai", "uid": "p"}}, None),
        (POD, {"metadata": "odd"}, None),
    ],
    ids=["model", "pod", "unlabelled", "odd"],
)
def test_whose_an_object_is(kind: Any, document: dict[str, Any], key: ModelKey | None) -> None:
    assert listed(kind, document).key == key


@dataclass
class Lab:
    store: Store = field(default_factory=Store)
    ledger: Ledger = field(default_factory=Ledger)
    found: list[ModelKey] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    up: bool = True

    def resync(self, *scopes: str) -> Resync:
        loop = asyncio.get_running_loop()
        client = Client(self.store, clock=Clock(loop.time, asyncio.sleep, lambda: 0.5))
        return Resync(
            client,
            self.ledger,
            scopes,
            self.found.append,
            60.0,
            loop.time,
            lambda scope: self.up,
            self.renewed.append,
        )

    def model(self, namespace: str, name: str) -> dict[str, Any]:
        return self.store.put_in(
            {"kind": names.KIND, "metadata": {"namespace": namespace, "name": name}}
        )


def test_a_quiet_cluster_costs_one_list_per_kind_and_no_write() -> None:
    async def story() -> None:
        lab = Lab()
        document = lab.model("ai", "tiny")
        resync = lab.resync("ai")
        lab.ledger.delivered("ai", MODEL.kind, listed(MODEL, document), 0)
        assert await resync.round() == 0
        assert len(lab.store.asked) == len(WATCHED)
        assert not lab.store.writes
        assert not lab.found

    play(story())


def test_a_forbidden_namespace_is_told_and_does_not_stop_the_other() -> None:
    async def story() -> None:
        lab = Lab()
        lab.model("good", "tiny")
        no = status(403, "Forbidden")
        lab.store.before = lambda method, path, body: no if "/bad/" in path else None
        resync = lab.resync("bad", "good")
        assert await resync.round() == 1
        assert resync.problems == {"bad": "Forbidden"}
        assert [key.namespace for key in lab.found] == ["good"]
        lab.store.before = lambda method, path, body: None
        await resync.round()
        assert not resync.problems

    play(story())


def test_a_watch_that_owes_is_begun_anew_and_only_a_lasting_debt_is_held_against_us() -> None:
    async def story() -> None:
        lab = Lab()
        document = lab.model("", "tiny")
        resync = lab.resync("")
        task = asyncio.ensure_future(resync.run())
        await asyncio.sleep(28)
        assert lab.renewed == [""]
        assert resync.overdue_s[""] == 0
        await asyncio.sleep(45)
        assert resync.overdue_s[""] > 30
        lab.ledger.delivered("", MODEL.kind, listed(MODEL, document), 0)
        await asyncio.sleep(100)
        assert resync.overdue_s[""] == 0
        assert lab.renewed == [""]
        task.cancel()

    play(story())


def test_an_api_server_that_is_away_is_never_held_against_the_watch() -> None:
    async def story() -> None:
        lab = Lab()
        lab.model("", "tiny")
        resync = lab.resync("")
        await resync.round()
        task = asyncio.ensure_future(resync.run())

        def away(*_: object) -> None:
            raise OSError("connection refused")

        lab.store.before = away
        await asyncio.sleep(3600)
        assert resync.overdue_s[""] <= 30
        assert resync.problems == {"": "NoAnswer"}
        lab.store.before = lambda *_: None
        await resync.round()
        assert resync.overdue_s[""] <= 30
        task.cancel()

    play(story())
