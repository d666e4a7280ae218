"""One run of a gateway: the real dispatcher, journal, balance, links and look-ups, on an event loop
of simulated time; and its clients, who read tokens, are slow, or hang up."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import zmq

from lamella_contract.wire import Sampling
from lamella_gateway.discover import Discovery
from lamella_gateway.dispatch import Dispatcher
from lamella_gateway.errors import ApiError
from lamella_gateway.link import Link, LinkNews
from lamella_gateway.link_keys import LinkKeys
from lamella_gateway.metrics import Metrics
from lamella_gateway.ticket import Ticket

from .engine import is_prefix
from .kernel import Process
from .sockets import DEFAULT_HIGH_WATER, NOTHING, Dialler, Net, Socket

METRICS = Metrics()  # of all gateways of all worlds: nobody looks at them, and to make them is slow


class Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as the gateway uses."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._kernel = process.kernel
        self.readers: dict[int, Callable[[], None]] = {}

    def time(self) -> float:
        return self._kernel.now_s

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._kernel.after(0.0, partial(self._process.carry_out, partial(self.run, handle)))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._kernel.at(when, partial(self._process.carry_out, partial(self.run, handle)))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return None

    def run(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            asyncio._set_running_loop(self)
            try:  # as `Inside`
                handle._run()  # type: ignore[attr-defined]
            finally:
                asyncio._set_running_loop(None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"] if "exception" in context else AssertionError(context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **named: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a dead gateway's
        return task

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        callback = self.readers.get(fd)
        if callback is not None:
            self.call_soon(callback)


class Inside:
    """While code of a loop runs, it is the running loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        asyncio._set_running_loop(self._loop)

    def __exit__(self, *error: object) -> None:
        asyncio._set_running_loop(None)


class Monitor(Socket):
    """Tells what happens to a dealer's connection."""

    def _takes(self) -> bool:
        return False

    def tell(self, event: int) -> None:
        self._came([struct.pack("=hi", event, 0), b""])

    def recv_multipart(self, flags: int = 0) -> list[bytes]:
        if not self.inbox:
            raise NOTHING.with_traceback(None)
        return self.inbox.popleft()


class Dealer(Dialler):
    """A dialler that is set up by options."""

    loop: Loop

    def setsockopt(self, option: int, value: Any) -> None:
        if option == zmq.IDENTITY:
            self.identity = value
        elif option == zmq.SNDHWM:
            self.high_water = value
        elif option == zmq.TCP_MAXRT:
            self.impatient = True

    def get_monitor_socket(self, events: int) -> Monitor:
        monitor = Monitor(self.net, self.process)
        monitor.on_readable = lambda: self.loop.readable(id(monitor))
        self.on_readable = lambda: self.loop.readable(id(self))
        self.on_event = monitor.tell
        return monitor

    def disable_monitor(self) -> None:
        self.on_event = lambda event: None


class Context:
    """Makes sockets for one gateway."""

    def __init__(self, net: Net, process: Process, loop: Loop) -> None:
        self._net, self._process, self._loop = net, process, loop

    def socket(self, kind: int) -> Dealer:
        assert kind == zmq.DEALER
        socket = Dealer(self._net, self._process, role="gateway-0", wanted_role="stage-0")
        socket.loop = self._loop
        socket.high_water = DEFAULT_HIGH_WATER
        return socket


@dataclass(eq=False)
class Record:
    """What one client asked for and has got. `end` "" while it waits."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    wanted: tuple[int, ...]
    wanted_finish: str
    opened_s: float
    pause_s: float = 0.0  # a slow client reads only so often
    tokens: list[int] = field(default_factory=list)
    end: str = ""  # "stop", "length", "error", "gone" or "gateway"
    error: str = ""
    status: int = 0
    last_s: float = 0.0
    longest_silence_s: float = 0.0
    ticket: Ticket | None = None

    def take(self, ids: list[int], now_s: float) -> None:
        self.tokens += ids
        self.longest_silence_s = max(self.longest_silence_s, now_s - self.last_s)
        self.last_s = now_s
        assert is_prefix(self.tokens, self.wanted), (
            f"request {self.number}: got {self.tokens}, want {list(self.wanted)}"
        )

    def finished(self, finish: str) -> None:
        assert not self.end, f"request {self.number} ends twice"
        self.end = finish
        assert tuple(self.tokens) == self.wanted, (
            f"request {self.number}: ended with {self.tokens}, want {list(self.wanted)}"
        )
        assert finish == self.wanted_finish, (finish, self.wanted_finish)


class GatewayProcess:
    """`resolve` looks up where the stage 0s are."""

    def __init__(
        self,
        net: Net,
        *,
        name: str,
        host: str,
        model_hash: bytes,
        eos: tuple[int, ...],
        deadline_s: float,
        max_queued_tokens: int,
        resolve: Callable[[], tuple[str, ...]],
    ) -> None:
        self.net = net
        self.kernel = net.kernel
        self.name = name
        self.owner = f"gateway-0/{name}".encode()
        self.process = Process(net.kernel, name, host)
        self.loop = Loop(self.process)
        self._coroutines: list[Any] = []
        self._clients: dict[Record, Ticket] = {}
        self.records: list[Record] = []
        context: Any = Context(net, self.process, self.loop)
        make_link = partial(
            Link,
            identity=self.owner.decode(),
            model_hash=model_hash,
            keys=LinkKeys(b"", b"", b""),
            context=context,
            loop=self.loop,
        )

        def make(address: str, news: LinkNews) -> Link:
            return make_link(address, news=news)

        async def look_up(host: str, port: int) -> tuple[str, ...]:
            await asyncio.sleep(0.01)
            return resolve()

        with Inside(self.loop):
            self.dispatcher = self.make_dispatcher(
                make,
                request_deadline_s=deadline_s,
                max_queued_tokens=max_queued_tokens,
                eos_token_ids=eos,
                metrics=METRICS,
            )
            self._start(Discovery("heads:5700", self.dispatcher.links, look_up).run())

    def make_dispatcher(self, *parts: Any, **named: Any) -> Dispatcher:
        return Dispatcher(*parts, **named)

    def _start(self, coroutine: Any) -> None:
        self._coroutines.append(coroutine)
        self.loop.create_task(coroutine).add_done_callback(_raise_what_it_raised)

    def submit(self, record: Record) -> None:
        """A client asks."""
        self.records.append(record)
        self.process.carry_out(lambda: self._begin(record))

    def _begin(self, record: Record) -> None:
        with Inside(self.loop):
            self._start(self._serve(record))

    async def _serve(self, record: Record) -> None:
        dispatcher, now = self.dispatcher, self.loop.time
        record.last_s = now()
        if record.end:
            return  # it has hung up before it was read
        try:
            request_id = record.number.to_bytes(16, "big")
            record.ticket = ticket = dispatcher.open(request_id, record.prompt, record.sampling)
        except ApiError as error:
            self._failed(record, error)
            return
        try:
            while True:
                ids, finish = await ticket.news()
                if ticket.gone:
                    return
                record.take(list(ids), now())
                if finish:
                    record.finished(finish)
                    return
                if record.pause_s:
                    await asyncio.sleep(record.pause_s)
        except ApiError as error:
            self._failed(record, error)
        finally:
            if self.process.alive:
                dispatcher.close(ticket)

    def _failed(self, record: Record, error: ApiError) -> None:
        assert not record.end, f"request {record.number} ends twice"
        record.end, record.error, record.status = "error", str(error), error.status

    def hang_up(self, record: Record) -> None:
        """A client vanishes."""
        if record.end:
            return
        record.end = "gone"

        def gone() -> None:
            if record.ticket is not None:
                with Inside(self.loop):
                    self.dispatcher.hung_up(record.ticket)

        self.process.carry_out(gone)

    def kill(self, *, silently: bool = False) -> None:
        """SIGKILL; its clients see their connections end."""
        self.process.die()
        self.net.died(self.process, silently=silently)
        for coroutine in self._coroutines:
            coroutine.close()
        for record in self.records:
            record.end = record.end or "gateway"

    def stop(self) -> None:
        self.process.stop()

    def go_on(self) -> None:
        self.process.go_on()
        self.net.flow()


def _raise_what_it_raised(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raise error
