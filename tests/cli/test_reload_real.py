"""A manifest that changes under live streams: real stages, a real gateway, the exact text.

pytest -m serve tests/cli/test_reload_real.py      (a minute; a random model is made)
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from lamella.machine import free_ports

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parents[2]
LAMELLA = (sys.executable, "-m", "lamella")
START_S = 120.0
STREAMS, TOKENS = 4, 2000  # longer than it takes to start the new stages


class Stream(threading.Thread):
    """One completion, read in a thread; half of them draw with a seed."""

    def __init__(self, url: str, number: int, tokens: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._body = {
            "model": "tiny",
            "prompt": [11 + number, 7, 5],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "seed": number,
            "temperature": float(number % 2),
        }
        self.text, self.error, self.finish = "", "", ""
        self.pieces = 0
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        with (
            httpx.Client(timeout=120) as http,
            http.stream("POST", f"{self._url}/v1/completions", json=self._body) as response,
        ):
            for line in response.iter_lines():
                if response.status_code != 200:
                    self.error += line
                elif line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, document: dict[str, Any]) -> None:
        self.error += document.get("error", {}).get("message", "")
        for choice in document.get("choices", ()):
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish
            self.pieces += 1
        if self.pieces >= 20:
            self.begun.set()

    def whole(self) -> str:
        self.join(180)
        assert not self.is_alive()
        assert (self.error, self.finish) == ("", "length")
        return self.text


@dataclass
class Serving:
    """`lamella serve MANIFEST`, the manifest, and where it answers."""

    manifest: Path
    port: int
    run_base: Path
    spec: dict[str, Any]
    run: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self, text: str = "", **spec: Any) -> None:
        document = {
            "apiVersion": "lamella.dev/v1alpha1",
            "kind": "ShardedModel",
            "metadata": {"name": "tiny"},
            "spec": self.spec | spec,
        }
        partial = self.manifest.with_suffix(".new")
        partial.write_text(text or json.dumps(document))
        partial.replace(self.manifest)

    def hang_up(self) -> None:
        self.run.process.send_signal(signal.SIGHUP)

    def streams(self, tokens: int) -> list[Stream]:
        return [Stream(self.url, number, tokens) for number in range(STREAMS)]

    def resubmitted(self) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        name = "lamella_requests_resubmitted_total "
        (value,) = (line.removeprefix(name) for line in lines if line.startswith(name))
        return float(value)

    def stages(self) -> list[int]:
        words = [*LAMELLA, "status", "-o", "json"]
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.run_base)}
        done = subprocess.run(words, env=env, capture_output=True, timeout=30, check=False)
        ours = self.run.process.pid  # others may serve on this machine
        (found,) = (run for run in json.loads(done.stdout) if run["pid"] == ours)
        return [int(stage["pid"]) for stage in found["stages"]]


@pytest.fixture
def serving(start: Callable[..., Any], tmp_path: Path) -> Serving:
    folder, run_base = tmp_path / "tiny", tmp_path / "run"
    make = [sys.executable, str(ROOT / "benchmarks" / "models.py"), "tiny", str(folder)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, timeout=120)
    run_base.mkdir()
    spec = {
        "model": {"uri": f"file:{folder}"},
        "pipeline": {"dtype": "float32", "stages": 2},
        "context": {"maxSequences": 8},
    }
    made = Serving(tmp_path / "tiny.yaml", free_ports(1)[0], run_base, spec)
    made.write()
    made.run = start(
        *(*LAMELLA, "serve", str(made.manifest), "--port", str(made.port), "--device", "cpu"),
        env={"XDG_RUNTIME_DIR": str(run_base), "LAMELLA_HOME": str(tmp_path / "home")},
    )
    made.run.wait_for("tiny is ready at", START_S)
    return made


def told(words: str) -> Callable[[str], bool]:
    return lambda line: words in line


def layout(stages: int, **pipeline: Any) -> dict[str, Any]:
    return {"dtype": "float32", "stages": stages, **pipeline}


@pytest.mark.parametrize("drain_s", [0, 600], ids=["moved", "drained"])
def test_streams_go_on_over_a_changed_layout(serving: Serving, drain_s: int) -> None:
    short = [stream.whole() for stream in serving.streams(40)]
    undisturbed = [stream.whole() for stream in serving.streams(TOKENS)]
    before = serving.stages()
    streams = serving.streams(TOKENS)
    assert all(stream.begun.wait(60) for stream in streams)
    serving.write(pipeline=layout(3), drainSeconds=drain_s)
    serving.hang_up()
    serving.run.wait_for(told("3 stages of layers 0-1, 2-2, 3-3 start beside"))
    serving.run.wait_for(told("the manifest is taken up: 3 stages"), 120)
    assert [stream.whole() for stream in streams] == undisturbed
    assert serving.resubmitted() == (0 if drain_s else STREAMS)
    after = serving.stages()
    assert (len(before), len(after)) == (2, 3)
    assert all(psutil.pid_exists(pid) for pid in after)
    assert not any(psutil.pid_exists(pid) for pid in before)
    assert [stream.whole() for stream in serving.streams(40)] == short
    assert serving.run.end() == 0
    assert list(serving.run_base.iterdir()) == []


def test_what_cannot_be_taken_up_changes_nothing(serving: Serving) -> None:
    undisturbed = [stream.whole() for stream in serving.streams(300)]
    before = serving.stages()
    streams = serving.streams(300)
    for change, reason in (
        ({"text": "a: [b"}, "not valid YAML"),
        ({"pipeline": layout(0)}, "pipeline.stages: got 0"),
        ({"pipeline": layout(9)}, "stages: got 9, want at most 4"),
        ({"pipeline": layout(2, split=[1, 2])}, "1+2 makes 3 layers"),
        ({"pipeline": layout(2, stageMemory="1Mi")}, "does not fit"),
        ({"pipeline": {"dtype": "bfloat16", "stages": 3}}, "spec.pipeline.dtype has changed"),
        ({"context": {"maxLength": 100}}, "spec.context.maxLength has changed"),
        ({"model": {"uri": "hf://org/other"}}, "spec.model has changed, and that takes a restart"),
        ({}, "asks for the stages that run"),
    ):
        serving.write(**change)
        serving.hang_up()
        line = serving.run.wait_for(told(reason))
        assert ("is not taken up, all stays as it is: " in line) == bool(change)
    assert [stream.whole() for stream in streams] == undisturbed
    assert serving.stages() == before
    assert serving.resubmitted() == 0
    assert serving.run.end() == 0
