"""What a watch receives is cut down to what is looked at, whichever way it is cut into chunks."""

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


def told(text: bytes, size: int) -> bytes:
    async def read() -> bytes:
        return b"".join([part async for part in Lines(Body(text, size)).iter_chunked(99)])

    return asyncio.run(read())


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_lines_are_trimmed_however_they_arrive(size: int) -> None:
    given = [{"type": "ADDED", "object": WHOLE}, ERROR, {"type": "DELETED", "object": WHOLE}]
    wanted = [{"type": "ADDED", "object": SMALL}, ERROR, {"type": "DELETED", "object": SMALL}]
    text = b"".join(json.dumps(one).encode() + b"\n" for one in given)
    assert [json.loads(line) for line in told(text, size).splitlines()] == wanted


@pytest.mark.parametrize("text", [b"no JSON\n", b'{"type": "ADDED"}\n', b'{"cut', b"\n", b""])
def test_what_is_no_event_is_passed_on(text: bytes) -> None:
    assert told(text, 5) == text


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
    assert Lines(Body(b"x", 3)).size == 3
