"""`python -m lamella_worker`: where its configuration comes from, and what SIGTERM does to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamella_contract import names
from lamella_contract.config import StageConfig

WORKER = [sys.executable, "-m", "lamella_worker"]
Config = Callable[..., StageConfig]


def run(*words: str, config: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != names.ENV_STAGE_CONFIG}
    if config is not None:
        environment[names.ENV_STAGE_CONFIG] = config
    return subprocess.run(
        [*WORKER, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("words", "config", "said"),
    [
        pytest.param((), None, "no --config and no LAMELLA_STAGE_CONFIG", id="neither"),
        pytest.param(("--config", "/x"), "{}", "--config and LAMELLA_STAGE_CONFIG", id="both"),
        pytest.param(("--config", "/no/file"), None, "--config /no/file: ", id="no-such-file"),
        pytest.param((), '{"stage": 0}', "LAMELLA_STAGE_CONFIG: pipeline: missing", id="variable"),
        pytest.param((), "[", "LAMELLA_STAGE_CONFIG: not valid JSON", id="no-json"),
    ],
)
def test_a_configuration_that_is_none_is_refused_by_name(
    words: tuple[str, ...], config: str | None, said: str
) -> None:
    done = run(*words, config=config)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_of_a_newer_version_leaves_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run(config=json.dumps({"termination_log": str(log), "newer": 1}))
    assert done.returncode == 2
    words = json.loads(log.read_text())
    assert words["kind"] == "invalid_config"
    assert "newer: unknown field" in words["message"]


def test_a_stage_from_the_environment_that_cannot_work_says_why(
    config: Config, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    stage = config(1, termination_log=str(log), key_file=str(tmp_path / "no.key.json"))
    done = run(config=stage.to_json())
    assert done.returncode == 78
    words = json.loads(log.read_text())
    assert words["kind"] == "invalid_config"
    assert re.search(r"key_file='.*no\.key\.json'", words["message"])


def in_own_namespace() -> list[str]:
    """Words that make the command process 1; empty where the system lets nobody do so."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    try:
        done = subprocess.run([*words, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return []
    return words if done.returncode == 0 else []


def test_process_1_ends_at_sigterm_while_it_still_imports(config: Config) -> None:
    namespace = in_own_namespace()
    if not namespace:
        pytest.skip("no namespaces here")
    # What is imported first tells that Python runs; a handler is there before anything else.
    script = (
        "import os, runpy, sys; sys.argv = ['lamella_worker']\n"
        "class Gate:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'lamella_contract':\n"
        "            os.write(1, b'%d importing\\n' % os.getpid()); os.read(0, 1)\n"
        "sys.meta_path.insert(0, Gate())\n"
        "runpy.run_module('lamella_worker', run_name='__main__', alter_sys=True)\n"
    )
    with subprocess.Popen(
        [*namespace, sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {names.ENV_STAGE_CONFIG: config(0).to_json()},
    ) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"1 importing\n"
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert outer.wait(timeout=10) == 0
