"""Random numbers that are a function of (seed, position), not of history.

It knows nothing of logits or batches. A request that is replayed after a stage died must draw the
number it drew the first time, whatever batch its row sits in by then; so there is no generator
whose state moves, only a hash of the request's seed and the absolute position of the new token.

The hash is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"):
the stream of a seed starts at the mixed seed and is entered at any position at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
UNIFORM_BITS = 52
"""Bits of a uniform number. 52 and not 53: then ``u * total`` rounds to less than ``total``."""


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (variant 13 of Stafford), element-wise; wraps modulo 2**64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per row; `seeds` and `positions` are [rows]."""
    start = _mix(np.atleast_1d(seeds) + np.uint64(_GOLDEN))
    counter = np.atleast_1d(positions).astype(np.uint64) + np.uint64(1)
    bits = _mix(start + counter * np.uint64(_GOLDEN))
    scaled: NDArray[np.float64] = (bits >> np.uint64(64 - UNIFORM_BITS)).astype(np.float64)
    return scaled * 2.0**-UNIFORM_BITS


def as_seed(value: int) -> int:
    """Any Python integer as the 64-bit seed it stands for."""
    return value & _MASK64
