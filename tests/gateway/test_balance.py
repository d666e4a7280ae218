"""Which replica gets a request: the idlest, or the one that has seen the prompt's beginning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella_gateway.balance import BLOCK_TOKENS, REMEMBERED_PREFIXES, Balancer

LONG = tuple(range(5 * BLOCK_TOKENS))


@pytest.mark.parametrize(
    ("owed", "chosen"),
    [
        pytest.param({}, None, id="nobody-ready"),
        pytest.param({1: 10}, 1, id="the-only-one"),
        pytest.param({0: 10, 1: 3}, 1, id="the-idlest"),
        pytest.param({0: 3, 1: 3}, 0, id="a-tie"),
    ],
)
def test_least_outstanding(owed: dict[int, int], chosen: int | None) -> None:
    assert Balancer().pick((1, 2, 3), owed) == chosen


def test_a_prefix_goes_where_it_was() -> None:
    balancer = Balancer(slack_tokens=100)
    assert balancer.pick(LONG, {0: 5, 1: 0}) == 1
    follow_up = (*LONG, 7, 8)
    assert balancer.pick(follow_up, {0: 0, 1: 100}) == 1
    # longest known beginning decides, the rest may differ
    assert balancer.pick((*LONG[: 2 * BLOCK_TOKENS], 9, 9), {0: 0, 1: 50}) == 1
    assert balancer.pick((9, *LONG), {0: 0, 1: 50}) == 0


def test_a_queue_outweighs_a_prefix() -> None:
    balancer = Balancer(slack_tokens=100)
    balancer.pick(LONG, {1: 0})
    assert balancer.pick(LONG, {0: 0, 1: 101}) == 0
    assert balancer.pick(LONG, {0: 0, 1: 0}) == 0  # it lives there now


def test_a_replica_that_is_gone_or_forgot_draws_nobody() -> None:
    balancer = Balancer()
    balancer.pick(LONG, {1: 0})
    assert balancer.pick(LONG, {0: 9}) == 0
    balancer = Balancer()
    balancer.pick(LONG, {1: 0})
    balancer.forget(1)
    assert balancer.pick(LONG, {0: 0, 1: 9}) == 0


def test_memory_is_bounded() -> None:
    balancer = Balancer()
    for first in range(REMEMBERED_PREFIXES // 4 + 10):
        balancer.pick((first, *LONG), {0: 0})
    assert len(balancer._prefixes) == REMEMBERED_PREFIXES


@given(
    st.lists(st.lists(st.integers(0, 1), max_size=200)),
    st.dictionaries(st.integers(0, 3), st.integers(0, 10_000)),
)
def test_it_picks_one_of_those_that_are_ready(
    prompts: list[list[int]], owed: dict[int, int]
) -> None:
    balancer = Balancer(slack_tokens=50)
    for prompt in prompts:
        chosen = balancer.pick(prompt, owed)
        assert (chosen is None) == (not owed)
        if chosen is not None:
            assert owed[chosen] <= min(owed.values()) + 50
