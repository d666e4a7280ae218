"""Brings requests to replicas and their tokens back: journal, balance and links at work together.

Knows ids, replicas and deadlines; no HTTP and no text. Everything runs on one event loop, so
nothing is locked. A `Ticket` is one request as its HTTP handler holds it: the dispatcher puts news
into it, the handler waits on it; no task and no timer is made per token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from lamella_contract import errors as contract
from lamella_contract.wire import Events, GatewayMessage, Replay, Sampling

from .balance import Balancer
from .errors import ApiError, from_pipeline, overloaded, unavailable
from .journal import Entry, Journal, News
from .link import Link, LinkNews
from .metrics import Metrics

TICK_S = 0.1
KEEP_ALIVE_S = 10.0
DRAIN_S = 1.2  # streams may go on for so long after SIGTERM; the process ends within 2 s

_log = logging.getLogger(__name__)

MakeLink = Callable[[LinkNews], Link]


class Ticket:
    """One request's news, in the order they came."""

    __slots__ = ("_waiter", "_woken_s", "entry", "error", "finish", "gone", "ids")

    def __init__(self, entry: Entry, now_s: float) -> None:
        self.entry = entry
        self.ids: list[int] = []
        self.finish = ""
        self.error: ApiError | None = None
        self.gone = False  # the client hung up
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
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None

    def silent_s(self, now_s: float) -> float:
        return now_s - self._woken_s


class Dispatcher:
    """The requests of one gateway and the replicas that serve them."""

    def __init__(
        self,
        make_links: Sequence[MakeLink],
        *,
        request_deadline_s: float,
        max_queued_tokens: int,
        eos_token_ids: Sequence[int],
        metrics: Metrics,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.request_deadline_s = request_deadline_s
        self._max_queued_tokens = max_queued_tokens
        self._metrics = metrics
        self._journal = Journal(eos_token_ids)
        self._balancer = Balancer()
        self._tickets: dict[bytes, Ticket] = {}
        self._unready: dict[int, float] = {}  # replica -> until when its word is not trusted
        news = LinkNews(events=self._events, lost=self._lost, status=self._status)
        self.links = [make(news) for make in make_links]
        self.keep_alive_s = KEEP_ALIVE_S
        self.generated_tokens = 0
        self.draining = False
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def __len__(self) -> int:
        return len(self._tickets)

    # -- what HTTP handlers call ---------------------------------------------------------------

    def open(self, request_id: bytes, prompt_ids: tuple[int, ...], sampling: Sampling) -> Ticket:
        """Take a request in; `ApiError` 429 when too much waits already, 503 when shutting down."""
        if self.draining:
            raise unavailable("this gateway is shutting down")
        waiting = sum(len(entry.prompt_ids) for entry in self._journal.pending())
        if waiting and waiting + len(prompt_ids) > self._max_queued_tokens:
            raise overloaded(
                f"{waiting} prompt tokens wait for the model already; the limit is "
                f"{self._max_queued_tokens}.",
                retry_after_s=2.0,
            )
        now_s = self._loop.time()
        entry = self._journal.add(request_id, prompt_ids, sampling, now_s)
        ticket = self._tickets[request_id] = Ticket(entry, now_s)
        self._dispatch(entry)
        return ticket

    def close(self, ticket: Ticket) -> None:
        """The handler is done with a request; its replica is told if it is not. Idempotent."""
        entry = ticket.entry
        if self._tickets.pop(entry.request_id, None) is None:
            return
        replica = entry.replica
        cancel = self._journal.remove(entry.request_id)
        if cancel is not None and replica is not None:
            self._send(replica, cancel)
            self._journal.cancelled(entry.request_id, self._loop.time())
            self._metrics.cancelled.inc()

    def hung_up(self, ticket: Ticket) -> None:
        """The client is gone: stop the work at once and wake the handler."""
        ticket.gone = True
        self.close(ticket)
        ticket.wake(self._loop.time())

    def not_ready_reason(self) -> str:
        """Why a request would not be served now; "" when one would."""
        if self.draining:
            return "this gateway is shutting down"
        now_s = self._loop.time()
        reasons = [link.reason(now_s) for link in self.links]
        return "" if "" in reasons else "; ".join(dict.fromkeys(reasons))

    # -- shutting down -------------------------------------------------------------------------

    def drain(self, grace_s: float = DRAIN_S) -> None:
        """Take nothing new; what is not done in ``grace_s`` ends with an error."""
        if not self.draining:
            self.draining = True
            self._loop.call_later(grace_s, self._end_all)

    def shut(self) -> None:
        """Cancel what is left and hang up."""
        self._timer.cancel()
        for ticket in list(self._tickets.values()):
            self.close(ticket)
        for link in self.links:
            link.close()

    def _end_all(self) -> None:
        for ticket in list(self._tickets.values()):
            self._fail(ticket, unavailable("this gateway is shutting down"))

    # -- what links call -----------------------------------------------------------------------

    def _events(self, replica: int, events: Events) -> None:
        now_s = self._loop.time()
        for event in events.items:
            news = self._journal.take(replica, event, now_s)
            if news is None:
                cancel = self._journal.orphan(replica, event, now_s)
                if cancel is not None:
                    self._send(replica, cancel)
            elif isinstance(news, Replay):
                self._metrics.replays.inc()
                self._send(replica, news)
            elif news.error_kind == contract.PipelineUnavailable.kind:
                # the status that said "ready" was overtaken: wait for a newer one
                self._unready[replica] = now_s + 5 * TICK_S
                self._journal.release(news.entry)
            else:
                self._deliver(news, now_s)

    def _deliver(self, news: News, now_s: float) -> None:
        ticket = self._tickets[news.entry.request_id]
        if news.finish in ("error", "cancelled"):
            self._journal.remove(news.entry.request_id)  # first, or its replica would be told
            self._fail(ticket, _error_of(news))
            return
        self.generated_tokens += len(news.ids)
        ticket.ids += news.ids
        ticket.finish = news.finish
        ticket.wake(now_s)

    def _lost(self, replica: int, why: str) -> None:
        now_s = self._loop.time()
        ended = self._journal.lost(replica)
        self._balancer.forget(replica)
        waiting = len(self._journal.pending())
        _log.warning("a replica was lost", extra={"replica": replica, "why": why, "live": waiting})
        for news in ended:
            self._deliver(news, now_s)

    def _status(self, replica: int) -> None:
        self._dispatch_pending()

    # -- inside --------------------------------------------------------------------------------

    def _dispatch_pending(self) -> None:
        for entry in self._journal.pending():
            if not self._dispatch(entry):
                return

    def _dispatch(self, entry: Entry) -> bool:
        now_s = self._loop.time()
        owed = {
            link.index: self._journal.owed(link.index)
            for link in self.links
            if link.ready(now_s) and self._unready.get(link.index, 0.0) <= now_s
        }
        replica = self._balancer.pick(entry.prompt_ids, owed)
        if replica is None:
            return False
        message = self._journal.submit(entry, replica)
        if entry.attempt > 1:
            self._metrics.resubmitted.inc()
        if not self._send(replica, message):
            self._journal.release(entry)
            return False
        return True

    def _send(self, replica: int, message: GatewayMessage) -> bool:
        return self.links[replica].send(message)

    def _fail(self, ticket: Ticket, error: ApiError) -> None:
        ticket.error = error
        self.close(ticket)
        ticket.wake(self._loop.time())

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        now_s = self._loop.time()
        for link in self.links:
            link.beat(now_s)
        idle = {link.index: link.idle() for link in self.links if link.ready(now_s)}
        for done in self._journal.ask_again(now_s, idle):
            if isinstance(done, News):
                self._deliver(done, now_s)
            else:
                self._metrics.replays.inc()
                self._send(*done)
        self._dispatch_pending()
        for entry in self._journal.overdue(now_s, self.request_deadline_s):
            self._fail(self._tickets[entry.request_id], self._too_late(entry))
        for ticket in self._tickets.values():
            if ticket.silent_s(now_s) >= self.keep_alive_s:
                ticket.wake(now_s)

    def _too_late(self, entry: Entry) -> ApiError:
        reason = self.not_ready_reason() or "it is busy with other requests"
        return unavailable(
            f"{reason}; the request waited {self.request_deadline_s:g} s for a token"
        )


def _error_of(news: News) -> ApiError:
    if news.error_kind == contract.Overloaded.kind:
        return overloaded(news.error or "The model is overloaded.", news.retry_after_s or 1.0)
    if news.finish == "cancelled":
        return unavailable(news.error or "the pipeline gave the request up")
    return from_pipeline(news.error_kind, news.error)
