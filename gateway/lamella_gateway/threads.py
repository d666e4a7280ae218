"""Work in a thread that the process need not wait for when it ends. Knows nothing of the work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_daemon_thread(function: Callable[[], T], name: str) -> asyncio.Future[T]:
    """As `asyncio.to_thread`, but ending the process does not wait for the thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[], None]) -> None:
        def if_awaited() -> None:
            if not future.done():
                settle()

        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(if_awaited)

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # a thread's edge: told to whoever awaits the future
            failure = error
            tell(lambda: future.set_exception(failure))
        else:
            tell(lambda: future.set_result(result))

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
