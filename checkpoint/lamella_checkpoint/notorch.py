"""Keeps torch out of a process that only reads configs or tokenizes, though torch is installed.

Knows nothing of models. transformers imports torch wherever it finds it, which takes ten seconds
and a gigabyte in processes (the command line, the gateway) that never touch a tensor. Such a
process calls `hide_torch` before anything imports transformers.
"""

from __future__ import annotations

import os
import sys


def hide_torch() -> None:
    """Make torch look absent to this process for good; does nothing when it is imported already.

    Never call it where a tensor will be computed.
    """
    if "torch" not in sys.modules:
        # None in sys.modules makes both `import torch` fail and `find_spec("torch")` find nothing.
        sys.modules["torch"] = None  # type: ignore[assignment]
        # It would warn, once per process, that models are not available: that is the point.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
