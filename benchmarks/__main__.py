"""`python -m benchmarks`: every figure that docs/performance.md states, measured here and now.

Each part is a program of its own and can be run alone; this runs them one after the other, so that
nothing measures while something else computes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = ("wire.py", "decode.py", "serve_bench.py")


def main() -> int:
    """Run every part; the worst exit status."""
    folder = Path(__file__).parent
    worst = 0
    for part in PARTS:
        done = subprocess.run([sys.executable, str(folder / part)], check=False)
        worst = max(worst, abs(done.returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main())
