"""What is compared, and how each is started: commands, environment and cores.

Every system is an endpoint on 127.0.0.1 and gets the same two cores. Where a system has one stage
its computing threads have core A; where it has two, stage i has core i ("a core each"), or each
stage has both cores ("both cores each"), with as many threads. What does not compute (HTTP servers,
schedulers, the client) may use both, as the system wants it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MOST = 64
"""Requests at once that each must be able to take."""
CONTEXT = 256
"""Tokens of a request at most, prompt and answer, where slots have a fixed size."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process to start. `cores`: where it may run. `kill`: what the fault mode kills, "" for
    this process or a part of the role of a child of it; None where nothing of it is killed.
    `serves`: whether clients talk to it."""

    argv: tuple[str, ...]
    cores: tuple[int, ...]
    env: dict[str, str] = field(default_factory=dict)
    kill: str | None = None
    serves: bool = True


@dataclass(frozen=True, slots=True)
class Tools:
    """Where installed peers lie; None where one could not be installed, and then why."""

    vllm: Path | None = None
    llama: Path | None = None
    transformers: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Files:
    """The same model in each one's format."""

    folder: Path
    gguf: Path


Build = Callable[[Tools, Files, tuple[int, int], tuple[int, ...]], list[Process]]


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table. `ports`: how many free ports it needs; the first serves HTTP."""

    key: str
    title: str
    peer: str  # of Tools; "" for ours
    stages: int
    ports: int
    build: Build
    health: str = "/health"
    model: str = "bench"
    note: str = ""
    slow: bool = False  # takes so long that it is measured in every other round


def _lamella(stages: int, *, pin: bool) -> Build:
    def build(tools: Tools, files: Files, cores: tuple[int, int], ports: tuple[int, ...]) -> list:
        argv = (
            sys.executable, "-m", "lamella", "serve", str(files.folder), "--stages", str(stages),
            "--port", str(ports[0]), "--served-name", "bench", "--device", "cpu",
            "--max-model-len", "1024", "--max-sequences", str(MOST), *(("--pin",) if pin else ()),
        )  # fmt: skip
        return [Process(argv, cores, kill="stage" if stages > 1 else None)]

    return build


VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": "127.0.0.1",
}


def preloads(venv: Path) -> list[Path]:
    """Intel's OpenMP, which comes with vLLM, and tcmalloc if the machine has it."""
    places = (venv / "lib", *map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")))
    found = [
        next((path for place in places for path in sorted(place.glob(name))), None)
        for name in ("libiomp5.so", "libtcmalloc_minimal.so.4")
    ]
    return [path for path in found if path]


def _vllm(
    bind: Callable[[tuple[int, int]], str], *words: str, nodes: int = 1, threads: int = 1
) -> Build:
    def build(
        tools: Tools, files: Files, cores: tuple[int, int], ports: tuple[int, ...]
    ) -> list[Process]:
        assert tools.vllm is not None
        base = (
            str(tools.vllm / "bin" / "vllm"), "serve", str(files.folder),
            "--served-model-name", "bench", "--port", str(ports[0]), "--dtype", "bfloat16",
            "--max-model-len", "1024", "--max-num-seqs", str(MOST),
            "--no-enable-prefix-caching", "--disable-uvicorn-access-log", *words,
        )  # fmt: skip
        path = {
            "PATH": f"{tools.vllm / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            # Its documentation asks for both of these where the machine has them.
            "LD_PRELOAD": ":".join(map(str, preloads(tools.vllm))),
            "OMP_NUM_THREADS": str(threads),
        }
        if nodes == 1:
            env = {**VLLM_ENV, **path, "VLLM_CPU_OMP_THREADS_BIND": bind(cores)}
            return [Process(base, cores, env, kill="VLLM::Worker")]
        made = []
        for rank in range(nodes):
            argv = (
                *base, "--nnodes", str(nodes), "--node-rank", str(rank),
                "--master-addr", "127.0.0.1", "--master-port", str(ports[1]),
                *(("--headless",) if rank else ()),
            )  # fmt: skip
            env = {**VLLM_ENV, **path, "VLLM_CPU_OMP_THREADS_BIND": str(cores[rank])}
            kill = "VLLM::Worker" if rank else None
            made.append(Process(argv, cores, env, kill=kill, serves=not rank))
        return made

    return build


def _llama(stages: int, threads: int = 1) -> Build:
    def build(
        tools: Tools, files: Files, cores: tuple[int, int], ports: tuple[int, ...]
    ) -> list[Process]:
        assert tools.llama is not None
        server = (
            str(tools.llama / "llama-server"), "-m", str(files.gguf), "--alias", "bench",
            "--host", "127.0.0.1", "--port", str(ports[0]), "-t", str(threads), "-tb", str(threads),
            "-np", str(MOST), "-c", str(MOST * CONTEXT), "--no-ui",
        )  # fmt: skip
        if stages == 1:
            return [Process((*server, "-C", hex(1 << cores[0]), "--cpu-strict", "1"), cores)]
        made = [
            Process(
                (
                    str(tools.llama / "ggml-rpc-server"),
                    "-t",
                    str(threads),
                    "-H",
                    "127.0.0.1",
                    "-p",
                    str(port),
                ),
                (core,) if threads == 1 else cores,
                kill="" if number else None,
                serves=False,
            )
            for number, (core, port) in enumerate(zip(cores, ports[1:], strict=True))
        ]
        rpc = ",".join(f"127.0.0.1:{port}" for port in ports[1:])
        return [*made, Process((*server, "--rpc", rpc, "-ngl", "99"), cores)]

    return build


HF_ENV = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def _hf_batch(stages: int, threads: int = 1) -> Build:
    def build(
        tools: Tools, files: Files, cores: tuple[int, int], ports: tuple[int, ...]
    ) -> list[Process]:
        assert tools.transformers is not None
        script = str(Path(__file__).with_name("hf_batch.py"))
        argv = (str(tools.transformers / "bin/python"), script, str(files.folder), str(ports[0]))
        made = []
        for rank in range(stages):
            env = HF_ENV | {"OMP_NUM_THREADS": str(threads)}
            if stages > 1:
                env |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(stages),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[1]),
                }  # fmt: skip
            own = (cores[rank],) if threads == 1 else cores
            made.append(Process((*argv, "30"), own, env, serves=not rank))
        return made

    return build


def _hf_serve(
    tools: Tools, files: Files, cores: tuple[int, int], ports: tuple[int, ...]
) -> list[Process]:
    assert tools.transformers is not None
    argv = (
        str(tools.transformers / "bin/python"), "-m", "transformers.cli.transformers", "serve",
        str(files.folder), "--continuous-batching", "--attn-implementation", "sdpa",
        "--device", "cpu", "--dtype", "bfloat16", "--port", str(ports[0]), "--host", "127.0.0.1",
        "--log-level", "error",
        # Unbounded it takes nine tenths of the memory that is free.
        "--cb-block-size", "16", "--cb-num-blocks", str(MOST * CONTEXT // 16),
        "--cb-max-batch-tokens", "1024",
    )  # fmt: skip
    return [Process(argv, (cores[0],), HF_ENV)]


SYSTEMS = (
    System("lamella-1", "Lamella, 1 stage", "", 1, 1, _lamella(1, pin=True)),
    System("lamella-2", "Lamella, 2 stages in turn", "", 2, 1, _lamella(2, pin=False)),
    System("lamella-2p", "Lamella, 2 stages, a core each", "", 2, 1, _lamella(2, pin=True)),
    System("vllm-1", "vLLM, 1 stage", "vllm", 1, 1, _vllm(lambda cores: str(cores[0]))),
    System(
        "vllm-1b", "vLLM, 1 stage, both cores", "vllm", 1, 1,
        _vllm(lambda cores: f"{cores[0]},{cores[1]}", threads=2),
    ),
    System(
        "vllm-2", "vLLM, 2 stages, a core each", "vllm", 2, 1,
        _vllm(lambda cores: f"{cores[0]}|{cores[1]}", "--pipeline-parallel-size", "2"),
    ),
    System(
        "vllm-2b", "vLLM, 2 stages, both cores each", "vllm", 2, 1,
        _vllm(
            lambda cores: f"{cores[0]},{cores[1]}|{cores[0]},{cores[1]}",
            "--pipeline-parallel-size", "2", threads=2,
        ),
    ),
    System(
        "vllm-2n", "vLLM, 2 stages, two nodes on loopback", "vllm", 2, 2,
        _vllm(lambda cores: "", "--pipeline-parallel-size", "2", nodes=2), slow=True,
    ),
    System("llama-1", "llama.cpp, 1 thread", "llama", 1, 1, _llama(1), slow=True),
    System("llama-2", "llama.cpp, 2 RPC servers, a core each", "llama", 2, 3, _llama(2), slow=True),
    System(
        "llama-2b", "llama.cpp, 2 RPC servers, both cores each", "llama", 2, 3,
        _llama(2, threads=2), slow=True,
    ),
    System(
        "hf-generate", "transformers generate, static batch", "transformers", 1, 1, _hf_batch(1),
        slow=True, health="/v1/models", note="the least HTTP around it, no text decoded",
    ),
    System(
        "hf-cb", "transformers serve, continuous batching", "transformers", 1, 1, _hf_serve,
        slow=True,
    ),
    System(
        "hf-2", "transformers native pipeline, 2 stages, a core each", "transformers", 2, 2,
        _hf_batch(2), slow=True, health="/v1/models",
        note="the least HTTP around it, no text decoded",
    ),
    System(
        "hf-2b", "transformers native pipeline, 2 stages, both cores each", "transformers", 2, 2,
        _hf_batch(2, threads=2), slow=True, health="/v1/models",
        note="the least HTTP around it, no text decoded",
    ),
)  # fmt: skip
