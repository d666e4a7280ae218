"""The only entry: `python -m lamella_worker --config stage-0.json [--config stage-1.json ...]`.

Without --config the one stage's configuration is in LAMELLA_STAGE_CONFIG, as in a pod. One process
imports torch and forks one child per configuration. Ends with 0 after SIGTERM or SIGINT, with 78
when a stage cannot work however often it is tried, with 2 for bad arguments.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # In a container this is process 1, to which a signal without a handler does nothing, and the
    # imports below take seconds. There is no child yet, and nothing to put in order.
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, lambda number, frame: os._exit(0))

import argparse
import importlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Before numpy is imported, here or anywhere below: a BLAS pool in the parent would not survive
# the fork. The stages' own threads are torch's, and are started after it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from lamella_contract import logs, names
from lamella_contract.config import StageConfig
from lamella_contract.errors import InvalidConfig, LamellaError
from lamella_worker.process import last_words

log = logging.getLogger(__name__)

EXIT_USAGE = 2
HEAVY_MODULES = ("torch", "lamella_worker.process.run")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, import what is heavy once, and keep the stages alive."""
    parser = argparse.ArgumentParser(prog="lamella_worker", description=__doc__)
    parser.add_argument("--config", action="append", default=[], metavar="FILE")
    arguments = parser.parse_args(argv)
    logs.configure("parent")
    log_path = ""
    try:
        if arguments.config:
            configs = read_files(arguments.config, os.environ)
        else:
            log_path = termination_log(os.environ.get(names.ENV_STAGE_CONFIG, ""))
            configs = [read_environment(os.environ)]
        return keep_alive(configs)
    except LamellaError as error:
        log.error(str(error))
        last_words.leave(log_path, error)
        return EXIT_USAGE


def read_files(paths: Sequence[str], environment: Mapping[str, str]) -> list[StageConfig]:
    """The stages' configurations; InvalidConfig names the file."""
    if environment.get(names.ENV_STAGE_CONFIG):
        raise InvalidConfig(f"got --config and {names.ENV_STAGE_CONFIG}, want one of them")
    configs = []
    for path in paths:
        try:
            configs.append(StageConfig.from_json(Path(path).read_text()))
        except (OSError, UnicodeDecodeError, InvalidConfig) as error:
            raise InvalidConfig(f"--config {path}: {error}") from error
    return configs


def read_environment(environment: Mapping[str, str]) -> StageConfig:
    """One stage's configuration from the environment; InvalidConfig names the variable."""
    text = environment.get(names.ENV_STAGE_CONFIG, "")
    if not text:
        raise InvalidConfig(f"got no --config and no {names.ENV_STAGE_CONFIG}, want one of them")
    try:
        return StageConfig.from_json(text)
    except InvalidConfig as error:
        raise InvalidConfig(f"{names.ENV_STAGE_CONFIG}: {error}") from error


def termination_log(text: str) -> str:
    """Where a configuration that may not be understood (a newer version's) wants last words."""
    try:
        path = json.loads(text)["termination_log"]
    except (ValueError, KeyError, TypeError):
        return ""
    return path if isinstance(path, str) else ""


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
