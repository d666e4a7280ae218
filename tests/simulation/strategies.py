"""Schedules as Hypothesis draws and shrinks them: towards few steps, one pipeline, short gaps."""

from __future__ import annotations

import hypothesis.strategies as st

from .schedule import GAPS_MS, KINDS, MOST, Schedule

_NUMBER = st.integers(0, MOST - 1)

steps = st.tuples(st.sampled_from(GAPS_MS), st.sampled_from(list(KINDS)), _NUMBER, _NUMBER, _NUMBER)
requests = st.tuples(st.sampled_from(GAPS_MS[:6]), st.just("submit"), _NUMBER, _NUMBER, st.just(0))

schedules = st.builds(
    lambda seed, stages, gateways, blocks, sequences, recurrent, first, others: Schedule(
        seed=seed,
        stages=tuple(stages),
        gateways=gateways,
        blocks=blocks,
        sequences=sequences,
        recurrent=recurrent,
        steps=(*first, *others),
    ),
    seed=st.integers(0, 255),
    stages=st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: sum(s) <= 6),
    gateways=st.integers(1, 3),
    blocks=st.sampled_from((30, 18, 14, 12)),
    sequences=st.sampled_from((5, 3, 2, 1)),
    recurrent=st.booleans(),
    first=st.lists(requests, min_size=1, max_size=3),
    others=st.lists(steps, max_size=10),
)
