"""docs/wire.md says what the code does: kinds, layouts byte by byte, JSON keys, limits.

``pytest tests/contract/test_wire_page.py``
"""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path

import pytest

from lamella_contract import wire, wire_base, wire_gateway, wire_step

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f64": "d"}
FORMATS |= {"bytes[4]": "4s", "bytes[16]": "16s"}
LAYOUTS = {
    name: value
    for module in (wire_base, wire_step, wire_gateway)
    for name, value in vars(module).items()
    if isinstance(value, struct.Struct)
}
JSON_KINDS = {
    wire.Kind.HELLO: wire.Hello,
    wire.Kind.PIPELINE_STATUS: wire.PipelineStatus,
    **wire.CONTROL_KINDS,
}


def rows_behind(place: int) -> list[list[str]]:
    """The rows of the first table behind ``place``, without its head."""
    table = re.search(r"(?:^\|.*\n)+", PAGE[place:], re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines]  # not at "\\|"
    return [[cell.strip(" `").replace("\\|", "|") for cell in row] for row in cells]


def section(name: str) -> int:
    found = re.search(rf"^##+ {name}$", PAGE, re.MULTILINE)
    assert found is not None, f"no section {name}"
    return found.end()


def test_every_kind_is_listed() -> None:
    rows = {name: (int(number), body) for number, name, body in rows_behind(section("Kinds"))}
    assert rows == {
        kind.name: (int(kind), "JSON" if kind in JSON_KINDS else "binary") for kind in wire.Kind
    }
    for kind in wire.Kind:
        section(kind.name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_drawn_byte_by_byte(name: str) -> None:
    layout = LAYOUTS[name]
    found = re.search(rf"^`{name}` `(\S+)` (\d+) bytes", PAGE, re.MULTILINE)
    assert found is not None, f"no layout {name}"
    assert (found[1], int(found[2])) == (layout.format, layout.size)
    offset = 0
    types = ""
    for where, kind, *_ in rows_behind(found.end()):
        assert int(where) == offset
        types += FORMATS[kind]
        offset += struct.calcsize("<" + FORMATS[kind])
    assert offset == layout.size
    repeated = re.compile(r"(\d+)([A-Zd])")
    assert "<" + types == repeated.sub(lambda m: int(m[1]) * m[2], layout.format)


def test_the_page_draws_no_layout_that_is_not() -> None:
    assert set(re.findall(r"^`([A-Z_]+)` `<", PAGE, re.MULTILINE)) == set(LAYOUTS)


@pytest.mark.parametrize("kind", JSON_KINDS, ids=lambda kind: kind.name)
def test_every_json_key_is_listed(kind: wire.Kind) -> None:
    rows = rows_behind(section(kind.name))
    fields = dataclasses.fields(JSON_KINDS[kind])
    assert [(key, type_) for key, type_, _ in rows] == [(f.name, f.type) for f in fields]
    optional = {key for key, _, meaning in rows if "may be left out" in meaning}
    assert optional == {f.name for f in fields if f.default is not dataclasses.MISSING}


def test_constants() -> None:
    assert f"`{wire.MAGIC.decode()}`" in PAGE
    assert rows_behind(section("Envelope"))[1][3].startswith(f"{wire.VERSION};")
    assert PAGE.count(f"at most {wire_step.MAX_TEXT}") == 3
    codes = ", ".join(f"{code} {name or 'goes on'}" for code, name in enumerate(wire.FINISHES))
    assert codes in PAGE
    for verdict in wire.Verdict:
        assert f"| {verdict.name} |" in PAGE
