"""The whole thing as a user runs it: the demo model, real stages, a real gateway, real kills.

pytest -m serve tests/cli/test_serve_real.py      (minutes; the demo model is made on the first run)
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from lamella.machine import free_ports

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parents[2]
LAMELLA = (sys.executable, "-m", "lamella")
QUESTION = "Q: What is the capital of France?\nA:"
START_S = 300.0


@dataclass(frozen=True)
class Server:
    """A running `lamella serve`, and where."""

    run: Any
    port: int
    run_base: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def answer(self) -> str:
        answer = self.client().completions.create(
            model="demo", prompt=QUESTION, max_tokens=12, temperature=0, stop="\n"
        )
        return answer.choices[0].text

    def status(self) -> dict[str, Any]:
        words = [*LAMELLA, "status", "-o", "json"]
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.run_base)}
        done = subprocess.run(words, env=env, capture_output=True, timeout=30, check=False)
        (found,) = json.loads(done.stdout)
        return dict(found)

    def wait_until(self, path: str, status: int, timeout_s: float) -> float:
        """Seconds until GET path answers with the status."""
        start = time.monotonic()
        while time.monotonic() - start < timeout_s:
            try:
                if httpx.get(f"{self.url}{path}", timeout=1.0).status_code == status:
                    return time.monotonic() - start
            except httpx.TransportError:
                continue
        raise AssertionError(f"{path} never gave {status}; {self.run.text}")


@pytest.fixture(scope="module")
def hub_class() -> Any:
    """The small hub of the checkpoint's tests."""
    path = ROOT / "tests" / "checkpoint" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_hub", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_hub"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module.Hub


@pytest.fixture(scope="module")
def demo() -> Path:
    done = subprocess.run([*LAMELLA, "demo-model"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def server(
    demo: Path, start_for_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    run_base, port = tmp_path_factory.mktemp("run"), free_ports(1)[0]
    words = ("serve", str(demo), "--stages", "2", "--port", str(port), "--served-name", "demo")
    run = start_for_module(*LAMELLA, *words, env={"XDG_RUNTIME_DIR": str(run_base)})
    run.wait_for("demo is ready at", START_S)
    return Server(run, port, run_base)


def test_it_knows_the_capital_of_france(server: Server) -> None:
    assert server.answer() == " The capital of France is Paris."


def test_the_line_to_paste_works(server: Server) -> None:
    line = next((line for line in server.run.seen if line.startswith("curl ")), None)
    line = line or server.run.wait_for("curl ")
    done = subprocess.run(["bash", "-c", f"{line} -s"], capture_output=True, timeout=60, check=True)
    assert "Paris" in json.loads(done.stdout)["choices"][0]["text"]


def test_chat_goes_on_as_questions_and_answers(server: Server) -> None:
    words = [*LAMELLA, "chat", "--url", server.url, "--temperature", "0", "--max-tokens", "12"]
    text = "What is the capital of France?\n/quit\n"
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=60, check=True)
    assert "Paris" in done.stdout


def test_a_prompt_that_begins_as_another_is_answered_as_if_alone(server: Server) -> None:
    def ask(**extra: str) -> tuple[str, int]:
        answer = server.client().completions.create(
            model="demo",
            prompt=f"{QUESTION} The capital of France is Paris.\n" * 4 + QUESTION,
            max_tokens=12,
            temperature=0,
            stop="\n",
            extra_body=extra,
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens or 0

    cold, warm, apart = ask(), ask(), ask(cache_salt="another tenant")
    assert apart[1] == 0
    assert warm[1] >= max(cold[1], 32)
    assert cold[0] == warm[0] == apart[0] == " The capital of France is Paris."


def test_bench_has_no_failures(server: Server) -> None:
    words = [*LAMELLA, "bench", server.url, "-c", "1,4", "--output-tokens", "8", "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    levels = json.loads(done.stdout)["levels"]
    assert [level["failures"] for level in levels] == [0, 0]
    assert [level["completion_tokens"] for level in levels] == [32, 64]


def test_two_servers_on_one_port(server: Server, demo: Path) -> None:
    words = [*LAMELLA, "serve", str(demo), "--port", str(server.port)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "is taken by another process" in done.stderr
    assert server.answer() == " The capital of France is Paris."


@pytest.mark.parametrize("stage", [1, 0])
def test_a_killed_stage_is_noticed_and_replaced(server: Server, stage: int) -> None:
    victim = int(server.status()["stages"][stage]["pid"])
    os.kill(victim, signal.SIGKILL)
    assert server.wait_until("/health", 503, 2.0) < 1.5
    server.wait_until("/health", 200, 60.0)
    assert server.answer() == " The capital of France is Paris."
    assert int(server.status()["stages"][stage]["pid"]) != victim


def test_a_killed_gateway_is_replaced(server: Server) -> None:
    titles = {child.pid: child.cmdline() for child in children(server)}
    (gateway,) = (pid for pid, words in titles.items() if "gateway" in " ".join(words))
    os.kill(gateway, signal.SIGKILL)
    server.wait_until("/health", 200, 60.0)
    assert server.answer() == " The capital of France is Paris."


def test_a_truncated_file_ends_the_start_with_its_reason(demo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(demo, broken)
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    words = [*LAMELLA, "serve", str(broken), "--port", str(free_ports(1)[0])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_model_on_a_hub_is_served_at_the_commit_it_had(
    start: Callable[..., Any], hub_class: Any, tmp_path: Path
) -> None:
    folder, run_base, port = tmp_path / "tiny", tmp_path / "run", free_ports(1)[0]
    make = [sys.executable, str(ROOT / "benchmarks" / "models.py"), "tiny", str(folder)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, timeout=120)
    run_base.mkdir()
    with contextlib.closing(hub_class()) as hub:
        commit = hub.push("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
        run = start(
            *(*LAMELLA, "serve", "hf://org/tiny", "--split", "1,3", "--port", str(port)),
            env={
                "HF_ENDPOINT": hub.url,
                "LAMELLA_HOME": str(tmp_path / "home"),
                "XDG_RUNTIME_DIR": str(run_base),
            },
        )
        run.wait_for("tiny is ready at", START_S)
        server = Server(run, port, run_base)
        answer = server.client().completions.create(model="tiny", prompt="w1 w2", max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        config = json.loads(next(run_base.glob("lamella-*/stage-1.json")).read_text())
        assert config["pipeline"]["model_uri"] == f"hf://org/tiny@{commit}"
        assert server.run.end(signal.SIGTERM) == 0


def test_sigterm_leaves_nothing(server: Server) -> None:
    pids = [child.pid for child in children(server)]
    assert len(pids) >= 5
    assert server.run.end(signal.SIGTERM) == 0
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert list(server.run_base.iterdir()) == []
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", server.port))


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.run.process.pid).children(recursive=True)
