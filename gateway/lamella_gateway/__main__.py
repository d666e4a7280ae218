"""``python -m lamella_gateway``: the OpenAI endpoint of one model.

The only entry point. Its configuration is the file that --config names, or the variable
LAMELLA_GATEWAY_CONFIG. A container's first process has no default for SIGTERM, so it is given one
before anything slow is imported: until requests are taken, asked to end is ended.

Exit codes: 0 asked to stop, 1 failed, 2 wrong arguments, configuration or model, 3 the port is in
use.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from .serving import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
