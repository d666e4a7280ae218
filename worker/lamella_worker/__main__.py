"""`python -m lamella_worker --config stage-0.json [--config stage-1.json ...]`: the only entry.

One process imports torch and forks one child per configuration. Ends with 0 after SIGTERM or
SIGINT, with 78 when a stage cannot work however often it is tried, with 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Before numpy is imported, here or anywhere below: a BLAS pool in the parent would not survive
# the fork. The stages' own threads are torch's, and are started after it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from lamella_contract import logs, names
from lamella_contract.config import StageConfig
from lamella_contract.errors import InvalidConfig, LamellaError

log = logging.getLogger(__name__)

EXIT_USAGE = 2
HEAVY_MODULES = ("torch", "lamella_worker.process.run")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, import what is heavy once, and keep the stages alive."""
    parser = argparse.ArgumentParser(prog="lamella_worker", description=__doc__)
    parser.add_argument("--config", action="append", required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    logs.configure("parent")
    try:
        configs = [read_config(path) for path in arguments.config]
        return keep_alive(configs)
    except LamellaError as error:
        log.error(str(error))
        return EXIT_USAGE


def read_config(path: str) -> StageConfig:
    """One stage's configuration; InvalidConfig names the file."""
    try:
        return StageConfig.from_json(Path(path).read_text())
    except (OSError, UnicodeDecodeError, InvalidConfig) as error:
        raise InvalidConfig(f"--config {path}: {error}") from error


def keep_alive(configs: list[StageConfig]) -> int:
    """Import once, fork the stages, and return the exit status."""
    from setproctitle import setproctitle

    from lamella_worker.process.nursery import Nursery, die_with_parent

    setproctitle(names.parent_title(configs[0].pipeline.name))
    if configs[0].parent_pid:
        die_with_parent(configs[0].parent_pid)
    began = time.monotonic()
    for module in HEAVY_MODULES:
        importlib.import_module(module)
    log.info("imported", extra={"seconds": round(time.monotonic() - began, 2)})
    process = importlib.import_module("lamella_worker.process.run")
    return Nursery(configs, process.run_stage).run()


if __name__ == "__main__":
    sys.exit(main())
