"""``python -m lamella_gateway --config gateway.json``: the OpenAI endpoint of one model.

The only entry point. Takes the port first, so that a port in use is known at once; then serves
while the tokenizer loads. SIGTERM and SIGINT: nothing new is taken, streams may go on for a
moment, and the process is gone within 2 s.

Exit codes: 0 asked to stop, 1 failed, 2 wrong arguments or configuration, 3 the port is in use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
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
from lamella_contract import logs, names
from lamella_contract.config import GatewayConfig
from lamella_contract.errors import InvalidConfig, LamellaError

if TYPE_CHECKING:
    from .text import TextCodec

EXIT_FAILED, EXIT_CONFIG, EXIT_PORT = 1, 2, 3
FORCE_EXIT_S = 1.6  # open connections are dropped then
BACKLOG = 2048
KEEP_ALIVE_S = 75  # an idle HTTP connection is kept for so long, as by other servers

_log = logging.getLogger("lamella_gateway")


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours also drain the dispatcher."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    arguments = _arguments()
    try:
        config = GatewayConfig.from_json(Path(arguments.config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidConfig) as reason:
        return _fail(EXIT_CONFIG, f"{arguments.config}: {reason}")
    logs.configure(config.name)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # says at INFO what we say
    setproctitle(names.gateway_title(config.served_name))
    try:
        listener = listen(config.http_host, config.http_port)
    except OSError as reason:
        where = f"{config.http_host}:{config.http_port}"
        if reason.errno == errno.EADDRINUSE:
            return _fail(EXIT_PORT, f"port in use: another process listens on {where}")
        return _fail(EXIT_CONFIG, f"cannot listen on {where}: {reason}")
    hide_torch()  # tokenizers need none
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, listener, parent_pid=arguments.parent_pid))


async def serve(config: GatewayConfig, listener: socket.socket, *, parent_pid: int = 0) -> int:
    """Serve on ``listener`` until a signal, the parent's death or a failure; the exit code."""
    # imported here, for the port must be known to be free before anything slow
    from .app import create_app
    from .service import Gateway

    try:
        gateway = Gateway(config)
    except LamellaError as reason:
        listener.close()
        return _fail(EXIT_CONFIG, str(reason))
    server = Server(
        uvicorn.Config(
            create_app(gateway),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        gateway.dispatcher.drain()
        server.should_exit = True
        loop.call_later(FORCE_EXIT_S, setattr, server, "force_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    gateway.codec.add_done_callback(partial(_on_codec, stop))
    watch = loop.create_task(_watch_parent(parent_pid, stop))
    host, port = listener.getsockname()[:2]
    _log.info("listening", extra={"url": f"http://{host}:{port}", "model": config.served_name})
    try:
        await server.serve(sockets=[listener])
    finally:
        watch.cancel()
        failure = _failure(gateway.codec)
        gateway.close()
    return 0 if failure is None else _fail(EXIT_FAILED, str(failure))


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; OSError EADDRINUSE when another process has the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
    parser.add_argument("--config", required=True, help="the gateway's JSON configuration")
    parser.add_argument(
        "--parent-pid", type=int, default=0, help="stop when the parent is no longer this process"
    )
    return parser.parse_args()


def _fail(code: int, message: str) -> int:
    sys.stderr.write(f"lamella gateway: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
