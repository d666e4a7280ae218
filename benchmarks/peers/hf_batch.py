"""transformers' `generate` behind the least HTTP: static batches of what waits.

    python hf_batch.py FOLDER PORT GATHER_MS        one process, or
    RANK=r WORLD_SIZE=2 ... python hf_batch.py ...  its native pipeline, one process per rank

It decodes no text: each token is told as "x". That is in its favour.
"""

from __future__ import annotations

import json
import os
import queue
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
WAITING: queue.SimpleQueue[tuple[dict[str, Any], queue.SimpleQueue[bool]]] = queue.SimpleQueue()


class Tell(BaseStreamer):
    """Tells each request of a batch that a token came. The first call is the prompt."""

    def __init__(self, listeners: list[queue.SimpleQueue[bool]]) -> None:
        self._listeners, self._calls = listeners, 0

    def put(self, value: Any) -> None:
        self._calls += 1
        if self._calls > 1:
            for listener in self._listeners:
                listener.put(True)

    def end(self) -> None:
        for listener in self._listeners:
            listener.put(False)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "bench"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        heard: queue.SimpleQueue[bool] = queue.SimpleQueue()
        WAITING.put((asked, heard))
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        tokens = 0
        piece = b'data: {"choices": [{"text": "x"}]}\n\n'
        while heard.get():
            tokens += 1
            self.wfile.write(piece)
        usage = {"prompt_tokens": asked["_prompt_tokens"], "completion_tokens": tokens}
        end = json.dumps({"choices": [], "usage": usage})
        self.wfile.write(f"data: {end}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "bench", int(self.server_address[1])


def gathered(gather_s: float) -> list[tuple[dict[str, Any], queue.SimpleQueue[bool]]]:
    """The first that waits, and what comes within the time after it."""
    batch = [WAITING.get()]
    until_s = time.monotonic() + gather_s
    while True:
        try:
            batch.append(WAITING.get(timeout=max(until_s - time.monotonic(), 0)))
        except queue.Empty:
            return batch


def main() -> None:
    folder, port, gather_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1e3
    keywords: dict[str, Any] = {"dtype": torch.bfloat16}
    if WORLD > 1:
        from transformers.distributed import DistributedConfig

        dist.init_process_group("gloo")
        keywords["distributed_config"] = DistributedConfig(pp_size=WORLD)
    model = AutoModelForCausalLM.from_pretrained(folder, **keywords).eval()
    model.generation_config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if RANK == 0:
        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        work: list[Any] = [None, 0]
        listeners: list[queue.SimpleQueue[bool]] = []
        if RANK == 0:
            batch = gathered(gather_s)
            ids = [tokenizer(asked["prompt"])["input_ids"] for asked, _ in batch]
            length = max(map(len, ids))
            for (asked, heard), own in zip(batch, ids, strict=True):
                asked["_prompt_tokens"] = len(own)
                listeners.append(heard)
            rows = [[0] * (length - len(own)) + own for own in ids]
            work = [rows, max(asked["max_tokens"] for asked, _ in batch)]
        if WORLD > 1:
            dist.broadcast_object_list(work, src=0)
        ids_in = torch.tensor(work[0])
        model.generate(
            input_ids=ids_in,
            attention_mask=(ids_in != 0).long(),
            max_new_tokens=work[1],
            do_sample=False,
            streamer=Tell(listeners),
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
