"""Which replica gets a request: the idlest, or the one that has seen the prompt's beginning."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_gateway.balance import BLOCK_TOKENS, REMEMBERED_PREFIXES, Balancer

A, B, C = "tcp://10.0.0.1:5700", "tcp://10.0.0.2:5700", "tcp://10.0.0.3:5700"
LONG = tuple(range(5 * BLOCK_TOKENS))


@pytest.mark.parametrize(
    ("owed", "chosen"),
    [
        pytest.param({}, None, id="nobody-ready"),
        pytest.param({B: 10}, B, id="the-only-one"),
        pytest.param({A: 10, B: 3}, B, id="the-idlest"),
        pytest.param({A: 3, B: 3}, A, id="a-tie"),
    ],
)
def test_least_outstanding(owed: dict[str, int], chosen: str | None) -> None:
    assert Balancer().pick((1, 2, 3), owed) == chosen


def test_a_prefix_goes_where_it_was() -> None:
    balancer = Balancer(slack_tokens=100)
    assert balancer.pick(LONG, {A: 5, B: 0}) == B
    follow_up = (*LONG, 7, 8)
    assert balancer.pick(follow_up, {A: 0, B: 100}) == B
    # longest known beginning decides, the rest may differ
    assert balancer.pick((*LONG[: 2 * BLOCK_TOKENS], 9, 9), {A: 0, B: 50}) == B
    assert balancer.pick((9, *LONG), {A: 0, B: 50}) == A


def test_a_queue_outweighs_a_prefix() -> None:
    balancer = Balancer(slack_tokens=100)
    balancer.pick(LONG, {B: 0})
    assert balancer.pick(LONG, {A: 0, B: 101}) == A
    assert balancer.pick(LONG, {A: 0, B: 0}) == A  # it lives there now


def test_a_replica_that_is_gone_or_forgot_draws_nobody() -> None:
    balancer = Balancer()
    balancer.pick(LONG, {B: 0})
    assert balancer.pick(LONG, {A: 9}) == A
    balancer = Balancer()
    balancer.pick(LONG, {B: 0})
    balancer.forget(B)
    assert balancer.pick(LONG, {A: 0, B: 9}) == A


def test_memory_is_bounded() -> None:
    balancer = Balancer()
    for first in range(REMEMBERED_PREFIXES // 4 + 10):
        balancer.pick((first, *LONG), {A: 0})
    assert len(balancer._prefixes) == REMEMBERED_PREFIXES


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=200)),
    st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 10_000)),
)
def test_it_picks_one_of_those_that_are_ready(
    prompts: list[list[int]], owed: dict[str, int]
) -> None:
    balancer = Balancer(slack_tokens=50)
    for prompt in prompts:
        chosen = balancer.pick(prompt, owed)
        assert (chosen is None) == (not owed)
        if chosen is not None:
            assert owed[chosen] <= min(owed.values()) + 50
