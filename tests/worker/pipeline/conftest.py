"""A real ring of processes with a toy engine, and a small gateway that talks to it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import zmq

from lamella.machine import free_ports
from lamella_contract.config import PipelineConfig, StageConfig
from lamella_contract.wire import (
    NO_INCARNATION,
    Cancel,
    Envelope,
    Events,
    Hello,
    Kind,
    PipelineStatus,
    Sampling,
    Submit,
    TokenEvent,
    decode_gateway,
    encode_gateway,
)

TOY = Path(__file__).parent / "toy_worker.py"
PATIENCE_S = 30.0


def _helper(name: str) -> ModuleType:
    """Import a file beside this one as ``pipeline_<name>``."""
    spec = importlib.util.spec_from_file_location(
        f"pipeline_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_proxy = _helper("proxy")


class Ring:
    """The worker process of a toy pipeline, and this test as its gateway."""

    def __init__(self, folder: Path, stages: int, *, pinned: bool = False, **pipeline: Any) -> None:
        self.stages = stages
        self.folder = folder
        self._pinned = pinned
        ports = free_ports(stages + 2)
        self.http = list(ports[2:])
        self._keys = {
            role: zmq.curve_keypair()
            for role in [*(f"stage-{k}" for k in range(stages)), "gateway-0"]
        }
        for role, (public, secret) in self._keys.items():
            pair = {"public": public.decode(), "secret": secret.decode()}
            (folder / f"{role}.key.json").write_text(json.dumps(pair))
        sizes = {"num_blocks": 64, "max_sequences": 8, "max_step_tokens": 32} | pipeline
        self.pipeline = PipelineConfig(
            name="toy",
            model_uri="file:/toy",
            model_path="/toy",
            commit="",
            num_layers=stages,
            splits=tuple(range(stages)),
            dtype="float32",
            block_size=4,
            max_model_len=200,
            max_queued_tokens=2000,
            eos_token_ids=(1,),
            vocab_size=97,
            **sizes,
        )
        self._gateway_address = f"tcp://127.0.0.1:{ports[0]}"
        self.control_port = ports[1]
        self.worker: subprocess.Popen[bytes] | None = self._begin()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._dial()
        self.last_status: PipelineStatus | None = None
        self._submitted = 0

    def _begin(self) -> subprocess.Popen[bytes] | None:
        """One process forks all stages."""
        paths = []
        for stage in range(self.stages):
            paths.append(self.folder / f"stage-{stage}.json")
            paths[-1].write_text(self._config(stage).to_json())
        own = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, str(TOY), *map(str, paths)], env=os.environ | own)

    def _check_alive(self) -> None:
        assert self.worker is not None
        assert self.worker.poll() is None, "the worker ended"

    def _config(self, stage: int) -> StageConfig:
        return StageConfig(
            pipeline=self.pipeline,
            stage=stage,
            device="cpu",
            threads=1,
            cpu=stage % (os.cpu_count() or 1) if self._pinned else None,
            control_address=f"tcp://127.0.0.1:{self.control_port}",
            gateway_address=self._gateway_address if stage == 0 else "",
            data_bind="tcp://127.0.0.1:*",
            http_address=f"127.0.0.1:{self.http[stage]}",
            key_file=str(self.folder / f"stage-{stage}.key.json"),
            peer_keys=tuple((role, public.decode()) for role, (public, _) in self._keys.items()),
            cache_dir="",
            hub_token_file="",
            replace_after_s=4.0,
        )

    def _dial(self) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.identity, dealer.immediate, dealer.linger = b"gateway-0", 1, 0
        dealer.curve_publickey, dealer.curve_secretkey = self._keys["gateway-0"]
        dealer.curve_serverkey = self._keys["stage-0"][0]
        dealer.reconnect_ivl = 50
        dealer.connect(self._gateway_address)
        return dealer

    def send(self, message: Submit | Cancel | Hello) -> None:
        envelope = Envelope(Kind.HELLO, self.pipeline.model_hash(), NO_INCARNATION, 0, 0)
        assert self._socket.poll(int(PATIENCE_S * 1000), zmq.POLLOUT), "stage 0 is not there"
        self._socket.send(encode_gateway(envelope, message))

    def receive(self, patience_s: float = PATIENCE_S) -> Events | PipelineStatus:
        assert self._socket.poll(int(patience_s * 1000)), "stage 0 says nothing"
        _, message = decode_gateway(self._socket.recv())
        assert isinstance(message, Events | PipelineStatus)
        if isinstance(message, PipelineStatus):
            self.last_status = message
        return message

    def wait_status(self, wanted: Callable[[PipelineStatus], bool]) -> PipelineStatus:
        """The first status that `wanted` likes; says hello all the while."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self._check_alive()
            if self._socket.poll(100, zmq.POLLOUT):
                self.send(Hello("gateway-0"))
            if self._socket.poll(200):
                message = self.receive()
                if isinstance(message, PipelineStatus) and wanted(message):
                    return message
        raise AssertionError(f"never came; last: {self.last_status}")

    def wait_ready(self) -> None:
        self.wait_status(lambda status: status.ready)

    def submit(self, prompt: list[int], max_tokens: int, **known: Any) -> bytes:
        """Send a request under a new id; `output` and `attempt` make it a resumed one."""
        self._submitted += 1
        request_id = self._submitted.to_bytes(16, "little")
        sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        ids = tuple(prompt) + tuple(known.get("output", ()))
        self.send(Submit(request_id, known.get("attempt", 1), len(prompt), ids, sampling))
        return request_id

    def events(self) -> Iterator[TokenEvent]:
        """Every event as it comes."""
        while True:
            message = self.receive()
            if isinstance(message, Events):
                yield from message.items

    def collect(
        self, requests: set[bytes], on_event: Callable[[TokenEvent], None] = lambda event: None
    ) -> dict[bytes, tuple[list[int], str]]:
        """Tokens and finish of each request; asserts that no position is missed or doubled."""
        tokens: dict[bytes, list[int]] = {request: [] for request in requests}
        finished: dict[bytes, tuple[list[int], str]] = {}
        for event in self.events():
            if event.request_id not in tokens:
                continue
            known = tokens[event.request_id]
            assert event.position == len(known), f"position {event.position}, want {len(known)}"
            known += event.ids
            on_event(event)
            if event.finish:
                finished[event.request_id] = (known, event.finish)
                if len(finished) == len(requests):
                    return finished
        raise AssertionError("unreachable")

    def status(self, stage: int) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http[stage]}/status") as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def answers(self, stage: int) -> bool:
        """Whether the stage's process is there at all."""
        try:
            return bool(self.status(stage))
        except OSError:
            return False

    def is_ready(self, stage: int = 0) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http[stage]}/readyz") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_until(self, wanted: Callable[[], bool]) -> float:
        """Seconds until `wanted()`; fails after PATIENCE_S."""
        began = time.monotonic()
        while not wanted():
            assert time.monotonic() - began < PATIENCE_S, "it never came true"
            self._socket.poll(20)  # a wait that ends early when there is news
        return time.monotonic() - began

    def pid(self, stage: int) -> int:
        """0 while the stage's process does not answer."""
        try:
            return int(self.status(stage)["pid"])
        except OSError:
            return 0

    def close(self) -> None:
        assert self.worker is not None
        self.worker.send_signal(signal.SIGTERM)
        try:
            self.worker.wait(timeout=5)
        finally:
            self.worker.kill()
            self.worker.wait()
            self._socket.close()
            self._context.term()


class Pod:
    """One pod's parent process, started by a keeper that leaves its exit code."""

    def __init__(self, pid: int, exit_file: Path) -> None:
        self.pid = pid
        self._exit_file = exit_file

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """The exit code, minus the signal for one that was killed."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.pid).wait(timeout)
        while not self._exit_file.exists():
            assert time.monotonic() < deadline, f"pod {self.pid} does not end"
            os.sched_yield()
        return int(self._exit_file.read_text())

    def kill(self) -> None:
        if not self._exit_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def forker() -> Iterator[subprocess.Popen[bytes]]:
    """What forks pods: it has imported what takes seconds."""
    own = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(TOY)],
        env=os.environ | own,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=10)


class Pods(Ring):
    """Each stage in a parent of its own, as in a pod; stage 0 is known by a name.

    `dns` says what the name means to whoever asks.
    """

    def __init__(
        self, forker: subprocess.Popen[bytes], folder: Path, stages: int, **settings: Any
    ) -> None:
        self.settings: dict[str, Any] = {"replace_after_s": 2.0} | settings
        self.pods: dict[str, Pod] = {}
        self._forker = forker
        super().__init__(folder, stages)

    def _begin(self) -> None:
        self.dns("127.0.0.1")
        for stage in range(self.stages):
            self.pod(f"first-{stage}", stage)

    def _check_alive(self) -> None:
        return None

    def dns(self, *addresses: str) -> None:
        """From now on the name means these; with none, DNS is down."""
        fresh = self.folder / "dns.fresh"
        fresh.write_text(json.dumps(addresses))
        fresh.replace(self.folder / "dns")

    def pod(self, name: str, stage: int, *, host: str = "127.0.0.1", **fields: Any) -> Pod:
        """Start a pod, in place of one or beside it; `host` is that of a stage 0."""
        live, probes = free_ports(2)
        gateway_port = self._gateway_address.rpartition(":")[2]
        listens = {
            "control_address": f"tcp://{host}:{self.control_port}",
            "gateway_address": f"tcp://{host}:{gateway_port}",
        }
        config = dataclasses.replace(
            self._config(stage),
            http_address=f"127.0.0.1:{probes}",
            live_address=f"127.0.0.1:{live}",
            termination_log=str(self.folder / f"{name}.log"),
            **(
                (listens if stage == 0 else {"control_address": f"tcp://head:{self.control_port}"})
                | self.settings
                | fields
            ),
        )
        self.http[stage] = probes
        environment = self.announced(stage) | {
            "TOY_DNS": str(self.folder / "dns"),
            "LAMELLA_POD_UID": f"uid-{name}",
        }
        if (self.folder / f"{name}.load").exists():
            environment["TOY_LOAD"] = str(self.folder / f"{name}.load")
        path, exit_file = self.folder / f"{name}.json", self.folder / f"{name}.exit"
        path.write_text(config.to_json())
        order = {"config": str(path), "environment": environment, "exit": str(exit_file)}
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write(json.dumps(order).encode() + b"\n")
        self._forker.stdin.flush()
        pod = self.pods[name] = Pod(int(self._forker.stdout.readline()), exit_file)
        return pod

    def announced(self, stage: int) -> dict[str, str]:
        """What is added to a pod's environment."""
        return {}

    def wait_ready(self) -> None:
        """By stage 0's probe: what its gateways were told may lie here unread for long."""
        self.wait_until(self.is_ready)

    def let_go(self, name: str, kind: str = "") -> None:
        """The pod that was held has loaded, or fails to with an error of this kind."""
        (self.folder / f"{name}.load").write_text(kind)

    def move(self, host: str) -> None:
        """Talk to the stage 0 at `host`."""
        self._socket.close()
        port = self._gateway_address.rpartition(":")[2]
        self._gateway_address = f"tcp://{host}:{port}"
        self._socket = self._dial()

    def last_words(self, name: str) -> dict[str, str]:
        words: dict[str, str] = json.loads((self.folder / f"{name}.log").read_text())
        return words

    def family(self, name: str) -> list[int]:
        """The pids of a pod: parent and child."""
        parent = psutil.Process(self.pods[name].pid)
        return [parent.pid, *(child.pid for child in parent.children())]

    def close(self) -> None:
        for pod in self.pods.values():
            pod.kill()
        for pod in self.pods.values():
            pod.wait(timeout=10)
        self._socket.close()
        self._context.term()


class Proxied(Pods):
    """Pods whose every link, data and control, leads through a proxy.

    `data` has the links into each stage, `control` the one of each stage but the first to stage 0.
    """

    def __init__(self, forker: subprocess.Popen[bytes], folder: Path, stages: int) -> None:
        self.proxy = _proxy.Proxy()
        self._listens = free_ports(stages)
        self.data = [self.proxy.link(lambda s=s: self._listens[s]) for s in range(stages)]
        self.control = {s: self.proxy.link(lambda: self.control_port) for s in range(1, stages)}
        # a short suspicion saves time; nobody is given up in any test
        super().__init__(forker, folder, stages, suspect_after_s=0.7, replace_after_s=60.0)

    def announced(self, stage: int) -> dict[str, str]:
        return {"TOY_ANNOUNCE": f"tcp://127.0.0.1:{self.data[stage].port}"}

    def pod(self, name: str, stage: int, *, host: str = "127.0.0.1", **fields: Any) -> Pod:
        fields["data_bind"] = f"tcp://127.0.0.1:{self._listens[stage]}"
        if stage:
            fields["control_address"] = f"tcp://127.0.0.1:{self.control[stage].port}"
        return super().pod(name, stage, host=host, **fields)

    def link(self, name: str) -> Any:
        """``data-0`` is the link into stage 0, ``control-1`` that of stage 1 to stage 0."""
        kind, _, stage = name.partition("-")
        links: Any = self.data if kind == "data" else self.control
        return links[int(stage)]

    def heal(self) -> None:
        for link in self.proxy.links:
            link.delay_s = 0.0
            link.heal()

    def close(self) -> None:
        super().close()
        self.proxy.close()


@pytest.fixture(scope="module")
def proxied(
    forker: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    """A pipeline of three pods with a proxy between them, whose tests heal what they hurt."""
    pods = Proxied(forker, tmp_path_factory.mktemp("proxied"), 3)
    try:
        pods.wait_ready()
        yield pods
    finally:
        pods.close()


@pytest.fixture(scope="module")
def moving(
    forker: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pods]:
    """A pipeline of three pods for all tests that move its stage 0, or its child, about."""
    pods = Pods(forker, tmp_path_factory.mktemp("pods"), 3)
    try:
        pods.wait_ready()
        yield pods
    finally:
        pods.close()


@pytest.fixture
def start_pods(forker: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Callable[..., Pods]]:
    """Starts a pipeline of pods, waits until it serves, ends it after the test.

    The pod `held` goes on loading until `let_go`, and nothing is waited for.
    """
    running: list[Pods] = []

    def begin(stages: int, held: str = "", **settings: Any) -> Pods:
        if held:
            os.mkfifo(tmp_path / f"{held}.load")
        pods = Pods(forker, tmp_path, stages, **settings)
        running.append(pods)
        if not held:
            pods.wait_ready()
        return pods

    yield begin
    for pods in running:
        pods.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Ring]]:
    """Starts a ring of `stages`, waits until it serves, ends it after the test."""
    running: list[Ring] = []

    def begin(stages: int, **pipeline: Any) -> Ring:
        ring = Ring(tmp_path, stages, **pipeline)
        running.append(ring)
        ring.wait_ready()
        return ring

    yield begin
    for ring in running:
        ring.close()


@pytest.fixture(scope="module", params=[False, True], ids=["free", "pinned"])
def ring(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ring]:
    """One ring of three stages for all tests that leave it in good health.

    Pinned stages wait awake and pass frames through shared memory.
    """
    shared = Ring(tmp_path_factory.mktemp("ring"), 3, pinned=request.param)
    try:
        shared.wait_ready()
        yield shared
    finally:
        shared.close()


@pytest.fixture(scope="session")
def toy_answer() -> Callable[[list[int], int], list[int]]:
    """The oracle: what the toy answers to a prompt, alone."""
    next_token = runpy.run_path(str(TOY))["next_token"]

    def answer(prompt: list[int], count: int) -> list[int]:
        known = list(prompt)
        for _ in range(count):
            known.append(next_token(known))
        return known[len(prompt) :]

    return answer
