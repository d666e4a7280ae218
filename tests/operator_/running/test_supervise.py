"""Each watch ends and begins again on its own. In virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from operator_virtual_time import play

from lamella_operator.running.supervise import LAST_PAUSE_S, Supervisor


def test_one_that_fails_begins_again_and_the_other_is_untouched() -> None:
    async def story() -> None:
        lives: Counter[str] = Counter()

        async def watch(scope: str) -> None:
            lives[scope] += 1
            if scope == "bad":
                raise PermissionError("403 Forbidden")
            await asyncio.Event().wait()

        began: list[str] = []
        supervisor = Supervisor(watch, began.append, lambda: 0.5)
        tasks = [asyncio.ensure_future(supervisor.keep(scope)) for scope in ("good", "bad")]
        await asyncio.sleep(120)
        assert lives["good"] == 1
        assert 5 <= lives["bad"] <= 10  # 1, 2, 4, 8, 16, 30, 30 ... seconds
        assert "403 Forbidden" in supervisor.watched["bad"].problem
        assert supervisor.watched["bad"].restarts >= 5
        assert supervisor.is_up("good")
        assert not supervisor.is_up("bad")
        assert began.count("bad") == lives["bad"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    play(story())


def test_one_that_simply_ends_begins_again_and_a_good_life_forgets_the_pauses() -> None:
    async def story() -> None:
        began: list[float] = []
        loop = asyncio.get_running_loop()

        async def watch(scope: str) -> None:
            began.append(loop.time())
            await asyncio.sleep(3600)

        supervisor = Supervisor(watch, jitter=lambda: 0.5)
        task = asyncio.ensure_future(supervisor.keep("a"))
        await asyncio.sleep(10 * 3602)
        pauses = [later - earlier - 3600 for earlier, later in itertools.pairwise(began)]
        assert max(pauses) < 2 < LAST_PAUSE_S
        task.cancel()

    play(story())


def test_a_watch_is_begun_anew_when_that_is_wanted() -> None:
    async def story() -> None:
        lives, cancelled = [0], [0]

        async def watch(scope: str) -> None:
            lives[0] += 1
            try:
                await asyncio.Event().wait()
            finally:
                cancelled[0] += 1

        supervisor = Supervisor(watch, jitter=lambda: 0.5)
        task = asyncio.ensure_future(supervisor.keep("a"))
        await asyncio.sleep(1)
        supervisor.renew("a")
        supervisor.renew("nobody")
        await asyncio.sleep(5)
        assert (lives, cancelled) == ([2], [1])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert cancelled == [2]

    play(story())
