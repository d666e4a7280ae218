"""The forking parent, as a real process with real children: crashes, hangs, signals, its death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lamella_contract.config import PipelineConfig, StageConfig

# The child writes a line when it starts, then does what its behaviour says. Waiting is reading
# from a pipe that never speaks, so nothing sleeps.
SCRIPT = """
import os, signal, sys
from lamella_contract.config import StageConfig
from lamella_worker.process.nursery import Nursery
from pathlib import Path

configs = [StageConfig.from_json(Path(p).read_text()) for p in sys.argv[2:]]
silence, _ = os.pipe()
births = {config.stage: 0 for config in configs}

def stage_main(config, pulse):
    os.write(1, f"{config.stage} {os.getpid()}\\n".encode())  # one call: lines do not mix
    if sys.argv[1] == "permanent":
        return 78
    if sys.argv[1] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.argv[1] == "wedged":
        pulse.busy()
    os.read(silence, 1)
    return 0

sys.exit(Nursery(configs, stage_main).run())
"""


def config(stage: int, *, replace_after_s: float) -> StageConfig:
    pipeline = PipelineConfig(
        name="test",
        model_uri="file:/model",
        model_path="/model",
        commit="",
        num_layers=2,
        splits=(0, 1),
        dtype="float32",
        block_size=16,
        num_blocks=8,
        max_sequences=2,
        max_model_len=128,
        max_step_tokens=64,
        max_queued_tokens=256,
        eos_token_ids=(1,),
        vocab_size=100,
    )
    return StageConfig(
        pipeline=pipeline,
        stage=stage,
        device="cpu",
        threads=1,
        cpu=None,
        control_address="tcp://127.0.0.1:1",
        gateway_address="",
        data_bind="tcp://127.0.0.1:*",
        http_address="127.0.0.1:0",
        key_file="/none",
        peer_keys=(),
        cache_dir="",
        hub_token_file="",
        replace_after_s=replace_after_s,
    )


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the parent with two children that behave as told; ends it after the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(behaviour: str, replace_after_s: float = 60.0) -> subprocess.Popen[str]:
        paths = []
        for stage in range(2):
            path = tmp_path / f"stage-{stage}.json"
            path.write_text(config(stage, replace_after_s=replace_after_s).to_json())
            paths.append(str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, behaviour, *paths],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def births(process: subprocess.Popen[str], count: int) -> dict[int, int]:
    """The next `count` children that announce themselves: stage -> pid."""
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(count)]
    return {int(stage): int(pid) for stage, pid in lines}


def gone(pid: int) -> bool:
    """Wait until the process has ended."""
    try:
        psutil.Process(pid).wait(timeout=5)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_killed_stage_is_forked_again_and_the_other_is_left_alone(start: Start) -> None:
    parent = start("serve")
    first = births(parent, 2)
    os.kill(first[1], signal.SIGKILL)
    again = births(parent, 1)
    assert again[1] != first[1]
    assert psutil.pid_exists(first[0])


@pytest.mark.parametrize("behaviour", ["serve", "stubborn"])
def test_sigterm_ends_every_child_and_the_parent(start: Start, behaviour: str) -> None:
    parent = start(behaviour)
    children = births(parent, 2)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=2.5) == 0
    assert all(not psutil.pid_exists(pid) for pid in children.values())


def test_children_do_not_outlive_a_killed_parent(start: Start) -> None:
    parent = start("serve")
    children = births(parent, 2)
    parent.kill()
    assert all(gone(pid) for pid in children.values())


def test_a_wedged_stage_is_killed_and_forked_again(start: Start) -> None:
    parent = start("wedged", replace_after_s=0.3)
    first = births(parent, 2)
    again = births(parent, 2)
    assert set(first.values()).isdisjoint(again.values())


def test_a_stage_that_cannot_work_ends_everything_with_78(start: Start) -> None:
    parent = start("permanent")
    assert parent.wait(timeout=5) == 78


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage-0.json"
    path.write_text(json.dumps({"stage": 0}))
    done = subprocess.run(
        [sys.executable, "-m", "lamella_worker", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
