"""Carries out the steps of a schedule on a world: requests, and every kind of harm.

A step's numbers are taken modulo whatever there is. Each fault adds to `World.hurt_s` the longest
time that it may keep a request from its next token, so that errors can be judged.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial

from lamella_contract.errors import WireError
from lamella_contract.wire import Sampling, decode_envelope
from lamella_worker.head import HeadLoop

from .engine import EOS, prompt_of
from .gateway_process import GatewayProcess, Record
from .schedule import DURATIONS_S, RESTARTS_S, Step
from .sockets import Connection, Pipe, Pull
from .world import MAX_MODEL_LEN, Place, World

log = logging.getLogger(__name__)

RECOVERY_S = 8.0  # at most, from the end of a fault to the next token
MISSED_S = 6.0
"""A lost frame is missed within two seconds on a data link, after five on a gateway's."""
GATEWAY_FREED_S = 5.0 + 0.25 + 0.1


class Faults:
    """Does to a world what steps say."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._do: dict[str, Callable[[int, int, int], bool]] = {
            "submit": self._submit,
            "burst": self._burst,
            "hang_up": self._hang_up,
            "kill": self._kill,
            "power_off": self._power_off,
            "stop": self._stop,
            "freeze": self._freeze,
            "wedge": self._wedge,
            "slow_step": self._slow_step,
            "exhaust": self._exhaust,
            "cut": self._cut,
            "reset": self._reset,
            "echo": self._echo,
            "delay": self._delay,
            "gateway_kill": self._gateway_kill,
            "gateway_stop": self._gateway_stop,
            "drain": self._drain,
            "dns": self._dns,
        }
        for trick in ("drop", "double", "swap", "garble"):
            self._do[trick] = partial(self._trick, trick)
        self._undo: list[Callable[[], None]] = []

    def step(self, step: Step) -> None:
        """Let one step happen now."""
        _, kind, a, b, c = step
        log.info("step", extra={"step": step, "place": self._place(a).pod})
        if self._do[kind](a, b, c):
            self.world.counts[kind] += 1

    def end(self) -> None:
        """No more harm: what was cut is healed, what was stopped goes on."""
        for undo in self._undo:
            undo()
        for connection in self.world.net.connections.values():
            connection.up.tricks.clear()
            connection.down.tricks.clear()

    def _later(self, after_s: float, undo: Callable[[], None]) -> None:
        """Undo something after a while, or when all faults end; once."""
        done: list[bool] = []

        def once() -> None:
            if not done:
                done.append(True)
                undo()

        self._undo.append(once)
        self.world.kernel.after(after_s, once)

    def _hurt(self, seconds: float) -> None:
        self.world.hurt_s += seconds + RECOVERY_S

    def _place(self, number: int) -> Place:
        places = self.world.places
        return places[number % len(places)]

    def _gateway(self, number: int) -> GatewayProcess:
        gateways = self.world.gateways
        return gateways[number % len(gateways)]

    # -- clients -------------------------------------------------------------------------------

    def _submit(self, a: int, b: int, c: int) -> bool:
        self.submit(self._gateway(a), b)
        return True

    def submit(self, gateway: GatewayProcess, number: int) -> Record:
        """A request that `number` makes up, at a gateway."""
        world = self.world
        prompt, sampling, pause_s = request_of(number)
        wanted, finish = world.oracle.answer(prompt, sampling)
        now_s = world.kernel.now_s
        record = Record(
            len(world.records) + 1, prompt, sampling, wanted, finish, now_s, pause_s, last_s=now_s
        )
        world.records.append(record)
        gateway.submit(record)
        return record

    def _burst(self, a: int, b: int, c: int) -> bool:
        for number in range(3 + c % 4):
            self.submit(self._gateway(a), b + number)
        return True

    def _hang_up(self, a: int, b: int, c: int) -> bool:
        live = [(g, r) for g in self.world.gateways for r in g.records if not r.end]
        if live:
            gateway, record = live[b % len(live)]
            gateway.hang_up(record)
        return bool(live)

    # -- processes -----------------------------------------------------------------------------

    def _kill(self, a: int, b: int, c: int) -> bool:
        place, after_s = self._place(a), RESTARTS_S[b % len(RESTARTS_S)]
        if place.run is None or not place.run.process.alive or place.frozen:
            return False
        self._hurt(after_s)
        place.run.kill()
        self.world.fork_again(place, after_s)
        return True

    def _power_off(self, a: int, b: int, c: int) -> bool:
        place, after_s = self._place(a), RESTARTS_S[b % len(RESTARTS_S)]
        if place.run is None or not place.run.process.alive or place.coming:
            return False
        self._hurt(after_s + 10.0)  # nobody is told that it is gone
        place.run.kill(silently=True)
        self.world.replace_pod(place, after_s)
        return True

    def _stop(self, a: int, b: int, c: int) -> bool:
        return self._halt(self._place(a), DURATIONS_S[b % len(DURATIONS_S)], pod=False)

    def _freeze(self, a: int, b: int, c: int) -> bool:
        return self._halt(self._place(a), DURATIONS_S[b % len(DURATIONS_S)], pod=True)

    def _halt(self, place: Place, seconds: float, *, pod: bool) -> bool:
        run, kernel = place.run, self.world.kernel
        if run is None or not place.is_up or place.coming:
            return False
        self._hurt(seconds)
        run.stop()
        place.frozen = pod
        place.trouble(kernel.now_s + seconds)

        def go_on() -> None:
            if run is place.run:
                place.frozen = False
                place.trouble(kernel.now_s)
            run.pulse.beat_s = kernel.now_s  # the parent slept as long
            run.go_on()

        self._later(seconds, go_on)
        return True

    def _wedge(self, a: int, b: int, c: int) -> bool:
        place = self._place(a)
        if place.run is None or place.run.engine is None or not place.is_up:
            return False
        self._hurt(16.0)
        place.run.engine.slow_s.append(1e6)
        place.trouble(float("inf"))
        run = place.run

        def calm() -> None:
            # while nothing is asked of it the fault may not come up at all
            if run is place.run and run.engine is not None:
                run.engine.slow_s.clear()
            place.trouble_s = self.world.kernel.now_s + 20.0

        self._later(20.0, calm)
        return True

    def _slow_step(self, a: int, b: int, c: int) -> bool:
        place, seconds = self._place(a), DURATIONS_S[b % len(DURATIONS_S)]
        if place.run is None or place.run.engine is None:
            return False
        self._hurt(seconds)
        place.run.engine.slow_s.append(seconds)
        return True

    def _exhaust(self, a: int, b: int, c: int) -> bool:
        place = self._place(a)
        if place.run is None or place.run.engine is None:
            return False
        place.run.engine.exhausted += 1 + b % 2
        self._hurt(0.0)
        return True

    def _drain(self, a: int, b: int, c: int) -> bool:
        head = self.world.pipelines[a % len(self.world.pipelines)][0]
        run = head.run
        if run is None or not head.is_up or not isinstance(run.loop, HeadLoop) or head.coming:
            return False
        self._hurt(DURATIONS_S[b % len(DURATIONS_S)])
        with run.compute_thread.making_turn():
            run.loop.drain(DURATIONS_S[b % len(DURATIONS_S)])
        run.compute_thread.wake()
        return True

    # -- the network ---------------------------------------------------------------------------

    def _hosts(self, a: int, b: int) -> tuple[str, str]:
        hosts = [place.host for place in self.world.places]
        hosts += [gateway.process.host for gateway in self.world.gateways]
        first = a % len(hosts)
        second = (first + 1 + b % (len(hosts) - 1)) % len(hosts)
        return hosts[first], hosts[second]

    def _cut(self, a: int, b: int, c: int) -> bool:
        net, world = self.world.net, self.world
        first, second = self._hosts(a, b)
        seconds = DURATIONS_S[c % len(DURATIONS_S)]
        ways = [(first, second), (second, first)] if c // 16 % 2 else [(first, second)]
        self._hurt(seconds + 6.0)
        for place in world.places:
            if place.host in (first, second):
                place.trouble(world.kernel.now_s + seconds + 6.0)
        for way in ways:
            net.cut(*way)
            self._later(seconds, partial(net.heal, *way))
        return True

    def _delay(self, a: int, b: int, c: int) -> bool:
        net, way = self.world.net, self._hosts(a, b)
        seconds = DURATIONS_S[c % len(DURATIONS_S)]
        self._hurt(seconds)
        net.slow_s[way] = (0.002, 0.02, 0.1, 0.4)[c // 16 % 4]
        self._later(seconds, lambda: net.slow_s.pop(way, None) and None)
        return True

    def _connection(self, number: int) -> Connection | None:
        connections = list(self.world.net.connections.values())
        return connections[number % len(connections)] if connections else None

    def _reset(self, a: int, b: int, c: int) -> bool:
        connection = self._connection(a)
        if connection is None or connection.half_dead:
            return False
        self._hurt(MISSED_S)
        connection.break_off()
        return True

    def _trick(self, trick: str, a: int, b: int, c: int) -> bool:
        """On data links mostly: there a frame is worth most."""
        net = self.world.net
        data = [x for x in net.connections.values() if isinstance(x.listener, Pull)]
        connection = data[a % len(data)] if data and b % 4 else self._connection(a)
        if connection is None:
            return False
        is_data = isinstance(connection.listener, Pull)
        pipe: Pipe = connection.up if is_data or c % 2 else connection.down
        pipe.tricks.append(trick)
        self._hurt(MISSED_S)
        return True

    def _echo(self, a: int, b: int, c: int) -> bool:
        """A frame of before comes again, and its number is the very next: epochs must tell."""
        pulls = [
            listener
            for listener in self.world.net.listeners.values()
            if isinstance(listener, Pull) and listener.heard and not listener.process.stopped
        ]
        if not pulls:
            return False
        pull = pulls[a % len(pulls)]
        heard = [(decode_envelope(parts[0]), parts) for parts in pull.heard if is_whole(parts)]
        if not heard:
            return False
        last = heard[-1][0]
        older = [p for e, p in heard if e.sequence == last.sequence + 1 and e.epoch < last.epoch]
        pull.again(older[b % len(older)] if older else heard[b % len(heard)][1])
        self._hurt(0.0)
        return True

    def _dns(self, a: int, b: int, c: int) -> bool:
        world, seconds = self.world, DURATIONS_S[b % len(DURATIONS_S)]
        if world.dns_is_down:
            return False
        world.dns_is_down = True
        self._hurt(seconds)
        for place in world.places:
            place.trouble(world.kernel.now_s + seconds)

        def up() -> None:
            world.dns_is_down = False

        self._later(seconds, up)
        return True

    # -- gateways ------------------------------------------------------------------------------

    def _gateway_kill(self, a: int, b: int, c: int) -> bool:
        world, gateway = self.world, self._gateway(a)
        gateway.kill(silently=bool(b % 2))
        world.start_gateway(instead_of=gateway)
        world.kernel.after(GATEWAY_FREED_S, partial(self._check_freed, gateway.owner))
        return True

    def _check_freed(self, owner: bytes) -> None:
        for places in self.world.pipelines:
            head, now_s = places[0], self.world.kernel.now_s
            run = head.run
            if run is None or run.scheduler is None or not head.is_up:
                continue
            if now_s - head.trouble_s < GATEWAY_FREED_S or run.compute_thread.local_s > now_s:
                continue
            left = run.scheduler._book.of_owner(owner)
            assert not left, f"{len(left)} requests of a dead gateway are still there"

    def _gateway_stop(self, a: int, b: int, c: int) -> bool:
        gateway, seconds = self._gateway(a), DURATIONS_S[b % len(DURATIONS_S)]
        if gateway.process.stopped:
            return False
        self._hurt(seconds + 5.0)
        gateway.stop()
        self._later(seconds, gateway.go_on)
        return True


def is_whole(parts: list[bytes]) -> bool:
    """Whether a frame was not garbled."""
    try:
        decode_envelope(parts[0])
    except WireError:
        return False
    return True


def request_of(number: int) -> tuple[tuple[int, ...], Sampling, float]:
    """(prompt, sampling, seconds between two looks of its client); many share prefixes."""
    draw = random.Random(number % 997)
    length = draw.choice((1, 2, 3, 5, 8, 13, 21, 30))
    prompt = prompt_of(number % 3, length)
    most = draw.choice((1, 2, 4, 7, 11, 17))
    kind = draw.randrange(10)
    named: dict[str, object] = {"temperature": 0.0}
    if kind >= 6:
        named = {"temperature": 0.8, "seed": number, "top_k": 9}
    if kind in (5, 9):
        named |= {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}
    if kind == 4:
        named |= {"stop_token_ids": (5, 6, 7)}
    sampling = Sampling(
        max_tokens=min(most, MAX_MODEL_LEN - length),
        ignore_eos=draw.random() < 0.5,
        **named,  # type: ignore[arg-type]
    )
    assert EOS not in prompt
    return prompt, sampling, draw.choice((0.0, 0.0, 0.0, 0.0, 0.5))
