"""The journal: in whatever order events come, the client's ids are exact, the counts add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_contract.wire import Cancel, Replay, Sampling, Submit, TokenEvent
from lamella_gateway.journal import MAX_LOSSES, Entry, Journal, News

ID = bytes(16)
A, B = "tcp://10.0.0.1:5700", "tcp://10.0.0.2:5700"
ANSWER = tuple(range(100, 112))
EOS = 111
GREEDY = Sampling(temperature=0.0, max_tokens=12)


def live(*, attempts: int = 1, emitted: int = 0) -> tuple[Journal, Entry]:
    journal = Journal(eos_token_ids=[EOS])
    entry = journal.add(ID, (1, 2, 3), GREEDY, 0.0)
    for _ in range(attempts):
        journal.release(entry)
        journal.submit(entry, A, 0.0)
    if emitted:
        assert isinstance(journal.take(A, event(0, emitted, attempts), 0.0), News)
    return journal, entry


def event(begin: int, end: int, attempt: int = 1, finish: str = "") -> TokenEvent:
    return TokenEvent(ID, attempt, begin, ANSWER[begin:end], finish)


@pytest.mark.parametrize(
    ("given_event", "taken"),
    [
        pytest.param(event(3, 5, 2), (ANSWER[3:5], ""), id="next"),
        pytest.param(event(1, 5, 2), (ANSWER[3:5], ""), id="overlaps"),
        pytest.param(event(0, 3, 2), None, id="seen-before"),
        pytest.param(event(0, 2, 2, "stop"), None, id="an-old-end-is-none"),
        pytest.param(event(3, 3, 2, "length"), ((), "length"), id="an-end-without-ids"),
        pytest.param(event(0, 3, 2, "stop"), ((), "stop"), id="seen-but-for-the-end"),
        pytest.param(event(3, 3, 2), None, id="nothing"),
        pytest.param(event(3, 5, 1), None, id="an-earlier-attempt"),
        pytest.param(event(3, 5, 3), None, id="an-attempt-to-come"),
        pytest.param(event(3, 5, 2)._replace(request_id=b"x" * 16), None, id="unknown"),
        pytest.param(event(4, 5, 2), Replay(ID, 2, 3), id="a-gap"),
        pytest.param(event(4, 5, 2, "stop"), Replay(ID, 2, 3), id="a-gap-before-the-end"),
        pytest.param(
            TokenEvent(ID, 2, 9, (), "error", "broke", "engine"), ((), "error"), id="an-error"
        ),
    ],
)
def test_what_is_taken(given_event: TokenEvent, taken: object) -> None:
    journal, _ = live(attempts=2, emitted=3)
    got = journal.take(A, given_event, 1.0)
    assert (got.ids, got.finish) == taken if isinstance(got, News) else got == taken
    journal.check_integrity()


def test_another_replicas_word_counts_nothing() -> None:
    journal, _ = live()
    assert journal.take(B, event(0, 1), 1.0) is None


def test_a_replay_is_asked_for_once_until_it_is_late() -> None:
    journal, _ = live()
    assert journal.take(A, event(1, 2), 1.0) == Replay(ID, 1, 0)
    assert journal.take(A, event(2, 3), 1.1) is None
    assert journal.take(A, event(3, 4), 1.6) == Replay(ID, 1, 0)
    assert journal.take(A, event(0, 4), 1.7) is not None
    assert journal.take(A, event(5, 6), 1.8) == Replay(ID, 1, 4)


def test_a_lost_replica_gives_its_requests_back_with_all_ids() -> None:
    journal, entry = live(emitted=2)
    other = journal.add(b"o" * 16, (9,), GREEDY, 0.0)
    journal.submit(other, B, 0.0)
    assert journal.lost(A) == []
    assert journal.pending() == [entry]
    assert journal.owed(A) == 0
    assert journal.submit(entry, B, 0.0) == Submit(ID, 2, 3, (1, 2, 3, 100, 101), GREEDY)
    assert journal.owed(B) == (3 + 12 - 2) + (1 + 12)
    journal.check_integrity()


@pytest.mark.parametrize(
    ("emitted", "sampling", "finish"),
    [
        pytest.param(12, GREEDY, "stop", id="end-of-text"),
        pytest.param(12, replace(GREEDY, ignore_eos=True), "length", id="end-of-text-ignored"),
        pytest.param(5, replace(GREEDY, max_tokens=5), "length", id="max-tokens"),
        pytest.param(5, replace(GREEDY, stop_token_ids=(104,)), "stop", id="stop-token"),
    ],
)
def test_an_answer_whole_but_for_its_end_is_ended(
    emitted: int, sampling: Sampling, finish: str
) -> None:
    journal, entry = live()
    entry.sampling = sampling
    journal._owe(A, journal.owed(A) * -1 + entry.owed_tokens())
    journal.take(A, event(0, emitted), 0.0)
    assert [(news.ids, news.finish) for news in journal.lost(A)] == [((), finish)]
    assert len(journal) == 0
    journal.check_integrity()


def test_a_request_that_its_replica_does_not_know_goes_out_again() -> None:
    journal, entry = live(emitted=3)
    unknown = TokenEvent(ID, 1, 3, (), "error", "not known", "stage_lost")
    assert journal.take(A, unknown, 1.0) is None
    assert journal.pending() == [entry]
    assert journal.submit(entry, A, 0.0).attempt == 2


def test_a_request_that_kills_its_replica_ends() -> None:
    journal, entry = live(emitted=3)
    for _ in range(MAX_LOSSES - 1):
        assert journal.lost(A) == []
        journal.submit(entry, A, 0.0)
    (end,) = journal.lost(A)
    assert (end.finish, end.error_kind) == ("error", "stage_lost")
    assert "5 times in a row" in end.error
    assert len(journal) == 0
    journal.check_integrity()


def test_work_for_nobody_is_cancelled_once_a_second() -> None:
    journal, entry = live()
    other = event(0, 1)._replace(request_id=b"o" * 16, attempt=7)
    assert journal.orphan(A, other, 1.0) == Cancel(b"o" * 16, 7)
    assert journal.orphan(A, other, 1.9) is None
    assert journal.orphan(A, other, 2.1) == Cancel(b"o" * 16, 7)
    assert journal.orphan(A, other._replace(finish="stop"), 9.0) is None  # it is over
    assert journal.orphan(A, event(0, 1), 9.0) is None  # it is wanted
    assert journal.orphan(B, event(0, 1), 9.0) == Cancel(ID, 1)  # but from another replica
    journal.release(entry)
    assert journal.orphan(A, event(0, 1), 20.0) is None  # it may go out there again


def test_removing_says_what_to_cancel() -> None:
    journal, entry = live()
    assert journal.remove(ID) == Cancel(ID, 1)
    assert journal.remove(ID) is None
    entry = journal.add(ID, (1,), GREEDY, 0.0)
    assert journal.remove(entry.request_id) is None  # no replica has it
    entry = journal.add(ID, (1,), GREEDY, 0.0)
    journal.submit(entry, A, 0.0)
    journal.take(A, TokenEvent(ID, 1, 0, (5,), "stop"), 0.0)
    assert journal.remove(ID) is None  # it is over
    journal.check_integrity()


def test_silence_asks_again_and_an_idle_replica_loses_the_request() -> None:
    journal, entry = live()
    assert journal.ask_again(4.0, {A: False}) == []
    assert journal.ask_again(5.1, {A: False}) == [(A, Replay(ID, 1, 0))]
    assert journal.ask_again(5.2, {A: False}) == []
    assert journal.ask_again(9.0, {}) == []  # not ready: its own rules hold
    assert entry.replica == A
    assert journal.ask_again(9.0, {A: True}) == []
    assert journal.pending() == [entry]
    journal.submit(entry, A, 0.0)
    journal.take(A, event(0, 12, 2), 9.5)  # all of the answer, but not that it is all
    (end,) = journal.ask_again(12.0, {A: True})
    assert isinstance(end, News)
    assert (end.ids, end.finish, len(journal)) == ((), "stop", 0)


def test_what_moved_late_is_not_taken_back_at_once() -> None:
    journal, entry = live()
    journal.lost(A)
    journal.submit(entry, B, 9.0)  # B said that it is idle, and has not heard of this yet
    assert journal.ask_again(9.1, {B: True}) == []
    assert entry.replica == B
    assert journal.ask_again(11.1, {B: True}) == []
    assert entry.replica is None


def test_deadline() -> None:
    journal, entry = live()
    assert journal.overdue(10.0, 10.0) == []
    assert journal.overdue(10.1, 10.0) == [entry]


class Model:
    """A pipeline that keeps sending what it can, over a link that does what the test draws."""

    def __init__(self) -> None:
        self.submit: Submit | None = None
        self.position = 0

    def take(self, submit: Submit) -> None:
        assert submit.ids[submit.prompt_len :] == ANSWER[: len(submit.ids) - submit.prompt_len]
        self.submit, self.position = submit, len(submit.ids) - submit.prompt_len

    def event(self, count: int) -> TokenEvent | None:
        if self.submit is None:
            return None
        begin, self.position = self.position, min(self.position + count, len(ANSWER))
        finish = "stop" if self.position == len(ANSWER) else ""
        return event(begin, self.position, self.submit.attempt, finish)


actions = st.lists(
    st.tuples(st.sampled_from(["send", "drop", "double", "old", "lost"]), st.integers(0, 3)),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(actions)
def test_in_any_order_the_clients_ids_are_exact(drawn: list[tuple[str, int]]) -> None:
    """Drops, doubles, old events of any attempt and losses of the replica; then a calm end."""
    journal, model = Journal([EOS]), Model()
    entry = journal.add(ID, (1, 2, 3), GREEDY, 0.0)
    model.take(journal.submit(entry, A, 0.0))
    client: list[int] = []
    finishes: list[str] = []
    sent: list[TokenEvent] = []
    now_s = 0.0

    def arrive(arriving: TokenEvent | None) -> None:
        nonlocal now_s
        now_s += 1.0
        if arriving is None:
            return
        sent.append(arriving)
        got = journal.take(A, arriving, now_s)
        if isinstance(got, Replay):
            assert (got.attempt, got.position) == (entry.attempt, len(client))
            model.position = got.position
        elif got is not None:
            client.extend(got.ids)
            finishes.extend([got.finish] if got.finish else [])

    calm = [("send", 2)] * (2 * len(ANSWER))
    for action, number in [*drawn, *calm]:
        if action == "lost":
            entry.losses = 0  # that many in a row end a request: another test
            for news in journal.lost(A):
                finishes.append(news.finish)
            for pending in journal.pending():
                model.take(journal.submit(pending, A, 0.0))
        elif action == "old":
            if sent:
                arrive(sent[-1 - number % len(sent)])
        else:
            made = model.event(number)
            if action != "drop":
                arrive(made)
            if action == "double":
                arrive(made)
        journal.check_integrity()
    assert tuple(client) == ANSWER
    assert finishes == ["stop"]
    assert len(journal) == 0
