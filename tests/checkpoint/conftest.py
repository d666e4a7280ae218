"""A small hub on loopback, and model folders made on the spot.

The hub speaks the parts of the Hugging Face hub's API that `huggingface_hub` and our transfers use:
the listing of a revision, and `resolve` with HEAD, ranges, ETag and X-Repo-Commit, plain or through
a redirect to another host. Faults are scripted: each `Fault` strikes the next request that it fits.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

Files = dict[str, bytes]


@dataclass
class Fault:
    """What goes wrong with the next request whose path holds ``path`` (and method fits).

    ``status`` answers so instead; ``cut`` sends that many bytes of the body and hangs up; ``stall``
    sends that many and then nothing until the hub closes; ``headers`` are added or replaced;
    ``before`` runs first (to move a branch, say).
    """

    path: str
    status: int = 0
    cut: int | None = None
    stall: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] | None = None
    whole: bool = False  # answer 200 with the whole file, as if ranges were not known
    flip: bool = False  # the first byte sent is wrong
    times: int = 1


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    range: str | None
    token: str | None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up in the middle here; that is no news."""


class Hub:
    """Repositories by name: commits by hash, branches by name; and what arrived."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], Files] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.redirects = False  # large files are elsewhere, as with the real hub's storage
        self.released = threading.Event()
        self.stalled = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def push(self, repo: str, files: Files, *, ref: str = "main") -> str:
        """A new commit of ``repo`` with these files; ``ref`` moves to it."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[repo, digest] = files
        self.refs[repo, ref] = digest
        return digest

    def fault(self, path: str, **what: Any) -> None:
        self.faults.append(Fault(path, **what))

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def gets(self, name: str) -> list[Seen]:
        """Requests for a file's bytes."""
        return [seen for seen in self.seen if seen.method == "GET" and seen.path.endswith(name)]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@functools.lru_cache(maxsize=64)
def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@functools.lru_cache(maxsize=64)
def _etag(name: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if is_large(name) else blob_id(data)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            with hub._lock:
                hub.seen.append(
                    Seen(
                        self.command,
                        path,
                        self.headers.get("Range"),
                        self.headers.get("Authorization"),
                    )
                )
            fault = hub.take_fault(path) or Fault(path)
            if fault.before is not None:
                fault.before()
            if fault.status:
                self.answer(fault.status, b"{}", fault.headers)
                return
            listing = re.fullmatch(r"/api/models/(.+)/revision/(.+)", path)
            resolve = re.fullmatch(r"/(cdn/)?(.+)/resolve/([^/]+)/(.+)", path)
            if listing:
                self.listing(listing[1], listing[2], fault)
            elif resolve:
                self.resolve(resolve[2], resolve[3], resolve[4], bool(resolve[1]), fault)
            else:
                self.answer(404, b"{}", {})

        def listing(self, repo: str, revision: str, fault: Fault) -> None:
            commit = hub.refs.get((repo, revision), revision)
            files = hub.commits.get((repo, commit))
            if files is None:
                known = any(name == repo for name, _ in hub.commits)
                code = "RevisionNotFound" if known else "RepoNotFound"
                self.answer(404, b"{}", {"X-Error-Code": code})
                return
            siblings = []
            for name, data in files.items():
                sibling: dict[str, Any] = {"rfilename": name, "size": len(data)}
                sibling["blobId"] = blob_id(data)
                if is_large(name):
                    sibling["lfs"] = {
                        "sha256": _etag(name, data),
                        "size": len(data),
                        "pointerSize": 134,
                    }
                siblings.append(sibling)
            body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
            self.answer(200, body, {"Content-Type": "application/json", **fault.headers}, fault)

        def resolve(self, repo: str, revision: str, name: str, moved: bool, fault: Fault) -> None:
            commit = hub.refs.get((repo, revision), revision)
            data = hub.commits.get((repo, commit), {}).get(name)
            if data is None:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            tag = _etag(name, data)
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if hub.redirects and is_large(name) and not moved:
                # Another host: a client must not send the hub's token there.
                target = f"http://localhost:{hub.port}/cdn{self.path}"
                headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
                self.answer(302, b"", {**headers, "Location": target, **fault.headers})
                return
            # The storage behind a redirect has ETags of its own.
            headers = {"ETag": '"storage"'} if moved else {**headers, "ETag": f'"{tag}"'}
            status, body = 200, data
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and not fault.whole:
                first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
                if first > last:
                    self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                    return
                status, body = 206, data[first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.answer(status, body, {**headers, **fault.headers}, fault)

        def answer(
            self,
            status: int,
            body: bytes,
            headers: Mapping[str, str],
            fault: Fault | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault is not None and fault.flip:
                body = bytes([body[0] ^ 0xFF]) + body[1:]
            count = len(body)
            if fault is not None and fault.cut is not None:
                count, self.close_connection = fault.cut, True
            if fault is not None and fault.stall is not None:
                count, self.close_connection = fault.stall, True
            self.wfile.write(body[:count])
            self.wfile.flush()
            if fault is not None and fault.stall is not None:
                hub.stalled.set()
                hub.released.wait()

    return Handler


@pytest.fixture(scope="module")
def module_hub() -> Iterator[Hub]:
    """A hub for a whole module; ``HF_ENDPOINT`` points to it meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _served(patch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that ``HF_ENDPOINT`` points to."""
    yield from _served(monkeypatch)


def _served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    huggingface_hub.close_session()
    server.close()


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def llama_tensors(layers: int = 3, *, tied: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights of the `LLAMA` config under Hugging Face's names."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape, dtype=np.float32)

    tensors = {"model.embed_tokens.weight": random(32, 16), "model.norm.weight": random(16)}
    if not tied:
        tensors["lm_head.weight"] = random(32, 16)
    for index in range(layers):
        base = f"model.layers.{index}."
        tensors |= {
            f"{base}self_attn.q_proj.weight": random(16, 16),
            f"{base}self_attn.k_proj.weight": random(8, 16),
            f"{base}self_attn.v_proj.weight": random(8, 16),
            f"{base}self_attn.o_proj.weight": random(16, 16),
            f"{base}mlp.gate_proj.weight": random(24, 16),
            f"{base}mlp.up_proj.weight": random(24, 16),
            f"{base}mlp.down_proj.weight": random(16, 24),
            f"{base}input_layernorm.weight": random(16),
            f"{base}post_attention_layernorm.weight": random(16),
        }
    return tensors


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """``make_model(tensors=..., config=..., shards=n, name=...)`` writes a model folder."""

    def make(
        tensors: dict[str, np.ndarray[Any, Any]] | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        shards: int = 1,
        name: str = "model",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        weights = llama_tensors() if tensors is None else tensors
        document = dict(LLAMA if config is None else config)
        (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
        if shards == 1:
            save_file(weights, folder / "model.safetensors")
            return folder
        names = sorted(weights)
        table: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            own = names[shard::shards]
            save_file({key: weights[key] for key in own}, folder / file)
            table |= dict.fromkeys(own, file)
        index = json.dumps({"metadata": {}, "weight_map": table})
        (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def tensors_of() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """`llama_tensors`, for tests that change them."""
    return llama_tensors


@pytest.fixture
def llama_config() -> dict[str, Any]:
    """A fresh copy of the tiny config."""
    return dict(LLAMA)


@pytest.fixture
def files_of() -> Callable[[Path], Files]:
    """A folder's files as a hub holds them."""

    def read(folder: Path) -> Files:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    return read
