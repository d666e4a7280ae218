"""The client: what is repeated, for how long, and what is told. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from operator_twin_api import Script, ok, status
from operator_virtual_time import play

from lamella_operator.reconciling.client import DEADLINE_S, Answer, Client, Clock, selector
from lamella_operator.reconciling.failures import ApiError, Conflict, Expired, Forbidden, NotFound
from lamella_operator.reconciling.kinds import DEPLOYMENT, MODEL, POD

POD_DOCUMENT = {"kind": "Pod", "metadata": {"name": "a", "namespace": "ai", "uid": "u"}}
Call = Callable[[Client], Awaitable[Any]]


async def get(client: Client) -> Any:
    return await client.get(POD, "ai", "a")


async def create(client: Client) -> Any:
    return await client.create(POD, "ai", POD_DOCUMENT)


async def delete(client: Client) -> Any:
    return await client.delete(POD, "ai", "a", "u", 0)


def client_of(script: Script, **more: Any) -> Client:
    loop = asyncio.get_running_loop()
    return Client(script, clock=Clock(loop.time, asyncio.sleep, lambda: 0.5), **more)


def told(script: Script, call: Call = get) -> tuple[Any, float]:
    """What the call returned (or raised), and how many seconds it took."""

    async def story() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            found = await call(client_of(script))
        except ApiError as error:
            found = error
        return found, loop.time() - began_s

    return play(story())


WORTH_REPEATING = {
    "refused connection": OSError("connection refused"),
    "timeout": TimeoutError(),
    "429": status(429, "TooManyRequests"),
    "500": status(500, "InternalError"),
    "503": status(503, "ServiceUnavailable"),
    "504": status(504, "Timeout"),
    "cut body": Answer(200, b'{"kind": "Po'),
    "no json": Answer(503, b"upstream connect error"),
}


@pytest.mark.parametrize("call", [get, create], ids=["read", "write"])
@pytest.mark.parametrize("trouble", WORTH_REPEATING.values(), ids=WORTH_REPEATING.keys())
def test_trouble_that_passes_is_not_noticed(trouble: Any, call: Call) -> None:
    script = Script([trouble, trouble, ok(POD_DOCUMENT)])
    found, took_s = told(script, call)
    assert found == POD_DOCUMENT
    assert 0.2 < took_s < 1


def test_trouble_that_stays_is_told_before_the_deadline() -> None:
    script = Script([OSError("connection refused")] * 100)
    found, took_s = told(script)
    assert isinstance(found, ApiError)
    assert found.unreachable
    assert "connection refused" in str(found)
    assert DEADLINE_S / 2 < took_s <= DEADLINE_S
    assert 5 < len(script.asked) < 20


def test_the_server_says_when_to_come_back() -> None:
    script = Script([Answer(429, b"{}", retry_after_s=7.0), ok(POD_DOCUMENT)])
    found, took_s = told(script)
    assert (found, took_s) == (POD_DOCUMENT, 7.0)


def test_a_server_that_wants_us_to_wait_for_too_long_is_not_waited_for() -> None:
    found, took_s = told(Script([status(429, "TooManyRequests", retryAfterSeconds=100)]))
    assert (found.status, found.retry_after_s, took_s) == (429, 100.0, 0.0)


REFUSALS = {
    "forbidden": (status(403, "Forbidden", "exceeded quota: q"), Forbidden),
    "not found": (status(404, "NotFound"), NotFound),
    "conflict": (status(409, "Conflict"), Conflict),
    "expired": (status(410, "Expired"), Expired),
    "invalid": (status(422, "Invalid", "spec.x: Required value"), ApiError),
    "unauthorized": (status(401, "Unauthorized"), ApiError),
}


@pytest.mark.parametrize(("answer", "kind"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_told_at_once(answer: Answer, kind: type[ApiError]) -> None:
    found, took_s = told(Script([answer, answer]))
    assert type(found) is kind
    assert took_s == 0
    assert found.status == answer.status


def test_a_rotated_token_is_read_again_once() -> None:
    script = Script([status(401, "Unauthorized"), ok(POD_DOCUMENT)])
    assert told(script) == (POD_DOCUMENT, 0.0)
    assert script.renewed == 1
    script = Script([status(401, "Unauthorized")] * 2)
    assert told(script)[0].status == 401
    assert script.renewed == 1


@pytest.mark.parametrize(
    ("answer", "fine"),
    [(ok({}), True), (status(404, "NotFound"), True), (status(409, "Conflict"), True),
     (status(403, "Forbidden"), False)],
    ids=["deleted", "gone", "another by now", "forbidden"],
)  # fmt: skip
def test_deleting(answer: Answer, fine: bool) -> None:
    found, _ = told(Script([answer]), delete)
    assert (found is None) is fine


def page(*names: str, more: str = "") -> Answer:
    items = [{"metadata": {"name": name}} for name in names]
    return ok({"metadata": {"continue": more} if more else {}, "items": items})


async def names_of(client: Client) -> list[str]:
    return await client.list_objects(POD, "ai", keep=lambda one: str(one["metadata"]["name"]))


def test_a_list_is_read_page_by_page() -> None:
    script = Script([page("a", "b", more="x&y"), page("c")])
    assert told(script, names_of)[0] == ["a", "b", "c"]
    assert script.asked[0][1] == "/api/v1/namespaces/ai/pods?limit=500"
    assert script.asked[1][1].endswith("&continue=x%26y")


def test_a_page_that_expired_begins_the_list_anew_and_loses_and_doubles_nothing() -> None:
    gone = status(410, "Expired")
    script = Script([page("a", "b", more="x"), gone, page("a", "b", more="y"), page("c")])
    assert told(script, names_of)[0] == ["a", "b", "c"]


def test_pages_that_expire_each_time_end_in_one_list_of_all() -> None:
    gone = status(410, "Expired")
    script = Script([*[page("a", more="x"), gone] * 3, page("a", "b")])
    assert told(script, names_of)[0] == ["a", "b"]
    assert "limit" not in script.asked[-1][1]


@pytest.mark.parametrize("items", [None, [], ["odd", 3]], ids=["null", "empty", "odd"])
def test_a_list_without_objects(items: Any) -> None:
    assert told(Script([ok({"items": items})]), names_of)[0] == []


def test_apply_names_us_as_the_manager_and_takes_over() -> None:
    async def apply(client: Client) -> Any:
        return await client.apply(DEPLOYMENT, "ai", "g", {"kind": "Deployment"})

    script = Script([ok({})])
    told(script, apply)
    wanted = "/apis/apps/v1/namespaces/ai/deployments/g?fieldManager=lamella-operator&force=true"
    assert script.asked == [("PATCH", wanted)]


def test_writing_is_fenced_on_each_attempt_and_reading_is_not() -> None:
    async def story() -> None:
        leads = [True]

        def fence() -> None:
            if not leads[0]:
                raise RuntimeError("not the leader")

        class Losing(Script):
            async def send(self, *arguments: Any) -> Answer:
                leads[0] = False  # the lead ends while the first attempt is under way
                return await super().send(*arguments)

        script = Losing([status(503, "ServiceUnavailable"), ok({})])
        with pytest.raises(RuntimeError):
            await create(client_of(script, fence=fence))
        assert len(script.asked) == 1
        assert await get(client_of(script, fence=fence)) == {}

    play(story())


def test_every_attempt_is_counted() -> None:
    async def story() -> None:
        counted: list[tuple[str, str, int]] = []
        script = Script([OSError("no"), status(503, "No"), ok({"items": []})])
        client = client_of(script, counted=lambda *what: counted.append(what))
        await client.list_objects(MODEL, keep=lambda one: one)
        assert counted == [("list", "shardedmodels", code) for code in (0, 503, 200)]

    play(story())


def test_at_most_so_many_at_a_time() -> None:
    async def story() -> None:
        busy, most = [0], [0]

        class Slow(Script):
            async def send(self, *arguments: Any) -> Answer:
                busy[0] += 1
                most[0] = max(most[0], busy[0])
                await asyncio.sleep(1)
                busy[0] -= 1
                return ok({})

        client = client_of(Slow([]), parallel=3)
        await asyncio.gather(*(get(client) for _ in range(10)))
        assert most == [3]

    play(story())


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (POD.path(), "/api/v1/pods"),
        (POD.path("ai", "a", "log"), "/api/v1/namespaces/ai/pods/a/log"),
        (MODEL.path("ai"), "/apis/lamella.dev/v1alpha1/namespaces/ai/shardedmodels"),
        (POD.path("../x", "a/b"), "/api/v1/namespaces/..%2Fx/pods/a%2Fb"),
    ],
    ids=["all", "sub", "group", "escaped"],
)
def test_paths(kind: str, path: str) -> None:
    assert kind == path


def test_selectors() -> None:
    assert selector({"a": "1", "b": "2"}) == "a=1,b=2"
    assert selector([("a", "1")]) == "a=1"
