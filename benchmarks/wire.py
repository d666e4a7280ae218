"""What the frames of one decode step cost to write and to read: `python benchmarks/wire.py`.

Sixteen sequences, one row each; the least of many tries, on warm caches.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from lamella_contract import wire

ENVELOPE = wire.Envelope(wire.Kind.STEP, bytes(16), bytes(16), 3, 7)
ROWS = 16


def least_us(work: Callable[[], object]) -> float:
    """Microseconds of one call, the least over the repeats."""
    return min(timeit.repeat(work, number=50, repeat=60)) / 50 * 1e6


def main() -> None:
    """Print one line per frame."""
    header = wire.StepHeader(
        5,
        segments=tuple(wire.SegmentHeader(i, 1, 100 + i, 1, True) for i in range(ROWS)),
        trace=(wire.StageTime(100, 200),),
        tensors=(wire.TensorHeader("hidden", "bfloat16", (ROWS, 768), 1),),
    )
    done = wire.StepDone(5, tuple(wire.RowResult(i, 1, 101 + i, (i,)) for i in range(ROWS)))
    step, result = wire.encode_step(ENVELOPE, header), wire.encode_step_done(ENVELOPE, done)
    print(f"{f'frames of a step of {ROWS} rows':<28}{'write':>10}{'read':>10}")
    write, read = (
        least_us(lambda: wire.encode_step(ENVELOPE, header)),
        least_us(lambda: wire.decode_step(step)),
    )
    print(f"{'STEP':<28}{write:>7.1f} us{read:>7.1f} us")
    write, read = (
        least_us(lambda: wire.encode_step_done(ENVELOPE, done)),
        least_us(lambda: wire.decode_step_done(result)),
    )
    print(f"{'STEP_DONE':<28}{write:>7.1f} us{read:>7.1f} us\n")


if __name__ == "__main__":
    main()
