"""``python -m lamella_checkpoint inspect --uri URI``: what a planner must know of a model.

The only entry point of this package; `inspect_command` does the work. Like every first process of
a container it is given a default for SIGTERM before anything slow is imported.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(1))
    from lamella_checkpoint.inspect_command import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that still wait for a hub are not waited for
