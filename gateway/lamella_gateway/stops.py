"""Finds stop strings in a text that grows piece by piece, and never shows a part of one.

Knows strings only. The detokenizer feeds it each new piece; what it gives back is safe to send,
for no stop string can begin in it. A stop string may lie across any number of pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Holds back the shortest tail that may still become a stop string.

    The text shown in the end is the fed text up to the first stop string (the one that ends
    first; of two that end together, the one that begins first), which is itself never shown.
    """

    __slots__ = ("_longest", "_stops", "_tail", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._longest = max(map(len, self._stops), default=0)
        self._tail = ""  # fed and not yet shown: a proper prefix of some stop string
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """The text that may be shown now; "" after a stop string was found."""
        if not self._stops:
            return piece
        if self.matched is not None or not piece:
            return ""
        text = self._tail + piece
        found = self._first_stop(text)
        if found is not None:
            begin, self.matched = found
            self._tail = ""
            return text[:begin]
        keep = self._held(text)
        self._tail = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, when the text ends without a stop string."""
        tail, self._tail = self._tail, ""
        return tail

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            begin = text.find(stop)
            if begin >= 0:
                candidate = (begin + len(stop), begin, stop)
                best = candidate if best is None or candidate < best else best
        return None if best is None else (best[1], best[2])

    def _held(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins some stop string."""
        longest = min(self._longest - 1, len(text))
        for size in range(longest, 0, -1):
            end = text[len(text) - size :]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
