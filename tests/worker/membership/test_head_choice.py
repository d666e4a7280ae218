"""Which stage 0 a stage follows while its name means several addresses, none, or old ones."""

from __future__ import annotations

import pytest

from lamella_worker.membership.head_choice import (
    DIAL_AGAIN_S,
    LOOK_AGAIN_S,
    LOOK_UP_S,
    STALE_S,
    HeadChoice,
    Turn,
)

A, B, C = "tcp://10.0.0.1:5701", "tcp://10.0.0.2:5701", "tcp://10.0.0.3:5701"
OLD, NEW = b"o" * 16, b"n" * 16


def choice(*fixed: str) -> HeadChoice:
    return HeadChoice(suspect_after_s=1.0, fixed=fixed)


def following(address: str, incarnation: bytes, now_s: float) -> HeadChoice:
    """One that has found its stage 0 by name."""
    made = choice()
    made.turn(now_s)
    made.looked_up([address], now_s)
    made.turn(now_s)
    assert made.heard(address, incarnation, now_s)
    return made


def test_a_literal_address_is_dialled_at_once_and_never_looked_up() -> None:
    made = choice(A)
    assert made.turn(0.0) == Turn(dial=(A,), speak=(A,))
    assert made.heard(A, OLD, 0.1)
    assert made.turn(100.0).look_up is False


def test_a_name_is_looked_up_until_it_is_answered_and_every_address_is_dialled() -> None:
    made = choice()
    assert made.turn(0.0) == Turn(look_up=True)
    assert made.turn(LOOK_UP_S / 2) == Turn()
    made.looked_up([], 0.4)  # DNS is down
    assert made.turn(LOOK_UP_S) == Turn(look_up=True)
    made.looked_up([A, B], 0.6)
    assert made.turn(0.6) == Turn(dial=(A, B), speak=(A, B))


def test_the_first_that_answers_is_followed_and_the_others_are_hung_up_on() -> None:
    made = choice()
    made.looked_up([A, B], 0.0)
    made.turn(0.0)
    assert made.heard(B, OLD, 0.1)
    assert not made.heard(A, NEW, 0.1)
    turn = made.turn(0.1)
    assert (turn.drop, turn.dial, turn.speak) == ((A,), (), (B,))


def test_silence_makes_it_look_again_and_a_new_address_is_followed() -> None:
    made = following(A, OLD, 0.0)
    assert made.turn(0.9).speak == (A,)
    assert made.turn(2.0).look_up
    made.looked_up([A], 2.1)  # the answer is old
    assert made.turn(2.1).speak == (A,)
    made.looked_up([B], 20.0)
    assert made.turn(20.0).dial == (A, B)  # the one of before may still come back
    assert made.heard(B, NEW, 20.1)
    assert made.turn(20.2).drop == (A,)


def test_one_that_was_replaced_and_speaks_again_before_its_successor_is_not_followed() -> None:
    made = following(A, OLD, 0.0)
    made.turn(4.0)
    made.looked_up([B], 4.1)
    assert made.turn(4.5).speak == (A, B)
    assert not made.heard(A, OLD, 5.0)
    assert not made.may_follow(A, OLD, 5.0)
    assert made.heard(B, NEW, 6.0)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param([A], id="it-is-named"),
        pytest.param([B, A], id="with-another"),
        pytest.param([], id="no-answer"),
    ],
)
def test_one_that_speaks_again_and_was_not_replaced_is_followed_on(answer: list[str]) -> None:
    made = following(A, OLD, 0.0)
    made.turn(4.0)
    made.looked_up(answer, 4.1)
    made.turn(4.5)
    assert made.heard(A, OLD, 5.0)


def test_an_answer_from_before_the_silence_takes_nobodys_place() -> None:
    made = following(A, OLD, 0.0)
    assert made.heard(A, OLD, 19.9)
    made.turn(20.0)
    made.looked_up([B], 20.0)
    assert made.heard(A, OLD, 20.1)
    made.turn(22.0)
    assert made.heard(A, OLD, 22.1)


def test_an_old_answer_that_names_one_of_before_says_nothing() -> None:
    made = following(A, OLD, 0.0)
    made.turn(4.0)
    made.looked_up([B], 4.0)
    made.turn(4.5)
    assert made.heard(B, NEW, 5.0)
    made.turn(10.0)
    made.looked_up([A], 10.0)  # a cache that has not heard of B
    made.turn(10.5)
    assert made.heard(B, NEW, 11.0)


def test_an_incarnation_that_was_left_is_never_followed_again() -> None:
    made = following(A, OLD, 0.0)
    made.turn(5.0)
    made.looked_up([A, B], 5.0)
    made.turn(5.0)
    assert made.heard(B, NEW, 5.1)
    made.turn(10.0)  # the new one is silent now, and the old one is asked too
    assert not made.heard(A, OLD, 10.1)
    assert not made.may_follow(A, OLD, 10.1)
    assert made.heard(B, NEW, 10.2)


def test_a_new_process_at_the_same_address_is_followed_and_the_old_one_is_left() -> None:
    made = following(A, OLD, 0.0)
    assert made.heard(A, NEW, 0.2)
    assert not made.heard(A, OLD, 0.3)


@pytest.mark.parametrize(
    ("absent_s", "doubted"),
    [
        pytest.param(STALE_S - 1, False, id="an-answer-may-be-that-old"),
        pytest.param(STALE_S + 1, True, id="longer-than-any-answer-is-old"),
    ],
)
def test_one_that_the_name_does_not_mean_any_more_is_left_as_soon_as_another_answers(
    absent_s: float, doubted: bool
) -> None:
    made = following(A, OLD, 0.0)
    now_s = 0.0
    while now_s < absent_s:
        now_s += 0.5
        assert made.heard(A, OLD, now_s)
        if made.turn(now_s).look_up:
            made.looked_up([B], now_s)
    assert made.turn(absent_s + 0.1).speak == ((A, B) if doubted else (A,))
    assert made.heard(B, NEW, absent_s + 0.2) == doubted


def test_while_it_is_heard_the_name_is_looked_up_now_and_then() -> None:
    made = following(A, OLD, 0.0)
    asked = []
    for tick in range(1, 400):
        now_s = tick * 0.25
        made.heard(A, OLD, now_s)
        if made.turn(now_s).look_up:
            asked.append(now_s)
            made.looked_up([A], now_s)
    assert len(asked) == int(100 / LOOK_AGAIN_S)


def test_an_address_that_stays_dumb_is_dialled_anew() -> None:
    made = choice(A)
    made.turn(0.0)
    assert made.turn(DIAL_AGAIN_S).dial == ()
    assert made.turn(DIAL_AGAIN_S + 0.1) == Turn(drop=(A,), dial=(A,), speak=(A,))


def test_what_comes_from_a_socket_that_was_hung_up_on_counts_for_nothing() -> None:
    assert not choice(A).heard(B, OLD, 0.0)


def test_dns_that_goes_away_takes_nothing_away() -> None:
    made = following(A, OLD, 0.0)
    for tick in range(200):
        made.looked_up([], float(tick))
        assert made.turn(float(tick)).speak == (A,)
    assert made.heard(A, OLD, 200.0)
