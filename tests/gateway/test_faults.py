"""What stage 0 and its link do wrong: the client's text is exact all the same, or an error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import zmq
from gateway_lab import Lab, Served

from lamella_contract.wire import Cancel, Hello, Replay, Sampling, Submit, TokenEvent

HELLO = "hello world, how are you? the quick brown fox jumps over the lazy dog"
GO_ON = {"model": "toy", "prompt": "the fox", "max_tokens": 200}


def open_client(served: Served) -> httpx.Client:
    return httpx.Client(base_url=served.url, timeout=20)


class Asking(threading.Thread):
    """A completion asked for in a thread, because its answer comes later."""

    def __init__(self, served: Served, **fields: Any) -> None:
        super().__init__(daemon=True)
        self._served, self._fields = served, fields
        self._answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        with open_client(self._served) as http:
            self._answer = http.post("/v1/completions", json=GO_ON | self._fields)

    def text(self) -> str:
        self.join(20)
        assert self._answer is not None
        text: str = self._answer.json()["choices"][0]["text"]
        return text


def text_of(lines: Iterator[str]) -> str:
    """The text of a stream; an error event raises."""
    text = ""
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        document = json.loads(line.removeprefix("data: "))
        if "error" in document:
            raise RuntimeError(document["error"]["message"])
        text += document["choices"][0]["text"]
    return text


def stream(http: httpx.Client, **fields: Any) -> Any:
    return http.stream("POST", "/v1/completions", json=GO_ON | {"stream": True} | fields)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param({"double": True}, id="doubles-and-old-events"),
        pytest.param({"drop": frozenset({0})}, id="the-first-is-lost"),
        pytest.param({"drop": frozenset({2, 3, 7})}, id="several-are-lost"),
        pytest.param({"drop": frozenset({4}), "double": True}, id="lost-and-doubled"),
        pytest.param({"batch": 7}, id="several-tokens-at-once"),
    ],
)
def test_the_text_is_exact(lab: Lab, behaviour: dict[str, Any]) -> None:
    twin = lab.twin(HELLO, **behaviour)
    with open_client(lab.serve(twin)) as http, stream(http) as response:
        assert text_of(response.iter_lines()) == HELLO
    assert bool(twin.of(Replay)) == ("drop" in behaviour)


def test_stage_0_dies_in_mid_answer_and_another_takes_over(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    served = lab.serve(twin)
    with open_client(served) as http, stream(http) as response:
        lines = response.iter_lines()
        begin = text_of(iter([next(lines)]))
        twin.set(paused=True)
        twin.die()
        with open_client(served) as other:
            assert other.get("/health").status_code == 503
        twin.set(paused=False)
        twin.rise()
        assert begin + text_of(lines) == HELLO
    first, second = twin.of(Submit)
    assert (first.request_id, first.attempt, second.attempt) == (second.request_id, 1, 2)
    known = second.ids[second.prompt_len :]
    assert known
    assert known == lab.ids(HELLO)[: len(known)]
    assert second.sampling == first.sampling


def test_a_new_incarnation_on_the_same_connection(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    with open_client(lab.serve(twin)) as http, stream(http) as response:
        lines = response.iter_lines()
        begin = text_of(iter([next(lines)]))
        twin.set(paused=True)
        twin.reincarnate()
        twin.set(paused=False)
        assert begin + text_of(lines) == HELLO
    assert [submit.attempt for submit in twin.of(Submit)] == [1, 2]


def test_a_request_waits_for_the_pipeline(lab: Lab, eventually: Callable[..., None]) -> None:
    twin = lab.twin(HELLO, ready=False, reason="stage 1 is loading 40%")
    served = lab.serve(twin, wait=False)
    eventually(lambda: served.call(served.gateway.codec.done), 60.0)
    eventually(lambda: twin.of(Hello))
    with open_client(served) as http:
        eventually(lambda: "stage 1 is loading" in http.get("/health").text)
        assert http.get("/health").status_code == 503
    asking = Asking(served)
    eventually(lambda: served.live() == 1)
    assert not twin.of(Submit)
    twin.set(ready=True, reason="")
    assert asking.text() == HELLO


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_a_request_does_not_wait_for_ever(lab: Lab, streamed: bool) -> None:
    twin = lab.twin(HELLO, ready=False, reason="stage 1 is loading 40%")
    served = lab.serve(twin, wait=False, request_deadline_s=60.0)
    served.call(lambda: setattr(served.gateway.dispatcher, "request_deadline_s", 0.3))
    with open_client(served) as http:
        response = http.post("/v1/completions", json=GO_ON | {"stream": streamed}, timeout=60)
        assert response.status_code == 503
        assert "stage 1 is loading 40%" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "1"
    assert served.live() == 0


def test_a_stream_that_stalls_ends_with_an_error_event(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    served = lab.serve(twin)
    with open_client(served) as http, stream(http) as response:
        lines = response.iter_lines()
        next(lines)
        twin.set(mute=True)
        served.call(lambda: setattr(served.gateway.dispatcher, "request_deadline_s", 1.5))
        with pytest.raises(RuntimeError, match="stage 0 has been silent"):
            text_of(lines)
        assert "".join(lines) == ""
    assert served.live() == 0


def test_a_silent_stage_0_is_not_ready_within_a_second(
    lab: Lab, eventually: Callable[..., None]
) -> None:
    twin = lab.twin(HELLO)
    served = lab.serve(twin)
    with open_client(served) as http:
        assert http.get("/health").status_code == 200
        twin.set(mute=True)
        eventually(lambda: http.get("/health").status_code == 503, 1.3)
        assert "silent" in http.get("/health").json()["reason"]
        twin.set(mute=False)
        eventually(lambda: http.get("/health").status_code == 200)


def test_an_error_in_mid_stream_is_an_event(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    twin.set(answer=lambda submit: ((40,) * 100_000, "length"))
    with open_client(lab.serve(twin)) as http, stream(http) as response:
        lines = response.iter_lines()
        next(lines)
        twin.send(TokenEvent(bytes(16), 0, 0, (), "error", "stage 1 died", "engine"))
        with pytest.raises(RuntimeError, match="stage 1 died"):
            text_of(lines)


def test_a_pipeline_that_says_wait_is_waited_for(lab: Lab) -> None:
    refuse = TokenEvent(bytes(16), 0, 0, (), "error", "not yet", "pipeline_unavailable")
    twin = lab.twin(HELLO, refuse=refuse)
    served = lab.serve(twin)
    asking = Asking(served)
    twin.wait(lambda: twin.of(Submit))
    twin.set(refuse=None)
    assert asking.text() == HELLO


def test_too_much_waiting_is_429(lab: Lab, eventually: Callable[..., None]) -> None:
    twin = lab.twin(HELLO, ready=False)
    served = lab.serve(twin, wait=False, max_queued_tokens=50)
    eventually(lambda: served.call(served.gateway.codec.done), 60.0)
    first = Asking(served, prompt=[40] * 30)
    eventually(lambda: served.live() == 1)
    with open_client(served) as http:
        response = http.post("/v1/completions", json=GO_ON | {"prompt": [40] * 30})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert "30 prompt tokens wait" in response.json()["error"]["message"]
    twin.set(ready=True)
    assert first.text() == HELLO


def test_requests_go_to_the_idlest_replica_and_move_when_one_dies(
    lab: Lab, eventually: Callable[..., None]
) -> None:
    one = lab.twin(HELLO, paused=True)
    two = lab.twin(HELLO, paused=True)
    served = lab.serve(one, two)
    with open_client(served) as http:
        eventually(lambda: all(p["ready"] for p in http.get("/status").json()["pipelines"]))
    asking = [Asking(served, prompt=f"{number} the fox") for number in range(4)]
    one.wait(lambda: len(one.of(Submit)) == 2)
    two.wait(lambda: len(two.of(Submit)) == 2)
    one.die()
    two.wait(lambda: len(two.of(Submit)) == 4)
    two.set(paused=False)
    assert [one_of_them.text() for one_of_them in asking] == [HELLO] * 4
    assert sorted(submit.attempt for submit in two.of(Submit)) == [1, 1, 2, 2]


def test_a_stranger_gets_nowhere(lab: Lab, eventually: Callable[..., None]) -> None:
    twin = lab.twin(HELLO)
    lab.keys = zmq.curve_keypair()  # not the ones on the twin's list
    served = lab.serve(twin, wait=False)
    with open_client(served) as http:
        eventually(lambda: "does not accept this gateway's key" in http.get("/status").text, 60.0)
        assert http.get("/health").status_code == 503
    assert not twin.received


def test_another_revision_is_shown_and_not_used(
    lab: Lab, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    twin = lab.twin(HELLO)
    served = lab.serve(twin, wait=False, model_hash="ff" * 16)
    with open_client(served) as http:
        eventually(lambda: "of another revision" in http.get("/status").text, 60.0)
        assert http.get("/health").status_code == 503
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_a_paused_stream_is_kept_alive(lab: Lab, eventually: Callable[..., None]) -> None:
    twin = lab.twin(HELLO, paused=True)
    served = lab.serve(twin)
    with open_client(served) as http:
        served.call(lambda: setattr(served.gateway.dispatcher, "keep_alive_s", 0.2))
        with stream(http) as response:
            lines = response.iter_lines()
            assert next(lines).startswith(":")
            twin.set(paused=False)
            assert text_of(lines) == HELLO


def test_what_an_earlier_gateway_left_running_is_cancelled(lab: Lab) -> None:
    twin = lab.twin(HELLO)
    twin.set(answer=lambda submit: ((40,) * 100_000, "length"))
    lab.serve(twin)
    left = Submit(b"l" * 16, 3, 1, (5,), Sampling())
    twin.do(lambda: twin._submit(b"gateway-0", left))
    twin.wait(lambda: twin.of(Cancel))
    assert twin.of(Cancel) == [Cancel(b"l" * 16, 3)]


def test_state_is_told(lab: Lab, eventually: Callable[..., None]) -> None:
    twin = lab.twin(HELLO)
    served = lab.serve(twin)
    with open_client(served) as http:
        assert http.post("/v1/completions", json=GO_ON).status_code == 200
        status = http.get("/status").json()
        assert status["ready"] is True
        assert status["generated_tokens"] == len(lab.ids(HELLO)) + 1
        (pipeline,) = status["pipelines"]
        assert pipeline["kv_tokens_free"] == 900
        metrics = http.get("/metrics").text
        assert 'lamella_requests_total{code="200",endpoint="/v1/completions"} 1.0' in metrics
        assert f"lamella_generated_tokens_total {len(lab.ids(HELLO)) + 1}.0" in metrics
        assert "lamella_requests_live 0.0" in metrics
        assert 'lamella_replica_ready{address="' in metrics
        page = http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "/status" in page.text
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert http.get("/healthz").status_code == 200
