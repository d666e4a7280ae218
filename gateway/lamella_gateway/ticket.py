"""One request as its HTTP handler holds it: the dispatcher puts news in, the handler waits on it.

Knows ids and errors; no links and no HTTP. No task and no timer is made per token, and while
`show` takes the news no task is woken either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from .errors import ApiError
from .journal import Entry


class Ticket:
    """One request's news, in the order they came."""

    __slots__ = ("_waiter", "_woken_s", "entry", "error", "finish", "gone", "ids", "show")

    def __init__(self, entry: Entry, now_s: float) -> None:
        self.entry = entry
        self.ids: list[int] = []
        self.finish = ""
        self.error: ApiError | None = None
        self.gone = False  # the client hung up
        self.show: Callable[[], bool] | None = None
        """Takes `ids` while the answer goes on, at once; False when its handler must be woken."""
        self._woken_s = now_s
        self._waiter: asyncio.Future[None] | None = None

    async def news(self) -> tuple[Sequence[int], str]:
        """The next ids and finish ("" while it goes on); ((), "") is a time to say "alive".

        Raises `ApiError` when the request failed. Returns at once if news have piled up.
        """
        if not (self.ids or self.finish or self.error or self.gone):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.ids or self.finish:
            ids, self.ids = self.ids, []
            # an error that came after tokens is told once they are shown
            return ids, self.finish
        if self.error is not None:
            raise self.error
        return (), ""

    def wake(self, now_s: float) -> None:
        self._woken_s = now_s
        if self._goes_on and self.show is not None and self.show():
            return
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None

    @property
    def _goes_on(self) -> bool:
        return bool(self.ids) and not (self.finish or self.error or self.gone)

    def silent_s(self, now_s: float) -> float:
        return now_s - self._woken_s
