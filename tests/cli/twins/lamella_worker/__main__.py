"""Forks one process per configuration; each serves /status and "loads" until TWIN_READY exists.

It ends with 78 while TWIN_READY.broken exists.
TWIN_FAIL set: logs that as an error of the tree and ends with 78, as the worker does.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from lamella_contract import logs
from lamella_contract.config import StageConfig

HEAVY_MODULES = ("json",)


def main(argv: Sequence[str]) -> int:
    logs.configure("parent")
    configs = [StageConfig.from_json(Path(path).read_text()) for path in argv[1::2]]
    if failure := os.environ.get("TWIN_FAIL", ""):
        document = {"level": "ERROR", "role": "stage-0", "message": failure, "kind": "model"}
        sys.stderr.write(json.dumps(document) + "\n")
        return 78
    if Path(os.environ["TWIN_READY"] + ".broken").exists():
        sys.stderr.write("the slice cannot be read\n")
        return 78
    children = {fork(config): config for config in configs}
    signal.signal(signal.SIGTERM, lambda *_: end(children))
    while True:
        pid, _ = os.wait()
        children[fork(children[pid])] = children.pop(pid)


def end(children: dict[int, StageConfig]) -> None:
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    os._exit(0)


def fork(config: StageConfig) -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stage(config)
    return pid


def stage(config: StageConfig) -> None:
    began_s = time.monotonic()

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ready = Path(os.environ["TWIN_READY"]).exists()
            done = 100 if ready else min(int(50 * (time.monotonic() - began_s)), 99)
            document = {
                "stage": config.stage,
                "state": "serving" if ready else "loading",
                "bytes_done": done << 20,
                "bytes_total": 100 << 20,
                "bytes_per_s": 50 << 20,
                "eta_s": 1.5,
                "pid": os.getpid(),
            }
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The twin says nothing of its requests."""

    host, _, port = config.http_address.rpartition(":")
    HTTPServer((host, int(port)), Status).serve_forever()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
