"""Real stages in real processes over real sockets, with a toy model: what must never go wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lamella_contract.wire import Cancel, TokenEvent

Start = Callable[..., Any]
Answer = Callable[[list[int], int], list[int]]

PROMPTS = [([20], 30), (list(range(14, 90)), 12), ([50, 60, 70], 40), ([33] * 40, 25)]


def check(
    ring: Any, answer: Answer, on_event: Callable[[TokenEvent], None] = lambda event: None
) -> None:
    """Four requests of very different lengths give what each gives alone."""
    wanted = {ring.submit(prompt, count): (prompt, count) for prompt, count in PROMPTS}
    found = ring.collect(set(wanted), on_event)
    for request, (prompt, count) in wanted.items():
        assert found[request] == (answer(prompt, count), "length")


@pytest.mark.parametrize("stages", [1, 2])
def test_mixed_requests_give_what_each_gives_alone(
    start: Start, toy_answer: Answer, stages: int
) -> None:
    ring = start(stages)
    check(ring, toy_answer)
    status = ring.wait_status(lambda s: s.running == 0 and s.waiting == 0)
    assert status.kv_tokens_free == status.kv_tokens


def test_kv_pressure_preempts_and_loses_nothing(start: Start, toy_answer: Answer) -> None:
    ring = start(2, num_blocks=26)  # 104 tokens; the four requests need 260
    check(ring, toy_answer)


@pytest.mark.parametrize("victim", [1, 2])
def test_a_stage_killed_in_mid_answer_changes_no_token_and_no_other_process(
    ring: Any, toy_answer: Answer, victim: int
) -> None:
    pids = [ring.pid(stage) for stage in range(3)]
    kills = []

    def kill_once(event: TokenEvent) -> None:
        if event.position == 5 and not kills:
            kills.append(pids[victim])
            os.kill(pids[victim], signal.SIGKILL)

    check(ring, toy_answer, kill_once)
    assert kills
    # the answers may have been on their way already when the stage was killed
    ring.wait_until(lambda: ring.pid(victim) not in (0, pids[victim]))
    after = [ring.pid(stage) for stage in range(3)]
    assert [a != b for a, b in zip(after, pids, strict=True)] == [k == victim for k in range(3)]


def test_a_stage_that_was_stopped_and_comes_back_is_resynchronised_not_replaced(
    ring: Any, toy_answer: Answer
) -> None:
    pid = ring.pid(1)
    os.kill(pid, signal.SIGSTOP)
    ring.wait_until(lambda: not ring.is_ready())
    os.kill(pid, signal.SIGCONT)
    ring.wait_ready()
    check(ring, toy_answer)
    assert ring.pid(1) == pid
    assert ring.status(0)["epoch"] > 1


def replayed(ring: Any) -> int:
    return int(ring.status(0)["scheduler"]["rows_replayed"])


def test_after_a_stop_in_mid_answer_next_to_nothing_is_computed_again(
    ring: Any, toy_answer: Answer
) -> None:
    pid, before, stops = ring.pid(1), replayed(ring), []

    def stop_once(event: TokenEvent) -> None:
        if event.position == 8 and not stops:
            stops.append(pid)
            os.kill(pid, signal.SIGSTOP)
            ring.wait_until(lambda: not ring.is_ready())
            os.kill(pid, signal.SIGCONT)

    check(ring, toy_answer, stop_once)
    assert stops
    assert ring.pid(1) == pid
    # What was in flight: a chunk of at most 32 rows, and for each decoding request a row.
    assert replayed(ring) - before <= 3 * 32


def test_after_a_death_the_stages_behind_compute_little_again(
    start: Start, toy_answer: Answer
) -> None:
    ring = start(3)
    prompt, kills, rows = [20 + i for i in range(60)], [], []

    def kill_once(event: TokenEvent) -> None:
        if event.position == 20 and not kills:
            rows.append(ring.status(2)["rows"])
            kills.append(ring.pid(1))
            os.kill(kills[0], signal.SIGKILL)

    request = ring.submit(prompt, 40)
    assert ring.collect({request}, kill_once)[request] == (toy_answer(prompt, 40), "length")
    assert 80 <= replayed(ring) <= 90  # all that was known, once
    assert ring.status(1)["rows"] >= 99  # of a new process
    assert ring.status(2)["rows"] - rows[0] <= 30  # what was new, and a probe


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_beginning_that_was_computed_is_found_and_computed_anew_after_each_death(
    ring: Any, toy_answer: Answer, victim: int
) -> None:
    shared = [20 + victim + i for i in range(40)]

    def ask(last: int) -> int:
        """Tokens of the prompt that were there."""
        cached: list[int] = []
        request = ring.submit([*shared, last], 6)
        found = ring.collect({request}, lambda event: cached.append(event.cached))
        assert found[request] == (toy_answer([*shared, last], 6), "length")
        return cached[0]

    assert [ask(50), ask(51)] == [0, 40]
    os.kill(ring.pid(victim), signal.SIGKILL)
    ring.wait_until(lambda: not ring.is_ready())
    ring.wait_until(ring.is_ready)
    ring.wait_ready()
    assert [ask(52), ask(53)] == [0, 40]


def test_a_stage_that_stays_stopped_is_replaced(ring: Any, toy_answer: Answer) -> None:
    pid = ring.pid(1)
    os.kill(pid, signal.SIGSTOP)
    ring.wait_status(lambda status: not status.ready)
    ring.wait_ready()
    assert ring.pid(1) != pid
    check(ring, toy_answer)


def test_readiness_follows_a_stages_death_and_return(ring: Any) -> None:
    """How soon is a table in test_ring.py, where time is a parameter."""
    os.kill(ring.pid(1), signal.SIGKILL)
    ring.wait_until(lambda: not ring.is_ready())
    ring.wait_ready()
    ring.wait_until(ring.is_ready)


def test_stage_0_comes_back_with_a_new_incarnation_and_a_resubmitted_request_goes_on(
    ring: Any, toy_answer: Answer
) -> None:
    other = ring.pid(1)
    prompt = [20, 30, 40]
    os.kill(ring.pid(0), signal.SIGKILL)
    ring.wait_until(lambda: not ring.is_ready())
    ring.wait_until(ring.is_ready)  # what gateways were told before the kill may lie here unread
    ring.wait_ready()
    known = toy_answer(prompt, 10)
    request = ring.submit(prompt, 20, output=known, attempt=2)
    tokens = list(known)
    for event in ring.events():
        if event.request_id == request:
            assert event.position == len(tokens)
            tokens += event.ids
            if event.finish:
                break
    assert tokens == toy_answer(prompt, 20)
    assert ring.pid(1) == other


def test_only_the_request_that_cannot_be_computed_fails(ring: Any, toy_answer: Answer) -> None:
    poisoned = ring.submit([13, 20], 5)
    (event,) = [e for e in [next(iter(ring.events()))] if e.request_id == poisoned]
    assert event.finish == "error"
    assert "poisoned" in event.error
    check(ring, toy_answer)


def test_a_cancel_frees_every_block(ring: Any) -> None:
    request = ring.submit([20, 30], 150)
    next(iter(ring.events()))
    ring.send(Cancel(request, 1))
    status = ring.wait_status(lambda s: s.running == 0)
    assert status.kv_tokens_free == status.kv_tokens


def test_too_many_tokens_are_refused_and_the_rest_is_served(
    start: Start, toy_answer: Answer
) -> None:
    ring = start(2, max_sequences=1)
    prompts = {ring.submit(prompt, 2): prompt for prompt in ([20 + i] * 150 for i in range(19))}
    served, refused = {}, []
    tokens: dict[bytes, list[int]] = {request: [] for request in prompts}
    for event in ring.events():
        tokens[event.request_id] += event.ids
        if event.finish == "error":
            assert event.error_kind == "overloaded"
            assert event.retry_after_s > 0
            refused.append(event.request_id)
        elif event.finish:
            served[event.request_id] = tokens[event.request_id]
        if len(served) + len(refused) == len(prompts):
            break
    assert refused
    assert served == {request: toy_answer(prompts[request], 2) for request in served}


def test_sigterm_ends_everything_at_once(start: Start) -> None:
    ring = start(2)
    ring.worker.send_signal(signal.SIGTERM)
    assert ring.worker.wait(timeout=30.0) == 0
