"""Several pipelines that come and go under several gateways: over real sockets, with exact text."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from gateway_lab import Lab, Names, Served
from gateway_twin import Twin

from lamella_contract.wire import Cancel, Submit, TokenEvent
from lamella_gateway import discover

HELLO = "hello world, how are you? the quick brown fox jumps over the lazy dog"
LONG = " ".join([HELLO] * 4)
GO_ON = {"model": "toy", "prompt": "the fox", "max_tokens": 400}
FULL = TokenEvent(bytes(16), 0, 0, (), "error", "too much waits", "overloaded", 0.6)


class Asking(threading.Thread):
    """A stream that is read in a thread."""

    def __init__(self, served: Served, **fields: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._fields = served.url, fields
        self.text, self.status, self.error = "", 0, ""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        body = GO_ON | {"stream": True} | self._fields
        with (
            httpx.Client(base_url=self._url, timeout=60) as http,
            http.stream("POST", "/v1/completions", json=body) as response,
        ):
            self.status = response.status_code
            self._read(response.iter_lines())

    def _read(self, lines: Iterator[str]) -> None:
        for line in lines:
            if self.status != 200:
                self.error += line
            elif line.startswith("data: {"):
                document = json.loads(line.removeprefix("data: "))
                self.error += document.get("error", {}).get("message", "")
                for choice in document.get("choices", ()):
                    self.text += choice["text"]
                    self.begun.set()

    def whole(self) -> str:
        self.join(60)
        assert not self.is_alive()
        assert self.error == ""
        return self.text


def pipelines(served: Served) -> dict[str, dict[str, Any]]:
    told = httpx.get(f"{served.url}/status", timeout=10).json()["pipelines"]
    return {pipeline["address"]: pipeline for pipeline in told}


def code(served: Served, path: str) -> int:
    return httpx.get(served.url + path, timeout=10).status_code


def metrics(served: Served) -> str:
    return httpx.get(f"{served.url}/metrics", timeout=10).text


@pytest.fixture
def all_ready(eventually: Callable[..., None]) -> Callable[[Served, int], None]:
    def wait(served: Served, count: int) -> None:
        eventually(lambda: [p["ready"] for p in pipelines(served).values()] == [True] * count)

    return wait


def test_a_request_waits_for_the_first_pipeline(lab: Lab, eventually: Callable[..., None]) -> None:
    names = Names()
    served = lab.discovers(names, max_queued_tokens=50)
    eventually(lambda: "names none" in httpx.get(f"{served.url}/health").text)
    assert (code(served, "/readyz"), code(served, "/health")) == (200, 503)
    asking = Asking(served, prompt=[40] * 30)
    eventually(lambda: served.live() == 1)
    refused = httpx.post(f"{served.url}/v1/completions", json=GO_ON | {"prompt": [40] * 30})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    told = metrics(served)
    assert "lamella_queued_tokens 30.0" in told
    assert "lamella_requests_held 1.0" in told
    names.say(lab.twin(HELLO))
    assert asking.whole() == HELLO
    assert "lamella_requests_held 0.0" in metrics(served)


def test_a_pipeline_that_moved_is_found_and_the_old_address_is_dropped(
    lab: Lab, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover, "FORGET_S", 0.5)
    monkeypatch.setattr(discover, "EVERY_S", 0.1)
    old, names = lab.twin(LONG), Names()
    names.say(old)
    served = lab.discovers(names)
    asking = Asking(served)
    assert asking.begun.wait(10)
    old.set(paused=True)
    assert f'lamella_replica_ready{{address="{old.address}"}} 1.0' in metrics(served)
    new = lab.twin(LONG)
    names.say(new)
    old.die()
    assert asking.whole() == LONG
    eventually(lambda: set(pipelines(served)) == {new.address})
    assert old.address not in metrics(served)
    (submit,) = new.of(Submit)
    assert submit.attempt == 2
    assert lab.ids(LONG)[: len(submit.ids) - submit.prompt_len] == submit.ids[submit.prompt_len :]


@pytest.mark.parametrize("answer", ["down", "empty"])
def test_what_works_outlives_the_name_service(
    lab: Lab,
    answer: str,
    all_ready: Callable[[Served, int], None],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discover, "FORGET_S", 0.2)
    monkeypatch.setattr(discover, "EVERY_S", 0.05)
    twin, names = lab.twin(HELLO), Names()
    names.say(twin)
    served = lab.discovers(names)
    all_ready(served, 1)
    names.down, names.found = (OSError("no server") if answer == "down" else None), ()
    asked = names.asked
    eventually(lambda: names.asked > asked + 20)
    assert Asking(served).whole() == HELLO
    assert code(served, "/health") == 200


def test_a_pipeline_that_drains_ends_what_it_has(
    lab: Lab, all_ready: Callable[[Served, int], None], eventually: Callable[..., None]
) -> None:
    one, two = lab.twin(LONG), lab.twin(LONG)
    served = lab.serve(one, two)
    all_ready(served, 2)
    for twin in (one, two):
        twin.set(paused=True)  # so that the first is not done before the second has come
    kept, moved = Asking(served), Asking(served)
    one.wait(lambda: one.of(Submit))
    two.wait(lambda: two.of(Submit))
    two.set(paused=False)
    one.set(ready=False, reason="draining")
    eventually(lambda: pipelines(served)[one.address]["reason"] == "draining")
    later = [Asking(served) for _ in range(3)]
    assert [asking.whole() for asking in later] == [LONG] * 3
    assert len(one.of(Submit)) == 1
    # longer than it takes to give up on a pipeline that is not ready
    threading.Event().wait(3.5)
    assert not one.of(Cancel)
    one.set(paused=False)
    assert [kept.whole(), moved.whole()] == [LONG] * 2
    assert len(one.of(Submit)) + len(two.of(Submit)) == 5


def test_what_is_live_when_a_draining_pipeline_goes_moves_at_once(
    lab: Lab, eventually: Callable[..., None]
) -> None:
    one, two = lab.twin(LONG), lab.twin(LONG)
    served = lab.serve(one)
    asking = Asking(served)
    assert asking.begun.wait(10)
    one.set(ready=False, reason="draining: 1 request", paused=True)
    served.call(lambda: served.gateway.dispatcher.links.add(two.address))
    eventually(lambda: pipelines(served)[two.address]["ready"])
    one.die()
    assert asking.whole() == LONG
    assert [submit.attempt for submit in two.of(Submit)] == [2]


@pytest.mark.parametrize(
    ("reason", "told"),
    [("draining", "a replica has ended as it had said"), ("", "a replica was lost")],
    ids=["planned", "lost"],
)
def test_a_planned_end_is_no_loss(
    lab: Lab,
    eventually: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    reason: str,
    told: str,
) -> None:
    caplog.set_level("INFO", logger="lamella_gateway")
    twin = lab.twin(HELLO)
    served = lab.serve(twin)
    twin.set(ready=not reason, reason=reason)
    eventually(lambda: pipelines(served)[twin.address]["reason"] == reason)
    twin.die()
    ends = "a replica has ended as it had said", "a replica was lost"
    eventually(lambda: [r for r in caplog.records if r.getMessage() in ends])
    assert {r.getMessage() for r in caplog.records if r.getMessage() in ends} == {told}


def test_a_pipeline_of_no_use_loses_its_requests_to_one_that_serves(
    lab: Lab, all_ready: Callable[[Served, int], None]
) -> None:
    text = " ".join([LONG] * 4)  # not done before both have begun
    one, two = lab.twin(text), lab.twin(text)
    served = lab.serve(one, two)
    all_ready(served, 2)
    askings = [Asking(served), Asking(served)]
    assert all(asking.begun.wait(10) for asking in askings)
    one.wait(lambda: one.of(Submit))
    one.set(ready=False, reason="stage 1 is lost", paused=True)
    assert [asking.whole() for asking in askings] == [text] * 2
    one.wait(lambda: one.of(Cancel))
    first, second, *_ = sorted(submit.attempt for submit in two.of(Submit))
    assert (first, second) == (1, 2)


def test_a_pipeline_of_no_use_keeps_its_requests_while_there_is_no_other(lab: Lab) -> None:
    twin = lab.twin(LONG)
    served = lab.serve(twin)
    asking = Asking(served)
    assert asking.begun.wait(10)
    twin.set(ready=False, reason="stage 1 is lost", paused=True)
    threading.Event().wait(3.5)
    twin.set(ready=True, reason="", paused=False)
    assert asking.whole() == LONG
    assert len(twin.of(Submit)) == 1


def test_a_full_pipeline_is_passed_over(lab: Lab, all_ready: Callable[[Served, int], None]) -> None:
    one, two = lab.twin(HELLO, refuse=FULL), lab.twin(HELLO, refuse=FULL)
    served = lab.serve(one, two)
    all_ready(served, 2)
    refused = Asking(served)
    refused.join(20)
    assert (refused.status, "too much waits" in refused.error) == (429, True)
    assert len(one.of(Submit)) == len(two.of(Submit)) == 1
    two.set(refuse=None)
    assert [Asking(served).whole() for _ in range(4)] == [HELLO] * 4


def test_a_request_that_has_begun_waits_for_room(lab: Lab) -> None:
    one = lab.twin(LONG)
    served = lab.serve(one)
    asking = Asking(served)
    assert asking.begun.wait(10)
    two = lab.twin(LONG, refuse=FULL)
    served.call(lambda: served.gateway.dispatcher.links.add(two.address))
    one.die()
    two.wait(lambda: len(two.of(Submit)) >= 2)
    two.set(refuse=None)
    assert asking.whole() == LONG


def test_two_gateways_of_one_key_share_a_pipeline(
    lab: Lab, all_ready: Callable[[Served, int], None]
) -> None:
    twins = lab.twin(LONG), lab.twin(LONG)
    gateways = [lab.serve(*twins, instance=f"toy-gateway-{n}") for n in range(2)]
    for served in gateways:
        all_ready(served, 2)
    askings = [Asking(served) for served in gateways for _ in range(4)]
    assert [asking.whole() for asking in askings] == [LONG] * 8
    owners = {owner for twin in twins for owner in twin._owners}
    assert owners == {b"gateway-0/toy-gateway-0", b"gateway-0/toy-gateway-1"}


def test_gateways_that_know_nothing_of_each_other_spread(
    lab: Lab, all_ready: Callable[[Served, int], None], eventually: Callable[..., None]
) -> None:
    twins = lab.twin(LONG, paused=True), lab.twin(LONG, paused=True)
    gateways = [lab.serve(*twins, instance=f"toy-gateway-{n}") for n in range(2)]
    for served in gateways:
        all_ready(served, 2)
    first = Asking(gateways[0])
    eventually(lambda: [p["running"] for p in pipelines(gateways[1]).values()].count(1) == 1)
    second = Asking(gateways[1])
    for twin in twins:
        twin.wait(lambda twin=twin: len(twin.of(Submit)) == 1)
        twin.set(paused=False)
    assert [first.whole(), second.whole()] == [LONG] * 2


def test_a_pipeline_that_is_no_longer_named_keeps_what_it_has_and_gets_nothing_new(
    lab: Lab, all_ready: Callable[[Served, int], None], eventually: Callable[..., None]
) -> None:
    old, new, names = lab.twin(LONG), lab.twin(LONG), Names()
    names.say(old)
    served = lab.discovers(names)
    all_ready(served, 1)
    old.set(paused=True)
    kept = Asking(served)
    old.wait(lambda: old.of(Submit))
    names.say(new)
    eventually(lambda: not pipelines(served)[old.address]["preferred"])
    all_ready(served, 2)
    assert [Asking(served).whole() for _ in range(3)] == [LONG] * 3
    old.set(paused=False)
    assert kept.whole() == LONG
    assert (len(old.of(Submit)), len(new.of(Submit))) == (1, 3)
    new.die()  # without the one that is named, the other will do
    eventually(lambda: not pipelines(served)[new.address]["ready"])
    assert Asking(served).whole() == LONG


def test_of_two_revisions_one_is_used(
    lab: Lab, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    newer, ours = lab.twin(HELLO), lab.twin(HELLO)
    newer.do(lambda: setattr(newer, "model_hash", b"n" * 16))
    names = Names()
    names.say(newer)
    served = lab.discovers(names)
    eventually(lambda: "of another revision" in httpx.get(f"{served.url}/health").text)
    names.say(newer, ours)
    assert [Asking(served).whole() for _ in range(3)] == [HELLO] * 3
    told = pipelines(served)
    assert told[newer.address]["ready"] is False
    assert "of another revision" in told[newer.address]["reason"]
    assert not newer.of(Submit)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_no_token_is_lost_or_doubled_while_pipelines_die(
    lab: Lab, all_ready: Callable[[Served, int], None]
) -> None:
    twins: list[Twin] = [lab.twin(LONG) for _ in range(3)]
    served = lab.serve(*twins)
    all_ready(served, 3)
    askings = [Asking(served, prompt=f"{number} the fox") for number in range(16)]
    assert all(asking.begun.wait(20) for asking in askings)
    draw = random.Random(7)
    for _ in range(4):
        victim = draw.choice(twins)
        victim.die()
        threading.Event().wait(0.1)
        victim.rise()
        all_ready(served, 3)
    assert [asking.whole() for asking in askings] == [LONG] * 16
    assert served.live() == 0
    # the balance is found again
    before = [len(twin.of(Submit)) for twin in twins]
    for twin in twins:
        twin.set(paused=True)
    more = [Asking(served, prompt=f"{number} the dog") for number in range(6)]
    for twin, count in zip(twins, before, strict=True):
        twin.wait(lambda twin=twin, count=count: len(twin.of(Submit)) == count + 2)
        twin.set(paused=False)
    assert [asking.whole() for asking in more] == [LONG] * 6
