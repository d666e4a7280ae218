"""What a stage that ends for good leaves in its termination log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lamella_contract.errors import AuthRequired, CorruptModel, OutOfMemory
from lamella_worker.process import last_words


def test_kind_and_message_are_left_in_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * 9000)
    inode = path.stat().st_ino
    last_words.leave(str(path), OutOfMemory("needs 3.0 GiB, 2.0 GiB are free"))
    assert json.loads(path.read_text()) == {
        "kind": "out_of_memory",
        "message": "needs 3.0 GiB, 2.0 GiB are free",
    }
    assert path.stat().st_ino == inode, "the log is a mount: nothing can take its place"


@pytest.mark.parametrize("path", ["", "/proc/no/such/folder"])
def test_nowhere_to_write_is_no_error(path: str) -> None:
    last_words.leave(path, CorruptModel("a file is short"))


@pytest.mark.parametrize(
    "message", ["x" * 10_000, "é" * 3000, "\U0001f600" * 2000, '"' * 3000, "\\" * 5000]
)
def test_a_long_message_keeps_its_beginning_and_its_end(message: str) -> None:
    text = last_words.document("corrupt_model", f"first {message} last")
    assert len(text) <= last_words.MOST_BYTES
    document = json.loads(text)
    assert document["message"].startswith("first ")
    assert document["message"].endswith(" last")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("token hf_abcdefghijklmnop was refused", "token *** was refused"),
        ("https://me:secret@hub/x", "https://***@hub/x"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("https://cdn/x?Expires=1&Signature=abc~d&Key-Pair-Id=K: 403", "https://cdn/x?*** 403"),
        ("https://cdn/x?X-Amz-Signature=12ab 403", "https://cdn/x?*** 403"),
        ("the file says my-own-token", "the file says ***"),
        ("layers 0 to 3 need 3.0 GiB", "layers 0 to 3 need 3.0 GiB"),
    ],
)
def test_secrets_are_hidden(tmp_path: Path, text: str, left: str) -> None:
    path = tmp_path / "log"
    last_words.leave(str(path), AuthRequired(text), ["my-own-token", ""])
    assert json.loads(path.read_text())["message"] == left
