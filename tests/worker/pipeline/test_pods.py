"""Stages in pods of their own: stage 0 moves, DNS lags or is down, the replaced are back."""

from __future__ import annotations

import dataclasses
import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
import pytest

Start = Callable[..., Any]
Answer = Callable[[list[int], int], list[int]]

PROMPTS = [([20], 12), (list(range(14, 60)), 8), ([50, 60, 70], 15)]
OLD, NEW, STRANGER, NOBODY = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.9"


def check(pods: Any, answer: Answer) -> None:
    wanted = {pods.submit(prompt, count): (prompt, count) for prompt, count in PROMPTS}
    found = pods.collect(set(wanted))
    for request, (prompt, count) in wanted.items():
        assert found[request] == (answer(prompt, count), "length")


def stop(pods: Any, name: str) -> None:
    for pid in pods.family(name):
        os.kill(pid, signal.SIGSTOP)


def go_on(pods: Any, name: str) -> None:
    for pid in reversed(pods.family(name)):
        os.kill(pid, signal.SIGCONT)


def test_a_child_of_stage_0_that_comes_back_at_its_address_needs_no_dns(
    moving: Any, toy_answer: Answer
) -> None:
    moving.dns()
    os.kill(moving.pid(0), signal.SIGKILL)
    moving.wait_until(lambda: not moving.is_ready())
    moving.wait_ready()
    check(moving, toy_answer)
    assert moving.status(0)["restarts"] == 1


@pytest.mark.parametrize(
    ("meanwhile", "old", "new"),
    [
        pytest.param([OLD], OLD, NEW, id="dns-is-stale"),
        pytest.param([], NEW, OLD, id="dns-is-down"),
        pytest.param([STRANGER, NOBODY, OLD], OLD, NEW, id="dns-names-strangers"),
    ],
)
def test_stage_0_moves_to_another_address(
    moving: Any, toy_answer: Answer, meanwhile: list[str], old: str, new: str
) -> None:
    moving.dns(old)
    others = [moving.pid(1), moving.pid(2)]
    moving.dns(*meanwhile)
    if STRANGER in meanwhile:  # the stage 0 of another replica: the same keys, another pipeline
        ours, other = moving.http[0], dataclasses.replace(moving.pipeline, replica=1)
        moving.pod("stranger", 0, host=STRANGER, pipeline=other)
        moving.wait_until(lambda: moving.answers(0))
        moving.http[0] = ours
    os.kill(psutil.Process(moving.pid(0)).ppid(), signal.SIGKILL)
    failures = moving.status(1)["resolver_failures"]
    moving.wait_until(lambda: moving.status(1)["state"] == "joining")
    if STRANGER in meanwhile:
        moving.wait_until(lambda: "another configuration" in moving.status(1)["reason"])
    moving.pod(f"at-{len(moving.pods)}", 0, host=new)
    moving.move(new)
    status = moving.wait_status(lambda status: not status.ready)  # it answers its gateways
    assert [stage.state for stage in status.stages[1:]] == ["absent", "absent"]
    assert moving.status(0)["lost"] is None, "who has not joined is not lost"
    assert (moving.status(1)["resolver_failures"] > failures) == (not meanwhile)
    assert moving.is_ready(1), "a stage is ready once its slice is loaded, whatever the ring does"
    moving.dns(NOBODY, new)
    moving.wait_ready()
    check(moving, toy_answer)
    assert [moving.pid(1), moving.pid(2)] == others


def test_a_stage_that_was_replaced_and_is_back_is_told_to_end(
    start_pods: Start, toy_answer: Answer
) -> None:
    pods = start_pods(3)
    stop(pods, "first-1")
    pods.wait_until(lambda: pods.status(0)["lost"] == 1)
    assert pods.status(0)["lost_pod"] == "uid-first-1"
    assert pods.status(0)["members"][1]["state"] == "silent"
    pods.pod("second-1", 1)
    pods.wait_ready()
    assert pods.status(0)["lost"] is None
    serving = pods.pid(1)
    go_on(pods, "first-1")
    assert pods.pods["first-1"].wait(timeout=20) == 78
    words = pods.last_words("first-1")
    assert words["kind"] == "stage_replaced"
    assert "newer process" in words["message"]
    pods.wait_ready()
    check(pods, toy_answer)
    assert pods.pid(1) == serving
    assert pods.status(0)["retired_refusals"] >= 1


def test_a_stage_0_of_yesterday_that_is_back_confuses_nobody(
    start_pods: Start, toy_answer: Answer
) -> None:
    pods = start_pods(3, replace_after_s=60.0)  # what was stopped goes on as the same process
    old_http = pods.http[0]
    stop(pods, "first-0")
    pods.pod("second-0", 0, host=NEW)
    pods.dns(OLD, NEW)
    pods.move(NEW)
    pods.wait_ready()
    epoch = pods.status(0)["epoch"]
    go_on(pods, "first-0")

    def old_status() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{old_http}/status") as answer:
            return bytes(answer.read()).decode()

    pods.wait_until(lambda: "has fallen silent" in old_status())
    check(pods, toy_answer)
    assert pods.status(0)["epoch"] == epoch, "the ring was connected anew"
    # With the new one silent they look for others, and do not fall for the old one.
    stop(pods, "second-0")
    pods.wait_until(lambda: pods.status(1)["frames_stale"] > 0)
    assert pods.status(1)["state"] == "joining"
    go_on(pods, "second-0")
    pods.wait_ready()
    check(pods, toy_answer)


def test_a_drained_pipeline_takes_nothing_new_and_ends_what_it_has(
    start_pods: Start, toy_answer: Answer
) -> None:
    pods = start_pods(2, drain_s=30.0)
    prompt = [20, 30]
    request = pods.submit(prompt, 150)
    tokens: list[int] = []
    late = b""
    refused = finish = ""
    for event in pods.events():
        if event.request_id == request:
            tokens += event.ids
            finish = event.finish
        elif event.request_id == late:
            refused = event.error_kind
        if len(tokens) > 3 and not late:
            pods.pods["first-0"].send_signal(signal.SIGTERM)
            # two threads tell it, one a moment after the other
            pods.wait_until(lambda: pods.status(0)["draining"] and not pods.is_ready())
            assert pods.status(0)["live_requests"] == 1
            late = pods.submit([40], 5)
        if finish:
            break
    assert tokens == toy_answer(prompt, 150)
    assert refused == "pipeline_unavailable"
    assert pods.last_status is not None
    assert (pods.last_status.ready, pods.last_status.reason) == (False, "draining")
    assert pods.pods["first-0"].wait(timeout=10) == 0
    pods.pods["first-1"].send_signal(signal.SIGTERM)
    assert pods.pods["first-1"].wait(timeout=30) == 0


def test_two_sigterms_end_a_draining_pipeline_at_once(start_pods: Start) -> None:
    pods = start_pods(2, drain_s=60.0)
    pods.submit([20, 30], 150)
    stop(pods, "first-1")  # nothing gets on: the request stays live
    pods.pods["first-0"].send_signal(signal.SIGTERM)
    pods.wait_until(lambda: pods.status(0)["draining"])
    pods.pods["first-0"].send_signal(signal.SIGTERM)
    assert pods.pods["first-0"].wait(timeout=30) == 0


def test_an_idle_pipeline_drains_at_once(start_pods: Start) -> None:
    pods = start_pods(2, drain_s=60.0)
    pods.pods["first-0"].send_signal(signal.SIGTERM)
    assert pods.pods["first-0"].wait(timeout=30) == 0


def test_every_process_of_a_pod_ends_with_it(start_pods: Start) -> None:
    pods = start_pods(2)
    family = pods.family("first-1")
    pods.pods["first-1"].send_signal(signal.SIGTERM)
    pods.pods["first-1"].wait(timeout=30)
    assert not any(psutil.pid_exists(pid) for pid in family)


@pytest.mark.parametrize("kind", ["", "auth_required", "corrupt_model", "out_of_memory"])
def test_a_stage_that_loads_is_known_and_one_that_cannot_says_why(
    start_pods: Start, toy_answer: Answer, kind: str
) -> None:
    pods = start_pods(2, held="first-1")
    pods.wait_until(lambda: pods.answers(0) and pods.answers(1))
    pods.wait_until(lambda: "loading" in [m["state"] for m in pods.status(0)["members"][1:]])
    member = pods.status(0)["members"][1]
    assert (member["bytes_done"], member["bytes_total"]) == (40, 100)
    assert pods.status(0)["reason"] == "stage 1 is loading"
    assert not pods.is_ready(1)
    pods.let_go("first-1", kind)
    if not kind:
        pods.wait_ready()
        check(pods, toy_answer)
        return
    assert pods.pods["first-1"].wait(timeout=10) == 78
    assert pods.last_words("first-1") == {"kind": kind, "message": "the toy was told to fail"}
    pods.wait_until(lambda: pods.status(0)["lost"] == 1)
    member = pods.status(0)["members"][1]
    assert (member["state"], member["error"]) == ("failed", "the toy was told to fail")
