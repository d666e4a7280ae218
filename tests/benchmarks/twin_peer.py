"""A peer that is none, to be killed: a server, its engine and the engine's worker, as in vLLM.

    python twin_peer.py PORT hangs|ends|goes-on

Each stream says SAID pieces, and then it and every other request wait until the worker is gone.
After that the server says no more, ends and leaves its engine behind, or goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SAID = 20
ENGINE = """
import signal, subprocess, sys
worker = ["twin: worker", "-c", "import signal; signal.pause()"]
process = subprocess.Popen(worker, executable=sys.argv[1])
print("begun", flush=True)
process.wait()
print("gone", flush=True)
signal.pause()
"""
GONE = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._whole({})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not asked.get("stream"):
            self._wait()
            self._whole({"choices": [{"text": "x"}]})
            return
        self.send_response(200)
        self.end_headers()
        for number in range(asked["max_tokens"]):
            if number == SAID:
                self._wait()
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")

    def _wait(self) -> None:
        GONE.wait()
        if sys.argv[2] == "hangs":
            signal.pause()

    def _whole(self, document: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no error."""


def main() -> None:
    words = ["twin: engine", "-c", ENGINE, sys.executable]
    engine = subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    assert engine.stdout.readline(), "the engine begins"
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engine.stdout.readline()
    if sys.argv[2] == "ends":
        os._exit(1)
    GONE.set()
    signal.pause()


if __name__ == "__main__":
    main()
