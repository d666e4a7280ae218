"""What a watch receives is told as it comes, whichever way it is cut into chunks, and cut down to
what is looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from lamella_operator.reconciling.trimming import Lines, document

META = {"name": "a", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}}
WHOLE = {"kind": "P", "metadata": {**META, "managedFields": [{"fieldsV1": {"f:a": {}}}]}}
SMALL = {"kind": "P", "metadata": META}
ERROR = {"type": "ERROR", "object": {"kind": "Status", "code": 410}}


@dataclass
class Body:
    data: bytes
    size: int

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        for at in range(0, len(self.data), self.size):
            yield self.data[at : at + self.size]


def told(text: bytes, size: int) -> tuple[bytes, list[tuple[Any, bool]]]:
    """What is passed on, and what was told on the way."""
    seen: list[tuple[Any, bool]] = []

    async def read() -> bytes:
        lines = Lines(Body(text, size), lambda one, gone: seen.append((one, gone)))
        return b"".join([part async for part in lines.iter_chunked(99)])

    return asyncio.run(read()), seen


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_objects_are_told_and_bookmarks_passed_on_however_lines_arrive(size: int) -> None:
    mark = {"type": "BOOKMARK", "object": {"kind": "P", "metadata": {"resourceVersion": "7"}}}
    given = [{"type": "ADDED", "object": WHOLE}, ERROR, mark, {"type": "DELETED", "object": WHOLE}]
    text = b"".join(json.dumps(one).encode() + b"\n" for one in given)
    passed, seen = told(text, size)
    lines = [json.loads(line) for line in passed.splitlines()]
    assert [line["type"] for line in lines] == ["BOOKMARK", "ERROR", "BOOKMARK", "BOOKMARK"]
    assert [line["object"]["metadata"]["resourceVersion"] for line in lines if line != ERROR] == [
        "7",
        "7",
        "7",
    ]
    assert seen == [(SMALL, False), (SMALL, True)]


@pytest.mark.parametrize("text", [b"no JSON\n", b'{"type": "ADDED"}\n', b'{"cut', b"\n", b""])
def test_what_is_no_event_is_passed_on(text: bytes) -> None:
    assert told(text, 5) == (text, [])


LIST = {"apiVersion": "v1", "kind": "L", "metadata": {"resourceVersion": "9", "continue": "x"}}


@pytest.mark.parametrize(
    ("whole", "small"),
    [
        ({**LIST, "items": [WHOLE, WHOLE]}, {**LIST, "items": [SMALL, SMALL]}),
        ({**LIST, "items": None}, {**LIST, "items": []}),
        (ERROR["object"], ERROR["object"]),
        ({**LIST, "items": [{"metadata": 3}]}, {**LIST, "items": [{"metadata": 3}]}),
        (LIST, LIST),
    ],
    ids=["list", "list of nothing", "error", "odd", "no list"],
)
def test_items_of_a_list_are_trimmed(whole: Any, small: Any) -> None:
    assert document(json.dumps(whole).encode()) == small


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        document(b"<html>")


def test_everything_else_is_the_bodys_own() -> None:
    assert Lines(Body(b"x", 3), lambda one, gone: None).size == 3
