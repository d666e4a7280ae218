"""`python -m benchmarks`: every figure that docs/performance.md states, measured here and now.

Each part is a program of its own and can be run alone; this runs them one after the other, so that
nothing measures while something else computes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.processes import started

PARTS = ("wire.py", "decode.py", "serve_bench.py")


def main() -> int:
    """Run every part; the worst exit status."""
    folder = Path(__file__).parent
    worst = 0
    for part in PARTS:
        with started([sys.executable, str(folder / part)]) as process:
            worst = max(worst, abs(process.wait()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
