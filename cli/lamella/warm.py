"""Runs the worker with its imports done early: `python -m lamella.warm FILE`.

Importing torch and transformers takes longer than reading a model's headers and planning, so
`serve` starts this first and plans meanwhile. FILE is a JSON list of stage configurations' paths;
when it is there, the worker's own entry takes over in this process. Started again after a crash, it
finds the file at once.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

_POLL_S = 0.005


def main(list_file: str) -> int:
    """The worker's exit code; 1 when the supervisor went away first."""
    parent = os.getppid()
    # The worker package is run, not used: nothing of it is named here but its entry.
    worker = importlib.import_module("lamella_worker.__main__")
    for module in worker.HEAVY_MODULES:
        importlib.import_module(module)
    path = Path(list_file)
    while not path.exists():
        if os.getppid() != parent:
            return 1
        time.sleep(_POLL_S)
    configs = json.loads(path.read_text(encoding="utf-8"))
    return int(worker.main([word for config in configs for word in ("--config", config)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
