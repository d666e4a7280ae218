"""The README's map names every module, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("contract", "checkpoint", "worker", "gateway", "operator", "cli")
MAP = re.compile(r"<!-- file map.*?-->\n(.*?)<!-- end of file map -->", re.DOTALL)


def mapped(package: str) -> set[str]:
    found = MAP.search((ROOT / "README.md").read_text())
    assert found is not None
    section = re.search(rf"^{package}/\S+.*?(?=^\S|\Z)", found[1], re.DOTALL | re.MULTILINE)
    assert section is not None, f"README's map has no section for {package}/"
    return set(re.findall(r"^ +([\w/]+\.(?:py|html))  ", section[0], re.MULTILINE))


def present(package: str) -> set[str]:
    (inner,) = (p for p in (ROOT / package).iterdir() if p.name.startswith("lamella"))
    return {
        str(path.relative_to(inner))
        for path in inner.rglob("*")
        if path.suffix in {".py", ".html"} and path.name != "__init__.py"
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_exactly_the_modules_that_exist(package: str) -> None:
    assert mapped(package) == present(package)


def test_every_page_and_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`?make ([a-z][a-z0-9-]*)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets
