"""The janitor: cleans up after a supervisor that was killed outright.

Knows process groups and one directory, nothing of models. `local.Supervisor` starts it first, in a
session of its own, and tells it by lines on its standard input which process groups live ("+123",
"-123"). A clean end is "done". When the input ends without "done" the supervisor is dead (SIGKILL,
out of memory), and the janitor acts.

It is run by path with `python -I -S`, so it starts in about 10 ms and may import the standard
library only.
"""

import os
import shutil
import signal
import sys
from typing import TextIO


def watch(lines: TextIO) -> set[int] | None:
    """The groups that are alive when the supervisor vanishes; None when it ended cleanly."""
    groups: set[int] = set()
    for line in lines:
        order = line.strip()
        if order == "done":
            return None
        if order.startswith("+"):
            groups.add(int(order[1:]))
        elif order.startswith("-"):
            groups.discard(int(order[1:]))
    return groups


def main(run_dir: str) -> None:
    """Waits for the end of standard input, then cleans up."""
    # A terminal's Ctrl-C and a SIGTERM to the session are the supervisor's business: it will say
    # "done".
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    groups = watch(sys.stdin)
    if groups is None:
        return
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
