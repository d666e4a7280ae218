"""A twin of stage 0: a real ROUTER with CURVE and an allow-list, a function for a model.

Tests change what it does while it runs and wait on what it has received. Loaded by conftest.py as
``gateway_twin``, for helpers beside tests have no import path.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import zmq
from zmq.auth.thread import ThreadAuthenticator

from lamella_contract.wire import (
    Cancel,
    Envelope,
    Events,
    Hello,
    Kind,
    PipelineStatus,
    Replay,
    Submit,
    TokenEvent,
    decode,
    encode,
)

WAIT_S = 10.0
CONFIG_HASH = bytes(range(16))


@dataclass
class Running:
    """A request inside the twin: its output so far is ``answer[: position]``."""

    owner: bytes
    submit: Submit
    answer: tuple[int, ...]
    finish: str
    position: int


@dataclass
class Behaviour:
    """What the twin does; tests replace it whole."""

    answer: Callable[[Submit], tuple[tuple[int, ...], str]]
    paused: bool = False  # statuses go on, tokens do not
    mute: bool = False  # nothing goes out at all
    ready: bool = True
    reason: str = ""
    refuse: TokenEvent | None = None  # its finish and error answer every Submit
    drop: frozenset[int] = frozenset()  # output positions whose first event is lost
    double: bool = False  # each event comes twice, and the one before once more
    batch: int = 1  # tokens per event
    cached: int = 0  # tokens of each prompt that were there
    status_every_s: float = 0.1


class Twin(threading.Thread):
    """A stage 0 without a model. ``do`` runs a function in its thread and waits for it."""

    def __init__(
        self, behaviour: Behaviour, gateway_public: bytes, keys: tuple[bytes, bytes]
    ) -> None:
        super().__init__(daemon=True)
        self.behaviour = behaviour
        self.public, self._secret = keys
        self._allowed = {gateway_public}
        self.received: list[Hello | Submit | Cancel | Replay] = []
        self.running: dict[bytes, Running] = {}
        self.incarnation = b"\x01" * 16
        self.model_hash = CONFIG_HASH
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = (
            queue.SimpleQueue()
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = ThreadAuthenticator(self._context)
        self._zap.start()
        self._zap.configure_curve_callback(domain="gateway", credentials_provider=self)
        self._owners: set[bytes] = set()
        self._dropped: set[tuple[bytes, int]] = set()
        self._last: dict[bytes, TokenEvent] = {}
        self._over = False
        self._status_s = 0.0
        self.address = "tcp://127.0.0.1:*"
        self._socket = self._bind()
        self.start()

    # -- for tests -----------------------------------------------------------------------------

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._allowed

    def set(self, **changes: Any) -> None:
        self.do(lambda: setattr(self, "behaviour", replace(self.behaviour, **changes)))

    def do(self, job: Callable[[], None]) -> None:
        done = threading.Event()
        self._jobs.put((job, done))
        assert done.wait(WAIT_S)

    def wait(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), self.received

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.received if type(message) is kind]

    def die(self) -> None:
        """Close the socket: every connection is lost and every request forgotten."""
        self.do(self._die)

    def rise(self) -> None:
        """Come back at the same address as another incarnation."""
        self.do(self._rise)

    def send(self, event: TokenEvent) -> None:
        """Say ``event`` of the one request that runs."""

        def job() -> None:
            (request,) = self.running.values()
            told = event._replace(
                request_id=request.submit.request_id, attempt=request.submit.attempt
            )
            self._send(request.owner, Events((told,)))

        self.do(job)

    def reincarnate(self) -> None:
        """Forget all and be another incarnation, on the same connection."""
        self.do(self._forget)

    def close(self) -> None:
        self._over = True
        self.join(WAIT_S)
        if not self._socket.closed:
            self._socket.close(linger=0)
        self._zap.stop()
        self._context.term()

    # -- the thread ----------------------------------------------------------------------------

    def run(self) -> None:
        while not self._over:
            while not self._jobs.empty():
                job, done = self._jobs.get()
                job()
                done.set()
            if self._socket.closed:
                threading.Event().wait(0.005)
                continue
            if self._socket.poll(2):
                self._receive()
            if not self.behaviour.mute:
                self._advance()
                self._tell_status()

    def _bind(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.public, self._secret
        socket.zap_domain = b"gateway"
        socket.router_handover = True
        socket.linger = 0
        socket.bind(self.address)
        self.address = socket.last_endpoint.decode()
        return socket

    def _die(self) -> None:
        self._socket.close(linger=0)
        self._forget()

    def _rise(self) -> None:
        self._socket = self._bind()

    def _forget(self) -> None:
        self.running.clear()
        self._owners.clear()
        self.incarnation = bytes([self.incarnation[0] + 1]) * 16

    def _send(self, owner: bytes, message: Events | PipelineStatus) -> None:
        envelope = Envelope(Kind.EVENTS, self.model_hash, self.incarnation, 1, 0)
        self._socket.send_multipart([owner, encode(envelope, message)])

    def _receive(self) -> None:
        owner, frame = self._socket.recv_multipart()
        _, message = decode(frame)
        self._owners.add(owner)
        match message:
            case Submit():
                self._submit(owner, message)
            case Cancel():
                self.running.pop(message.request_id, None)
            case Replay():
                self._replay(message)
            case Hello():
                self._status_s = 0.0
        with self._changed:
            self.received.append(message)  # type: ignore[arg-type]
            self._changed.notify_all()

    def _submit(self, owner: bytes, submit: Submit) -> None:
        if self.behaviour.refuse is not None:
            event = self.behaviour.refuse._replace(
                request_id=submit.request_id, attempt=submit.attempt
            )
            self._send(owner, Events((event,)))
            return
        answer, finish = self.behaviour.answer(submit)
        known = len(submit.ids) - submit.prompt_len
        assert submit.ids[submit.prompt_len :] == answer[:known], "resumed with other ids"
        self.running[submit.request_id] = Running(owner, submit, answer, finish, known)

    def _replay(self, replay: Replay) -> None:
        request = self.running.get(replay.request_id)
        if request is not None:
            request.position = replay.position

    def _advance(self) -> None:
        if self.behaviour.paused:
            return
        by_owner: dict[bytes, list[TokenEvent]] = {}
        for request in list(self.running.values()):
            by_owner.setdefault(request.owner, []).extend(self._next(request))
        for owner, items in by_owner.items():
            if items:
                self._send(owner, Events(tuple(items)))

    def _next(self, request: Running) -> list[TokenEvent]:
        submit, begin = request.submit, request.position
        end = min(begin + self.behaviour.batch, len(request.answer))
        if begin == end and begin < len(request.answer):
            return []
        last = end == len(request.answer)
        request.position = end
        event = TokenEvent(
            submit.request_id,
            submit.attempt,
            begin,
            request.answer[begin:end],
            request.finish if last else "",
            cached=0 if begin else self.behaviour.cached,
        )
        dropped = (submit.request_id, begin)
        if begin in self.behaviour.drop and dropped not in self._dropped:
            self._dropped.add(dropped)
            return []
        if last and not self.behaviour.drop:
            del self.running[submit.request_id]
        items = [event]
        if self.behaviour.double:
            before = self._last.get(submit.request_id)
            items = [event, event] + ([before] if before else [])
        self._last[submit.request_id] = event
        return items

    def _tell_status(self) -> None:
        now_s = time.monotonic()
        if now_s - self._status_s < self.behaviour.status_every_s:
            return
        self._status_s = now_s
        status = PipelineStatus(
            ready=self.behaviour.ready,
            reason=self.behaviour.reason,
            kv_tokens=1000,
            kv_tokens_free=900,
            queued_tokens=0,
            running=len(self.running),
            waiting=0,
        )
        for owner in self._owners:
            self._send(owner, status)
