"""Stop strings across pieces: table, and any text cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_gateway.stops import StopScanner


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(piece) for piece in pieces)
    if scanner.matched is None:
        shown += scanner.finish()
    return shown, scanner.matched


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        pytest.param([], ["a", "b"], "ab", None, id="no-stops"),
        pytest.param(["x"], ["a", "b"], "ab", None, id="not-found"),
        pytest.param(["b"], ["a", "b", "c"], "a", "b", id="a-piece-of-its-own"),
        pytest.param(["END"], ["a E", "N", "D b"], "a ", "END", id="across-pieces"),
        pytest.param(["END"], ["a E", "N", "X"], "a ENX", None, id="nearly"),
        pytest.param(["END"], ["a EN"], "a EN", None, id="held-back-then-told"),
        pytest.param(["aab"], ["aa", "ab"], "a", "aab", id="overlaps-itself"),
        pytest.param(["cd", "abcd"], ["abc", "d"], "", "abcd", id="two-end-together"),
        pytest.param(["bcX", "c"], ["abcX"], "ab", "c", id="the-first-to-end"),
        pytest.param(["", "b"], ["ab"], "a", "b", id="an-empty-one-means-nothing"),
        pytest.param(["é"], ["caf", "é!"], "caf", "é", id="not-ascii"),
    ],
)
def test_table(stops: list[str], pieces: list[str], shown: str, matched: str | None) -> None:
    assert run(stops, pieces) == (shown, matched)


texts = st.text("ab", max_size=30)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), st.lists(texts, max_size=12))
def test_pieces_make_no_difference(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert run(stops, pieces) == run(stops, [text])
    assert run(stops, list(text)) == run(stops, [text])


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4), texts)
def test_no_part_of_a_stop_string_is_shown(stops: list[str], text: str) -> None:
    scanner = StopScanner(stops)
    shown = ""
    for at, character in enumerate(text, 1):
        shown += scanner.feed(character)
        assert text.startswith(shown)
        if scanner.matched is not None:
            assert text[:at] == shown + scanner.matched
            return
        held = text[len(shown) : at]
        # what is shown could not have become a stop string, what is held could
        assert not any(stop in text[:at] for stop in stops)
        assert not held or any(stop.startswith(held) for stop in stops)
