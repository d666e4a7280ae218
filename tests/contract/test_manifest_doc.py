"""docs/manifest.md is what the resource says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_resource_says() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "manifest_doc"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
