"""Runs the worker with its imports done early: `python -m lamella.warm FILE`.

Importing torch and transformers takes longer than reading a model's headers and planning, so
`serve` starts this first and plans meanwhile. FILE is JSON, {"configs": [paths], "family": name};
when it is there, the worker's own entry takes over in this process. Started again after a crash, it
finds the file at once.
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path

_POLL_S = 0.005
EARLY_MODULES = (
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What every stage imports when it builds its slice, seconds of it: here once, before the fork."""


def main(list_file: str) -> int:
    """The worker's exit code; 1 when the supervisor went away first."""
    parent = os.getppid()
    # Nothing that importing makes is garbage: not looking for any saves a tenth of the time, and
    # frozen it is not looked through again before the fork.
    gc.disable()
    # The worker package is run, not used: nothing of it is named here but its entry.
    worker = importlib.import_module("lamella_worker.__main__")
    for module in worker.HEAVY_MODULES:
        importlib.import_module(module)
    # Without torch transformers has no models to import (and whoever runs is no real worker).
    early = EARLY_MODULES if "torch" in sys.modules else ()
    for module in early:
        import_quietly(module)
    path = Path(list_file)
    while not path.exists():
        if os.getppid() != parent:
            return 1
        time.sleep(_POLL_S)
    document = json.loads(path.read_text(encoding="utf-8"))
    if early:
        import_quietly(modeling_module(document["family"]))
    gc.freeze()
    gc.enable()
    words = [word for config in document["configs"] for word in ("--config", config)]
    return int(worker.main(words))


def modeling_module(family: str) -> str:
    """Where transformers keeps the code of a model type; "" for one that it does not know."""
    try:
        auto = importlib.import_module("transformers.models.auto.configuration_auto")
        folder = str(auto.model_type_to_module_name(family))
    except (ImportError, AttributeError):
        return ""
    return f"transformers.models.{folder}.modeling_{folder}"


def import_quietly(module: str) -> None:
    """Imports a module ahead of its use; whoever needs it will say what is wrong with it."""
    with contextlib.suppress(ImportError, ValueError):
        importlib.import_module(module)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
