"""Every live request: what was asked, what was answered, by which attempt, on which replica.

Pure: knows ids, positions and times that it is given; no sockets, no text, no clock. A replica is
one whole pipeline, named by its address; replicas come and go. The journal outlives any of them:
from an entry alone a request can be submitted again, and the client sees each token once. The
rules:

1. Only the current attempt's events are taken, and only at the next position. What overlaps is
   cut, what was seen is dropped, what leaves a gap makes the journal ask for a replay. The last
   token takes the request out of the journal.
2. A replica that was lost, or that does not know a request, gives it back; it goes out again as
   the next attempt with all ids known. An answer that was whole but for its end is ended here. A
   request that brings its replica down again and again ends with an error.
3. A request without news for too long ends with an error; one silent for a while asks again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lamella_contract.errors import StageLost
from lamella_contract.wire import NO_SALT, Cancel, Replay, Sampling, Submit, TokenEvent

REPLAY_AGAIN_S = 0.5  # a replay that was asked for and did not come is asked for again
CANCEL_AGAIN_S = 1.0  # a cancel is on its way; events that cross it are no reason for another
SILENCE_S = 5.0  # a running request without news for this long asks for a replay
MAX_LOSSES = 5  # replicas lost in a row without a token between
IDLE_RESUBMIT_S = 2.0  # its replica has nothing to do: it never got the request


@dataclass(slots=True)
class Entry:
    """One live request. ``replica`` None: not submitted now. Times are seconds of one clock."""

    request_id: bytes
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    last_news_s: float
    salt: bytes = NO_SALT
    cached_tokens: int = 0  # of the prompt, as the attempt with the first token said
    emitted: list[int] = field(default_factory=list)
    attempt: int = 0  # the first submission is attempt 1
    replica: str | None = None
    submitted_s: float = float("-inf")
    asked_s: float = float("-inf")  # when a replay was last asked for
    losses: int = 0  # replicas lost since the last token
    full_until_s: dict[str, float] = field(default_factory=dict)  # replicas that refused it

    @property
    def has_begun(self) -> bool:
        """Whether a replica took it in before: its client waits for more than a first answer."""
        return bool(self.emitted or self.losses)

    def may_go_to(self, replica: str, now_s: float) -> bool:
        """Not to a replica that was too full for it a moment ago."""
        return self.full_until_s.get(replica, now_s) <= now_s

    def owed_tokens(self) -> int:
        """Tokens that a replica computes for this request at most, from where it is now."""
        return len(self.prompt_ids) + self.sampling.max_tokens - len(self.emitted)


@dataclass(frozen=True, slots=True)
class News:
    """What an event brought for the client: ids not seen before, and the end if it is one.

    ``finish`` is "" or one of the wire's finishes; ``error`` texts belong to finish "error".
    """

    entry: Entry
    ids: tuple[int, ...]
    finish: str = ""
    error: str = ""
    error_kind: str = ""
    retry_after_s: float = 0.0


class Journal:
    """The live requests of one gateway."""

    def __init__(self, eos_token_ids: Iterable[int] = ()) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._owed: dict[str, int] = {}  # replica -> tokens that it still owes
        self._eos = frozenset(eos_token_ids)
        self._cancelled_s: OrderedDict[bytes, float] = OrderedDict()  # request -> when, lately

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, request_id: bytes) -> Entry | None:
        return self._entries.get(request_id)

    def owed(self, replica: str) -> int:
        """Tokens that ``replica`` still has to compute for this gateway, at most."""
        return self._owed.get(replica, 0)

    def pending(self) -> list[Entry]:
        """Entries that no replica has, oldest first."""
        return [entry for entry in self._entries.values() if entry.replica is None]

    def held_tokens(self) -> int:
        """Prompt tokens of the requests that no replica has."""
        return sum(len(e.prompt_ids) for e in self._entries.values() if e.replica is None)

    def queued_tokens(self) -> int:
        """Prompt tokens of the requests that have no token yet, wherever they wait."""
        return sum(len(e.prompt_ids) for e in self._entries.values() if not e.emitted)

    def on(self, replica: str) -> list[Entry]:
        """Entries that ``replica`` has."""
        return [entry for entry in self._entries.values() if entry.replica == replica]

    def add(
        self,
        request_id: bytes,
        prompt_ids: tuple[int, ...],
        sampling: Sampling,
        now_s: float,
        salt: bytes = NO_SALT,
    ) -> Entry:
        assert request_id not in self._entries
        entry = Entry(request_id, prompt_ids, sampling, now_s, salt)
        self._entries[request_id] = entry
        return entry

    def submit(self, entry: Entry, replica: str, now_s: float) -> Submit:
        """Give ``entry`` to ``replica`` as its next attempt, with all ids known."""
        assert entry.replica is None
        entry.attempt += 1
        entry.replica = replica
        entry.submitted_s = now_s
        entry.asked_s = float("-inf")
        self._owe(replica, entry.owed_tokens())
        return Submit(
            request_id=entry.request_id,
            attempt=entry.attempt,
            prompt_len=len(entry.prompt_ids),
            ids=(*entry.prompt_ids, *entry.emitted),
            sampling=entry.sampling,
            salt=entry.salt,
        )

    def release(self, entry: Entry) -> None:
        """Take ``entry`` back from its replica; it is pending again."""
        if entry.replica is not None:
            self._owe(entry.replica, -entry.owed_tokens())
            entry.replica = None

    def orphan(self, replica: str, event: TokenEvent, now_s: float) -> Cancel | None:
        """What to tell a replica that works for nobody: on a request that this gateway does not
        know (an earlier run of it did, or a cancel was lost) or that moved to another replica."""
        entry = self._entries.get(event.request_id)
        if event.finish or (entry is not None and entry.replica in (replica, None)):
            return None
        if now_s - self._cancelled_s.get(event.request_id, float("-inf")) < CANCEL_AGAIN_S:
            return None
        self.cancelled(event.request_id, now_s)
        return Cancel(event.request_id, event.attempt)

    def cancelled(self, request_id: bytes, now_s: float) -> None:
        """A cancel was sent."""
        self._cancelled_s[request_id] = now_s
        self._cancelled_s.move_to_end(request_id)
        while len(self._cancelled_s) > 1024:
            self._cancelled_s.popitem(last=False)

    def remove(self, request_id: bytes) -> Cancel | None:
        """Forget a request; what to tell its replica if that still works on it."""
        entry = self._entries.pop(request_id, None)
        if entry is None or entry.replica is None:
            return None
        self._owe(entry.replica, -entry.owed_tokens())
        return Cancel(request_id, entry.attempt)

    def take(self, replica: str, event: TokenEvent, now_s: float) -> News | Replay | None:
        """Rule 1. None: nothing new (another attempt's, seen before, or a replay is under way)."""
        entry = self._entries.get(event.request_id)
        if entry is None or entry.replica != replica or entry.attempt != event.attempt:
            return None
        have = len(entry.emitted)
        if event.finish == "error" or event.finish == "cancelled":
            if event.error_kind == StageLost.kind:
                return self._take_back(entry)
            return News(entry, (), event.finish, event.error, event.error_kind, event.retry_after_s)
        if event.position > have:
            return self._ask(entry, now_s, REPLAY_AGAIN_S)
        ids = event.ids[have - event.position :]
        if not ids and (not event.finish or event.position + len(event.ids) < have):
            return None
        if not have:
            entry.cached_tokens = event.cached
        entry.emitted += ids
        entry.last_news_s = now_s
        entry.asked_s = float("-inf")
        entry.losses = 0
        self._owe(replica, -len(ids))
        if event.finish:
            self.remove(entry.request_id)
        return News(entry, ids, event.finish)

    def lost(self, replica: str) -> list[News]:
        """Rule 2: ``replica`` forgot everything. Ends of answers that need no more tokens."""
        held = self.on(replica)
        return [news for entry in held if (news := self._take_back(entry)) is not None]

    def forget(self, replica: str) -> None:
        """A replica that has no request is gone for good."""
        assert not self._owed.pop(replica, 0)

    def overdue(self, now_s: float, deadline_s: float) -> list[Entry]:
        """Rule 3: entries without news for longer than ``deadline_s``."""
        return [e for e in self._entries.values() if now_s - e.last_news_s > deadline_s]

    def ask_again(self, now_s: float, idle: Mapping[str, bool]) -> list[tuple[str, Replay] | News]:
        """Rule 3: replays to send, and ends of answers that need no more tokens.

        ``idle`` says of each ready replica if it has nothing to do: it never got an entry that it
        should have, or the entry's end was lost. Such an entry is taken back and goes out again.
        """
        todo: list[tuple[str, Replay] | News] = []
        for entry in list(self._entries.values()):
            if entry.replica is None or entry.replica not in idle:
                continue
            silent_s = now_s - max(entry.last_news_s, entry.submitted_s)
            done: Replay | News | None = None
            if idle[entry.replica] and silent_s > IDLE_RESUBMIT_S:
                done = self._take_back(entry)
            elif silent_s > SILENCE_S:
                done = self._ask(entry, now_s, SILENCE_S)
            if isinstance(done, Replay):
                todo.append((entry.replica, done))
            elif done is not None:
                todo.append(done)
        return todo

    def check_integrity(self) -> None:
        """Raises AssertionError when the counters do not add up."""
        owed: dict[str, int] = {}
        for entry in self._entries.values():
            if entry.replica is not None:
                owed[entry.replica] = owed.get(entry.replica, 0) + entry.owed_tokens()
        assert owed == {replica: n for replica, n in self._owed.items() if n}, (owed, self._owed)

    def _take_back(self, entry: Entry) -> News | None:
        """Rule 2 for one entry: it is pending again, or ended when it lacks nothing."""
        self.release(entry)
        entry.losses += 1
        finish = self._finish_of(entry)
        if not finish and entry.losses < MAX_LOSSES:
            return None
        self.remove(entry.request_id)
        if finish:
            return News(entry, (), finish)
        error = f"the pipeline was lost {entry.losses} times in a row under this request"
        return News(entry, (), "error", error, StageLost.kind)

    def _ask(self, entry: Entry, now_s: float, again_s: float) -> Replay | None:
        if now_s - entry.asked_s < again_s:
            return None
        entry.asked_s = now_s
        return Replay(entry.request_id, entry.attempt, len(entry.emitted))

    def _finish_of(self, entry: Entry) -> str:
        """How an answer that needs no more tokens ended; "" when it needs more."""
        sampling = entry.sampling
        if entry.emitted:
            last = entry.emitted[-1]
            if last in sampling.stop_token_ids:
                return "stop"
            if last in self._eos and not sampling.ignore_eos:
                return "stop"
        return "length" if len(entry.emitted) >= sampling.max_tokens else ""

    def _owe(self, replica: str, tokens: int) -> None:
        self._owed[replica] = self._owed.get(replica, 0) + tokens
