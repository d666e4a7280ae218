"""Sessions: what the engine keeps per request between two calls of `infer_tensor`.

It knows no model. A session is the inputs that a request has sent so far, and how many of them
still have their keys and values in the model's slots. The slots are a cache of the inputs: a
session that loses its slots (another request needed them, the cache grew, memory ran out) is
computed again from its inputs, so that interleaving two requests never changes an answer. Only the
byte budget makes a session forget its inputs; after that it is lost, and says so.

Not the worker's path: there stage 0's scheduler owns slots and blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lamella_worker.engine_errors import SessionLost
from lamella_worker.state import ShardInferenceState

Input: TypeAlias = NDArray[Any]
"""Token ids int64 [rows, n] or hidden states float32 [rows, n, hidden]."""


@dataclass(slots=True)
class Session:
    """One request: `rows` sequences of equal length that are computed together.

    `cached` tokens of each row have their keys and values in `slots`; `inputs` holds all tokens
    seen, in chunks, or nothing when the budget took them (`complete` is then False).
    """

    request_id: str
    rows: int
    state: ShardInferenceState = field(default_factory=ShardInferenceState)
    inputs: list[Input] = field(default_factory=list)
    complete: bool = True
    slots: tuple[int, ...] = ()
    cached: int = 0

    @property
    def input_bytes(self) -> int:
        """Bytes of the inputs that are kept."""
        return sum(chunk.nbytes for chunk in self.inputs)

    def pending(self, new: Input) -> Input:
        """What must be computed now: the inputs that are not cached, then `new`.

        Raises SessionLost when those inputs were given up to the byte budget.
        """
        position = self.state.position
        if self.cached == position:
            return new
        if not self.complete:
            raise SessionLost(
                f"request {self.request_id!r}: its cache and its inputs were evicted at position "
                f"{position}; send it again from position 0"
            )
        old = np.concatenate(self.inputs, axis=1)[:, self.cached :]
        return np.concatenate((old, new), axis=1)

    def advance(self, new: Input, cached: bool) -> None:
        """`new` was computed; `cached`: its keys and values are in the slots now."""
        if self.complete:
            self.inputs.append(new)
        self.state.position += new.shape[1]
        self.state.token_count = self.state.position
        self.state.step += 1
        self.cached = self.state.position if cached else 0


class SessionTable:
    """The sessions of one engine, least recently used first, under a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._slot_count = 0
        self._slot_bytes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._sessions

    @property
    def bytes_used(self) -> int:
        """Inputs kept, and the share of the cache that sessions hold."""
        return sum(s.input_bytes + len(s.slots) * self._slot_bytes for s in self._sessions.values())

    def get(self, request_id: str) -> Session | None:
        """The session, marked as used now."""
        session = self._sessions.get(request_id)
        if session is not None:
            self._sessions.move_to_end(request_id)
        return session

    def put(self, session: Session) -> None:
        """Keep a session, and give up others (then its own inputs) beyond the budget."""
        replaced = self._sessions.get(session.request_id)
        if replaced is not None and replaced is not session:
            replaced.slots = ()
        self._sessions[session.request_id] = session
        self._sessions.move_to_end(session.request_id)
        while self.bytes_used > self.budget_bytes and len(self._sessions) > 1:
            _, oldest = self._sessions.popitem(last=False)
            _drop_cache(oldest)
        if self.bytes_used > self.budget_bytes:
            session.inputs, session.complete = [], False

    def drop(self, request_id: str) -> Session | None:
        """Forget a session; gives it back so that its slots can be released."""
        return self._sessions.pop(request_id, None)

    def clear(self) -> None:
        """Forget all."""
        for session in self._sessions.values():
            _drop_cache(session)
        self._sessions.clear()
        self._slot_count = 0

    def new_cache(self, slot_count: int, slot_bytes: int) -> None:
        """The model's cache was made anew with that many slots: nothing is in it."""
        self.forget_caches()
        self._slot_count, self._slot_bytes = slot_count, slot_bytes

    def forget_caches(self) -> None:
        """Every session's keys and values are gone; inputs stay."""
        for session in self._sessions.values():
            _drop_cache(session)

    def evict_others(self, keep: Session) -> bool:
        """Forget every other session; False when there was none."""
        others = [name for name, session in self._sessions.items() if session is not keep]
        for name in others:
            _drop_cache(self._sessions.pop(name))
        return bool(others)

    def take_slots(self, session: Session) -> None:
        """Give `session` a slot per row; the least recently used lose theirs when none is free."""
        if len(session.slots) == session.rows:
            return
        _drop_cache(session)
        assert session.rows <= self._slot_count, "the cache is made large enough first"
        free = self._free_slots()
        for other in self._sessions.values():
            if len(free) >= session.rows:
                break
            if other is not session and other.slots:
                free.extend(other.slots)
                _drop_cache(other)
        session.slots = tuple(sorted(free)[: session.rows])

    def _free_slots(self) -> list[int]:
        taken = {slot for s in self._sessions.values() for slot in s.slots}
        return [slot for slot in range(self._slot_count) if slot not in taken]


def _drop_cache(session: Session) -> None:
    session.slots, session.cached = (), 0
