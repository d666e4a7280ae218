"""One gateway as a process: its configuration, its port, its failures, its end.

Knows uvicorn and the event loop; no requests. Takes the port first, so that a port in use is known
at once; then serves while the tokenizer loads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop
from setproctitle import setproctitle

from lamella_checkpoint.notorch import hide_torch
from lamella_contract import listening, logs, names
from lamella_contract.config import GatewayConfig
from lamella_contract.errors import InvalidConfig, LamellaError

from .leaving import Leaving

if TYPE_CHECKING:
    from .text import TextCodec

EXIT_FAILED, EXIT_CONFIG, EXIT_PORT = 1, 2, 3
BACKLOG = 2048
KEEP_ALIVE_S = 75  # an idle HTTP connection is kept for so long, as by other servers

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours also drain the dispatcher."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run() -> int:
    """Serve as the arguments and the environment say; the exit code."""
    arguments = _arguments()
    where = arguments.config or names.ENV_GATEWAY_CONFIG
    try:
        config = GatewayConfig.from_json(_document(arguments.config))
    except (OSError, UnicodeDecodeError, InvalidConfig) as reason:
        return _fail(EXIT_CONFIG, InvalidConfig(f"{where}: {reason}"))
    logs.configure(config.name)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # says at INFO what we say
    setproctitle(names.gateway_title(config.served_name))
    try:
        listener = listen(config.http_host, config.http_port)
    except OSError as reason:
        where = f"{config.http_host}:{config.http_port}"
        if reason.errno == errno.EADDRINUSE:
            taken = f"port in use: another process listens on {where}"
            return _fail(EXIT_PORT, InvalidConfig(taken))
        return _fail(EXIT_CONFIG, InvalidConfig(f"cannot listen on {where}: {reason}"))
    hide_torch()  # tokenizers need none
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # the hub's client would look up what it is run by: a request, and a file in HOME
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, listener, parent_pid=arguments.parent_pid))


async def serve(config: GatewayConfig, listener: socket.socket, *, parent_pid: int = 0) -> int:
    """Serve on ``listener`` until a signal, the parent's death or a failure; the exit code."""
    # imported here, for the port must be known to be free before anything slow
    from .app import create_app
    from .chunks import Protocol
    from .service import Gateway

    try:
        gateway = Gateway(config)
    except LamellaError as reason:
        listener.close()
        return _fail(EXIT_CONFIG, reason)
    server = Server(
        uvicorn.Config(
            create_app(gateway),
            lifespan="off",
            ws="none",
            http=Protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
    loop = asyncio.get_running_loop()
    leaving = Leaving(gateway, server, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leaving.begin)
    gateway.codec.add_done_callback(partial(_on_codec, leaving.at_once))
    watch = loop.create_task(_watch_parent(parent_pid, leaving.at_once))
    host, port = listener.getsockname()[:2]
    _log.info("listening", extra={"url": f"http://{host}:{port}", "model": config.served_name})
    try:
        await server.serve(sockets=[listener])
    finally:
        watch.cancel()
        failure = _failure(gateway.codec)
        gateway.close()
    if failure is None:
        return 0
    return _fail(EXIT_CONFIG if isinstance(failure, LamellaError) else EXIT_FAILED, failure)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket, for both families where ``host`` is a wildcard; OSError EADDRINUSE
    when another process has the port."""
    host = listening.host_of(host)
    listener = socket.socket(listening.family_of(host), socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.open_to_both(listener, host)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _on_codec(stop: Callable[[], None], codec: asyncio.Task[TextCodec]) -> None:
    """Without a tokenizer nothing can be served; with one, what was loaded is never collected."""
    if codec.cancelled():
        return
    if codec.exception() is None:
        gc.collect()
        gc.freeze()
    else:
        stop()


def _failure(codec: asyncio.Task[TextCodec]) -> BaseException | None:
    return codec.exception() if codec.done() and not codec.cancelled() else None


async def _watch_parent(parent_pid: int, stop: Callable[[], None]) -> None:
    """A gateway whose supervisor was killed must not stay behind."""
    while parent_pid:
        if os.getppid() != parent_pid:
            stop()
            return
        await asyncio.sleep(0.5)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lamella_gateway", description="The OpenAI endpoint of one model."
    )
    parser.add_argument(
        "--config",
        default="",
        help=f"the gateway's JSON configuration (default: what {names.ENV_GATEWAY_CONFIG} holds)",
    )
    parser.add_argument(
        "--parent-pid", type=int, default=0, help="stop when the parent is no longer this process"
    )
    return parser.parse_args()


def _document(path: str) -> str:
    if path:
        return Path(path).read_text(encoding="utf-8")
    document = os.environ.get(names.ENV_GATEWAY_CONFIG, "")
    if not document:
        raise InvalidConfig("got nothing, want the gateway's configuration (or give --config)")
    return document


def _fail(code: int, reason: BaseException) -> int:
    """Say why on stderr and, in a container, where its kubelet looks."""
    sys.stderr.write(f"lamella gateway: {reason}\n")
    kind = reason.kind if isinstance(reason, LamellaError) else LamellaError.kind
    document = json.dumps({"kind": kind, "message": str(reason)})
    with contextlib.suppress(OSError):  # never made: elsewhere there is none
        descriptor = os.open(names.TERMINATION_LOG, os.O_WRONLY | os.O_TRUNC)
        with os.fdopen(descriptor, "w", encoding="utf-8") as log:
            log.write(document)
    return code
