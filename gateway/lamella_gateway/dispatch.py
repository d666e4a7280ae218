"""Brings requests to replicas and their tokens back: journal, balance and links at work together.

Knows ids, replicas and deadlines; no HTTP and no text. Everything runs on one event loop, so
nothing is locked. The rules beside the journal's:

1. A request that no replica can take is held, up to a deadline and a number of tokens.
2. A replica that drains gets nothing new and goes on with what it has.
3. A replica that is of no use for some seconds, silent or not ready, loses its requests to another
   that is ready; without another they wait for it.
4. A replica that is too full for a request is passed over; a new request that all are too full
   for is refused, one that has begun waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from lamella_contract import errors as contract
from lamella_contract.wire import NO_SALT, Cancel, Events, Replay, Sampling

from .balance import Balancer
from .errors import ApiError, from_pipeline, overloaded, unavailable
from .journal import Entry, Journal, News
from .link import Link, LinkNews
from .links import Links, MakeLink
from .metrics import Metrics
from .ticket import Ticket

TICK_S = 0.1
KEEP_ALIVE_S = 10.0
DISTRUST_S = 0.5  # a replica that refused what it had offered to take is left alone for so long
MOVE_AFTER_S = 3.0  # rule 3; a stage that is started anew on its node is back by then, mostly

_log = logging.getLogger(__name__)


class Dispatcher:
    """The requests of one gateway and the replicas that serve them."""

    def __init__(
        self,
        make_link: MakeLink,
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
        self._unready: dict[str, float] = {}  # replica -> until when its word is not trusted
        news = LinkNews(events=self._events, lost=self._lost, status=self._status, gone=self._gone)
        self.links = Links(make_link, news, metrics)
        metrics.live.set_function(lambda: float(len(self._tickets)))
        metrics.held.set_function(lambda: float(len(self._journal.pending())))
        metrics.queued_tokens.set_function(lambda: float(self._journal.queued_tokens()))
        self.keep_alive_s = KEEP_ALIVE_S
        self.generated_tokens = 0
        self.draining = False
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def __len__(self) -> int:
        return len(self._tickets)

    # -- what HTTP handlers call ---------------------------------------------------------------

    def open(
        self,
        request_id: bytes,
        prompt_ids: tuple[int, ...],
        sampling: Sampling,
        salt: bytes = NO_SALT,
    ) -> Ticket:
        """Take a request in; `ApiError` 429 when too much waits already, 503 when shutting down."""
        if self.draining:
            raise unavailable("this gateway is shutting down")
        waiting = self._journal.held_tokens()
        if waiting and waiting + len(prompt_ids) > self._max_queued_tokens:
            raise overloaded(
                f"{waiting} prompt tokens wait for the model already; the limit is "
                f"{self._max_queued_tokens}.",
                retry_after_s=2.0,
            )
        now_s = self._loop.time()
        entry = self._journal.add(request_id, prompt_ids, sampling, now_s, salt)
        ticket = self._tickets[request_id] = Ticket(entry, now_s)
        self._dispatch(entry, self._able(now_s), now_s)
        return ticket

    def close(self, ticket: Ticket) -> None:
        """The handler is done with a request; its replica is told if it is not. Idempotent."""
        entry = ticket.entry
        if self._tickets.pop(entry.request_id, None) is None:
            return
        replica = entry.replica
        cancel = self._journal.remove(entry.request_id)
        if cancel is not None and replica is not None:
            self._cancel(replica, cancel)
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
        return self.links.reason(self._loop.time())

    # -- shutting down -------------------------------------------------------------------------

    def end_all(self) -> None:
        """What is not done ends with an error."""
        for ticket in list(self._tickets.values()):
            self._fail(ticket, unavailable("this gateway is shutting down"))

    def shut(self) -> None:
        """Cancel what is left and hang up."""
        self._timer.cancel()
        for ticket in list(self._tickets.values()):
            self.close(ticket)
        self.links.close()

    # -- what links call -----------------------------------------------------------------------

    def _events(self, replica: str, events: Events) -> None:
        now_s = self._loop.time()
        for event in events.items:
            news = self._journal.take(replica, event, now_s)
            if news is None:
                cancel = self._journal.orphan(replica, event, now_s)
                if cancel is not None:
                    self.links.send(replica, cancel)
            elif isinstance(news, Replay):
                self._metrics.replays.inc()
                self.links.send(replica, news)
            elif news.error_kind == contract.PipelineUnavailable.kind:
                # the status that said "ready" was overtaken: wait for a newer one
                self._unready[replica] = now_s + DISTRUST_S
                self._journal.release(news.entry)
            elif news.error_kind != contract.Overloaded.kind or not self._waits(news, now_s):
                self._deliver(news, now_s)

    def _waits(self, news: News, now_s: float) -> bool:
        """Rule 4: whether a request that its replica was too full for goes on living."""
        entry = news.entry
        assert entry.replica is not None
        entry.full_until_s[entry.replica] = now_s + max(news.retry_after_s, DISTRUST_S)
        able = [link for link in self._able(now_s) if entry.may_go_to(link.address, now_s)]
        if not able and not entry.has_begun:
            return False
        self._journal.release(entry)
        self._dispatch(entry, able, now_s)
        return True

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

    def _lost(self, replica: str, why: str, planned: bool = False) -> None:
        now_s = self._loop.time()
        ended = self._journal.lost(replica)
        self._balancer.forget(replica)
        facts = {"replica": replica, "why": why, "live": len(self._journal.pending())}
        if planned:
            _log.info("a replica has ended as it had said", extra=facts)
        else:
            _log.warning("a replica was lost", extra=facts)
        for news in ended:
            self._deliver(news, now_s)
        self._dispatch_pending(now_s)

    def _gone(self, replica: str) -> None:
        self._journal.forget(replica)
        self._unready.pop(replica, None)

    def _status(self, replica: str) -> None:
        self._dispatch_pending(self._loop.time())

    # -- inside --------------------------------------------------------------------------------

    def _able(self, now_s: float) -> list[Link]:
        return [
            link
            for link in self.links.ready(now_s)
            if self._unready.get(link.address, 0.0) <= now_s
        ]

    def _dispatch_pending(self, now_s: float) -> None:
        pending = self._journal.pending()
        able = self._able(now_s) if pending else []
        for entry in pending if able else ():
            self._dispatch(entry, able, now_s)

    def _dispatch(self, entry: Entry, able: Sequence[Link], now_s: float) -> None:
        """Submit ``entry`` to the best of ``able``; it stays held where there is none."""
        links = [link for link in able if entry.may_go_to(link.address, now_s)]
        owed = {link.address: self._journal.owed(link.address) for link in links}
        busy = {link.address: link.requests() for link in links}
        replica = self._balancer.pick(entry.prompt_ids, owed, busy)
        if replica is None:
            return
        message = self._journal.submit(entry, replica, now_s)
        if entry.attempt > 1:
            self._metrics.resubmitted.inc()
        if not self.links.send(replica, message):
            self._journal.release(entry)

    def _cancel(self, replica: str, cancel: Cancel) -> None:
        self.links.send(replica, cancel)
        self._journal.cancelled(cancel.request_id, self._loop.time())

    def _fail(self, ticket: Ticket, error: ApiError) -> None:
        ticket.error = error
        self.close(ticket)
        ticket.wake(self._loop.time())

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        now_s = self._loop.time()
        for link in self.links:
            link.beat(now_s)
        self._move(now_s)
        at_work = [link for link in self.links if link.ready(now_s) or link.drains(now_s)]
        for done in self._journal.ask_again(now_s, {link.address: link.idle() for link in at_work}):
            if isinstance(done, News):
                self._deliver(done, now_s)
            else:
                self._metrics.replays.inc()
                self.links.send(*done)
        self._dispatch_pending(now_s)
        for entry in self._journal.overdue(now_s, self.request_deadline_s):
            self._fail(self._tickets[entry.request_id], self._too_late(entry))
        for ticket in self._tickets.values():
            if ticket.silent_s(now_s) >= self.keep_alive_s:
                ticket.wake(now_s)

    def _move(self, now_s: float) -> None:
        """Rule 3."""
        if not self.links.ready(now_s):
            return
        for link in self.links:
            if link.useless_s(now_s) < MOVE_AFTER_S:
                continue
            entries = self._journal.on(link.address)
            for entry in entries:  # should it recover, it must not compute for nobody
                self._cancel(link.address, Cancel(entry.request_id, entry.attempt))
            if entries:
                self._lost(link.address, f"another is ready, and here {link.reason(now_s)}")

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
