"""One answer in the making: ids come in, text that may be shown goes out.

Joins the detokenizer and the stop scanner and counts tokens; knows no HTTP and no sockets. Both
the streamed and the whole answer are made here, so they are the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .detokenize import Detokenizer
from .stops import StopScanner


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt: computed before, for another request

    def fields(self) -> dict[str, object]:
        """As OpenAI names them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Answer:
    """``finish_reason`` is None until the answer ended: OpenAI's "stop" or "length"."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str], prompt_tokens: int) -> None:
        self._detokenizer = detokenizer
        self._stops = StopScanner(stop)
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: str | None = None

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._completion_tokens, self.cached_tokens)

    def feed(self, ids: Sequence[int], finish: str = "") -> str:
        """Text to show for ``ids`` and, with ``finish``, for what was held back.

        A stop string ends the answer ("stop") before the model does: `finish_reason` is then set
        though ``finish`` was "".
        """
        self._completion_tokens += len(ids)
        text = self._stops.feed(self._detokenizer.feed(ids))
        if finish and self._stops.matched is None:
            text += self._stops.feed(self._detokenizer.finish())
            if self._stops.matched is None:
                text += self._stops.finish()
        if self._stops.matched is not None:
            self.finish_reason = "stop"
        elif finish:
            self.finish_reason = finish
        return text
