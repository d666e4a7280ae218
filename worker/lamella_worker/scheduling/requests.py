"""The requests that stage 0 answers for: each one's ids, where it stands, and what was told of it.

Knows no step, no slot numbering and no socket. In the flow: `scheduler` looks
requests up here by (owner, request id) when a gateway speaks, appends the tokens that come back,
and gets the events to send. A finished request is kept for a while, so that a gateway that missed
its last event can ask again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from lamella_contract.errors import (
    EngineError,
    InvalidRequest,
    PromptTooLong,
    StageLost,
    from_kind,
)
from lamella_contract.wire import NO_SALT, Sampling, Submit, TokenEvent
from lamella_worker.scheduling.blocks import Lease
from lamella_worker.scheduling.limits import SchedulerLimits

NO_SLOT = -1

_FINISHED_MOST = 4096
_FINISHED_TOKENS = 1 << 20  # output ids kept for replays, about 40 MB

Key: TypeAlias = tuple[bytes, bytes]
"""(owner, request id): ids of two gateways may collide."""


class OwnedEvent(NamedTuple):
    """An event and the gateway (its socket's identity) that it is for."""

    owner: bytes
    event: TokenEvent


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request from submission to its last event.

    ``ids`` is the prompt, then the output; ``arrival`` orders requests for every decision.
    ``computed`` positions were given to steps (their KV exists once those steps ran); below
    ``given`` a row is computed again because an epoch ended or a step failed, the latter ``tries``
    times since the last token. ``slot`` is `NO_SLOT` while it waits; (slot, generation) names one
    tenure of a slot, of which all stages have computed ``landed`` positions at least. ``names`` are
    those of its full blocks, as far as they were asked for; the first ``named`` blocks of its lease
    can be found by them. ``cached`` tokens of its prompt were there when it first got a slot, -1
    before.
    """

    owner: bytes
    request_id: bytes
    attempt: int
    prompt_len: int
    ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    last_len: int  # the answer ends when there are this many ids
    arrival: int
    slot: int = NO_SLOT
    generation: int = 0
    lease: Lease | None = None
    computed: int = 0
    given: int = 0
    tries: int = 0
    salt: bytes = NO_SALT
    landed: int = 0
    names: list[bytes] = field(default_factory=list)
    named: int = 0
    cached: int = -1
    finish: str = ""
    error: str = ""
    error_kind: str = ""

    @property
    def key(self) -> Key:
        return self.owner, self.request_id

    @property
    def output_len(self) -> int:
        return len(self.ids) - self.prompt_len

    @property
    def has_ended(self) -> bool:
        """Whether the ids it came with hold a whole answer."""
        stopped = len(self.ids) >= self.last_len or self.ids[-1] in self.stop_ids
        return self.output_len > 0 and stopped

    def accept(self, new: Sequence[int]) -> OwnedEvent:
        """Append new tokens up to the first that ends the answer; the event that says so.

        A token that stops the answer is part of its ids; those after it are dropped.
        """
        self.landed = len(self.ids)
        position = self.landed - self.prompt_len
        taken = self.tries = 0
        for token in new:
            self.ids.append(token)
            taken += 1
            if token in self.stop_ids:
                self.finish = "stop"
                break
            if len(self.ids) >= self.last_len:
                self.finish = "length"
                break
        event = TokenEvent(self.request_id, self.attempt, position, tuple(new[:taken]), self.finish)
        if not position:
            event = event._replace(cached=max(0, self.cached))
        return OwnedEvent(self.owner, event)

    def fail(self, error: str, kind: str) -> OwnedEvent:
        """End the answer with an error; the event that says so."""
        self.finish, self.error, self.error_kind = "error", error, kind
        return self.retell(self.output_len)

    def fail_as(self, error: str) -> OwnedEvent:
        """End the answer with a stage's error, which begins with its kind ("out_of_memory: ")."""
        kind, _, message = error.partition(": ")
        if from_kind(kind, message).kind != kind:
            kind, message = EngineError.kind, error
        return self.fail(message, kind)

    def retell(self, position: int) -> OwnedEvent:
        """An event that says again all there is from output ``position`` on."""
        known = tuple(self.ids[self.prompt_len + position :])
        event = TokenEvent(
            self.request_id,
            self.attempt,
            position,
            known,
            self.finish,
            self.error,
            self.error_kind,
            cached=0 if position else max(0, self.cached),
        )
        return OwnedEvent(self.owner, event)


class RequestBook:
    """Requests by key and by owner; the finished ones until they are too many."""

    def __init__(self) -> None:
        self._live: dict[Key, LiveRequest] = {}
        self._by_owner: dict[bytes, dict[bytes, LiveRequest]] = {}
        self._finished: OrderedDict[Key, LiveRequest] = OrderedDict()
        self._finished_tokens = 0

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveRequest]:
        """Live requests, the order is that of submission."""
        return iter(self._live.values())

    def get(self, key: Key) -> LiveRequest | None:
        """The live request of this key."""
        return self._live.get(key)

    def newest_attempt(self, key: Key) -> int:
        """The highest attempt known of a request, live or lately finished; -1 when unknown."""
        known = self._live.get(key) or self._finished.get(key)
        return -1 if known is None else known.attempt

    def of_owner(self, owner: bytes) -> list[LiveRequest]:
        return list(self._by_owner.get(owner, {}).values())

    def add(self, request: LiveRequest) -> None:
        self._forget(request.key)
        self._live[request.key] = request
        self._by_owner.setdefault(request.owner, {})[request.request_id] = request

    def remove(self, request: LiveRequest) -> None:
        """Forget a live request; a finished one stays known for replays for a while."""
        del self._live[request.key]
        mine = self._by_owner[request.owner]
        del mine[request.request_id]
        if not mine:
            del self._by_owner[request.owner]
        if not request.finish:
            return
        self._finished[request.key] = request
        self._finished_tokens += request.output_len
        while len(self._finished) > 1 and (
            len(self._finished) > _FINISHED_MOST or self._finished_tokens > _FINISHED_TOKENS
        ):
            self._forget(next(iter(self._finished)))

    def _forget(self, key: Key) -> None:
        old = self._finished.pop(key, None)
        if old is not None:
            self._finished_tokens -= old.output_len

    def replay(self, key: Key, attempt: int, position: int) -> list[OwnedEvent]:
        """What is known of an attempt from output ``position`` on, as at most one event.

        An attempt that nobody knows gets an error event (the gateway would wait for ever); an
        older attempt than the known one gets nothing, as the gateway has moved on.
        """
        known = self._live.get(key) or self._finished.get(key)
        if known is None or known.attempt < attempt:
            owner, request_id = key
            reason = "the scheduler does not know this request"
            lost = TokenEvent(request_id, attempt, position, (), "error", reason, StageLost.kind)
            return [OwnedEvent(owner, lost)]
        if known.attempt > attempt or position > known.output_len:
            return []
        if position == known.output_len and not known.finish:
            return []
        return [known.retell(position)]


def check_submit(request: Submit, limits: SchedulerLimits) -> None:
    """Raise `InvalidRequest` or `PromptTooLong` for what can never be served."""
    ids, prompt_len = request.ids, request.prompt_len
    if not 0 < prompt_len <= len(ids):
        raise InvalidRequest(f"prompt_len: got {prompt_len} of {len(ids)} ids, want 1 or more")
    if request.sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens: got {request.sampling.max_tokens}, want 1 or more")
    vocabulary = limits.vocab_size
    if min(ids) < 0 or (vocabulary and max(ids) >= vocabulary):
        bad = min(ids) if min(ids) < 0 else max(ids)
        raise InvalidRequest(f"ids: got token {bad}, want one in [0, {vocabulary or 'inf'})")
    if prompt_len >= limits.longest or len(ids) > limits.longest:
        raise PromptTooLong(
            f"prompt: got {max(prompt_len, len(ids))} tokens, want less than {limits.longest} "
            f"(max_model_len {limits.max_model_len}, KV cache {limits.kv_tokens} tokens)"
        )


def live_request(
    submit: Submit, owner: bytes, *, eos: frozenset[int], longest: int, arrival: int
) -> LiveRequest:
    """The record of a submitted request that is known to be valid; ``longest`` ids at most."""
    sampling = submit.sampling
    stop_ids = frozenset() if sampling.ignore_eos else eos
    if sampling.stop_token_ids:
        stop_ids = stop_ids.union(sampling.stop_token_ids)
    return LiveRequest(
        owner=owner,
        request_id=submit.request_id,
        attempt=submit.attempt,
        prompt_len=submit.prompt_len,
        ids=list(submit.ids),
        sampling=sampling,
        stop_ids=stop_ids,
        last_len=min(submit.prompt_len + sampling.max_tokens, longest),
        arrival=arrival,
        salt=submit.salt,
    )
