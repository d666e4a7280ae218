"""What all tests share: golden files, compared whole and written anew by `--update-golden`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
sys.path.append(str(Path(__file__).parent / "common"))  # for every test to import


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files anew, and pass"
    )
    parser.addoption("--e2e-report", metavar="FOLDER", help="where tests/e2e writes what it saw")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden("name.yaml", text)`` holds ``text`` and tests/golden/name.yaml together."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"{path} is missing: run `make golden` and look at it"
        assert text == path.read_text(), f"{path} differs: run `make golden` and look at the diff"

    return compare
