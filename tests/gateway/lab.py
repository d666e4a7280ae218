"""The lab: twins of stage 0 and gateways on free ports, made for a test and ended after it.

Loaded by conftest.py as ``gateway_lab``, for helpers beside tests have no import path.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import zmq
from gateway_twin import CONFIG_HASH, WAIT_S, Behaviour, Twin
from tokenizers import Tokenizer

from lamella_contract.config import GatewayConfig
from lamella_contract.wire import Submit
from lamella_gateway.app import create_app
from lamella_gateway.chunks import Protocol
from lamella_gateway.discover import Resolve, look_up
from lamella_gateway.service import Gateway
from lamella_gateway.serving import listen


@dataclass
class Served:
    """A gateway that listens, in a thread of this process."""

    gateway: Gateway
    url: str
    config: GatewayConfig
    loop: asyncio.AbstractEventLoop
    server: uvicorn.Server
    thread: threading.Thread = field(repr=False)

    def live(self) -> int:
        return len(self.gateway.dispatcher)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on the gateway's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(WAIT_S)


@dataclass
class Names:
    """A twin of a name service: what it says, or the error that it is down with."""

    found: tuple[str, ...] = ()
    down: OSError | None = None
    asked: int = 0

    def say(self, *twins: Twin) -> None:
        self.found = tuple(twin.address for twin in twins)

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        assert (host, port) == ("toy-heads", 5700)
        self.asked += 1
        if self.down is not None:
            raise self.down
        return self.found


@dataclass
class Lab:
    """Makes twins and gateways, and ends what it made."""

    tmp: Path
    tokenizer: Tokenizer
    tokenizer_dir: Path
    keys: tuple[bytes, bytes] = field(default_factory=zmq.curve_keypair)
    stage_keys: tuple[bytes, bytes] = field(default_factory=zmq.curve_keypair)
    twins: list[Twin] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def says(self, text: str) -> Callable[[Submit], tuple[tuple[int, ...], str]]:
        """A model that answers ``text`` and its end token, cut at max_tokens."""

        def answer(submit: Submit) -> tuple[tuple[int, ...], str]:
            eos = self.tokenizer.token_to_id("<|im_end|>")
            ids = (*self.ids(text), eos)
            limit = submit.sampling.max_tokens
            return (ids, "stop") if len(ids) <= limit else (ids[:limit], "length")

        return answer

    def twin(self, text: str = "hello world, how are you?", **behaviour: Any) -> Twin:
        made = Twin(Behaviour(self.says(text), **behaviour), self.keys[0], self.stage_keys)
        self.twins.append(made)
        return made

    def config(self, *twins: Twin, **changes: Any) -> GatewayConfig:
        key_file = self.tmp / "gateway-0.key.json"
        public, secret = (key.decode() for key in self.keys)
        key_file.write_text(json.dumps({"public": public, "secret": secret}))
        told: dict[str, Any] = {
            "name": "gateway-0",
            "served_name": "toy",
            "http_host": "127.0.0.1",
            "http_port": 0,
            "replicas": tuple(twin.address for twin in twins) or ("tcp://127.0.0.1:9",),
            "tokenizer_path": str(self.tokenizer_dir),
            "key_file": str(key_file),
            "peer_keys": (("stage-0", self.stage_keys[0].decode()),),
            "model_hash": CONFIG_HASH.hex(),
            "max_model_len": 512,
            "max_queued_tokens": 1000,
            "vocab_size": self.tokenizer.get_vocab_size(),
            "eos_token_ids": (self.tokenizer.token_to_id("<|im_end|>"),),
            "request_deadline_s": 20.0,
            "max_body_bytes": 1_000_000,
        }
        return GatewayConfig(**told | changes)

    def serve(self, *twins: Twin, wait: bool = True, loaded: bool = True, **changes: Any) -> Served:
        """A gateway before ``twins``; with ``wait`` it is ready when this returns, with ``loaded``
        its tokenizer is there."""
        served = self._start(self.config(*twins, **changes), look_up, loaded=loaded)
        if wait:
            until(lambda: served.call(served.gateway.not_ready_reason) == "")
        return served

    def discovers(self, names: Names, **changes: Any) -> Served:
        """A gateway that finds its pipelines by what ``names`` says; its tokenizer is loaded."""
        config = self.config(**changes, replicas=(), discover="toy-heads:5700")
        return self._start(config, names.resolve, loaded=True)

    def _start(self, config: GatewayConfig, resolve: Resolve, *, loaded: bool) -> Served:
        started: queue.SimpleQueue[Served] = queue.SimpleQueue()
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(config, started, resolve)), daemon=True
        )
        thread.start()
        served = started.get(timeout=WAIT_S)
        served.thread = thread
        self.served.append(served)
        if loaded:
            until(lambda: served.call(served.gateway.codec.done), 60.0)  # imports transformers
        return served

    def close(self) -> None:
        for served in self.served:
            served.call(lambda served=served: setattr(served.server, "should_exit", True))
            served.thread.join(WAIT_S)
            assert not served.thread.is_alive()
        for twin in self.twins:
            twin.close()


async def _serve(
    config: GatewayConfig, started: queue.SimpleQueue[Served], resolve: Resolve
) -> None:
    gateway = Gateway(config, resolve=resolve)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(gateway),
            port=0,
            lifespan="off",
            ws="none",
            http=Protocol,
            log_config=None,
            access_log=False,
        )
    )
    server.config.load()
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    started.put(
        Served(gateway, url, config, asyncio.get_running_loop(), server, threading.current_thread())
    )
    try:
        await server.serve(sockets=[listener])
    finally:
        gateway.close()


def until(condition: Callable[[], object], limit_s: float = WAIT_S) -> None:
    """Ask again until ``condition`` holds: for states that nobody tells of."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.01)
