"""``python -m lamella_operator``: the operator. See `running.app` for the order of things."""

from __future__ import annotations

import gc
import logging
import os
import sys

import uvloop

from lamella_contract import logs
from lamella_contract.errors import LamellaError
from lamella_operator.reconciling.trace import Traced
from lamella_operator.running.app import run
from lamella_operator.running.brain import brain
from lamella_operator.running.flags import parse

USAGE_ERROR = 2
GC_THRESHOLDS = (5_000, 20, 100)
"""Documents of the API are trees without cycles: collecting rarely saves time, and what is
imported is never garbage."""


def main() -> int:
    """The exit status: 0 after a signal, 1 when it could not go on, 2 for wrong flags."""
    logs.configure("operator")
    for handler in logging.getLogger().handlers:
        handler.addFilter(Traced())
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it tells of each object at INFO
    try:
        settings, process = parse(sys.argv[1:], os.environ)
    except LamellaError as error:
        print(f"lamella-operator: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        return uvloop.run(run(settings, process, brain(settings)))
    except LamellaError as error:
        logging.getLogger(__name__).error("%s", error)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
