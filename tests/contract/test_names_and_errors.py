"""Names fit their limits, errors survive a border, the package needs nothing but Python.

``pytest tests/contract/test_names_and_errors.py``
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lamella_contract
from lamella_contract import errors, names

PART = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?", fullmatch=True)


@given(parts=st.lists(PART, min_size=1, max_size=4))
def test_object_names_are_valid_and_short(parts: list[str]) -> None:
    name = names.object_name(*parts)
    assert len(name) <= 63
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    if len("-".join(parts)) <= 63:
        assert name == "-".join(parts)


def test_long_names_that_share_a_beginning_stay_two() -> None:
    assert names.object_name("a" * 70, "1") != names.object_name("a" * 70, "2")


ROLES = {
    "stage-0": ("stage", 0),
    "gateway-12": ("gateway", 12),
    "stage-": None,
    "stage-01": None,
    "operator-0": None,
    "stage-1 ": None,
    "stage-1\n": None,
}


@pytest.mark.parametrize(("role", "expected"), ROLES.items(), ids=repr)
def test_roles(role: str, expected: tuple[str, int] | None) -> None:
    assert names.parse_role(role) == expected
    if expected is not None:
        make = names.stage_role if expected[0] == "stage" else names.gateway_role
        assert make(expected[1]) == role


TITLES = {
    "lamella: stage 1/3 qwen": names.stage_title(1, 3, "qwen"),
    "lamella: stage 0/2 qwen loading 40%": names.stage_title(0, 2, "qwen", "loading 40%"),
    "lamella: gateway qwen": names.gateway_title("qwen"),
    "lamella: parent qwen": names.parent_title("qwen"),
}


@pytest.mark.parametrize(("expected", "title"), TITLES.items(), ids=str)
def test_process_titles(expected: str, title: str) -> None:
    assert title == expected


def classes(root: type[errors.LamellaError] = errors.LamellaError) -> list[type]:
    return [root, *(found for child in root.__subclasses__() for found in classes(child))]


OURS = [cls for cls in classes() if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_error_is_drawn_in_the_tree_and_says_what_to_do(cls: type) -> None:
    assert cls is errors.LamellaError or re.search(rf"── {cls.__name__}\s+\S", errors.__doc__ or "")
    assert cls.__doc__


def test_kinds_are_unique() -> None:
    kinds = [cls.kind for cls in OURS]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_an_error_is_made_again_from_its_kind(cls: type) -> None:
    made = errors.from_kind(cls.kind, "message", retry_after_s=3.0)
    assert str(made) == "message"
    if cls is errors.InvalidSpec:  # its fields do not cross a border
        assert type(made) is errors.LamellaError
        return
    assert type(made) is cls
    if isinstance(made, errors.Overloaded):
        assert made.retry_after_s == 3.0


def test_a_kind_of_a_newer_peer_is_a_plain_error() -> None:
    assert type(errors.from_kind("from the future", "m")) is errors.LamellaError


SHOWN = {"nothing": None, "'a'": "a", "1": 1}


@pytest.mark.parametrize(("text", "value"), SHOWN.items(), ids=repr)
def test_values_in_messages(text: str, value: object) -> None:
    assert errors.shown(value) == text


def test_long_values_are_cut() -> None:
    assert len(errors.shown("x" * 1000)) == 80


PACKAGE = Path(lamella_contract.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
PROBE = """
import sys
for name in ("torch", "zmq", "numpy", "transformers", "huggingface_hub", "msgspec", "yaml"):
    sys.modules[name] = None
before = set(sys.modules)
import importlib
importlib.import_module("lamella_contract." + sys.argv[1])
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(roots - set(sys.stdlib_module_names) - {"lamella_contract"}))
"""


@pytest.mark.parametrize("module", MODULES)
def test_each_module_needs_the_standard_library_only(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, module],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
