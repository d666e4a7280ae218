"""`lamella serve` as a user starts it: the real command, twins for worker and gateway.

The model's config and headers are real (a tiny one, made here); no tensor is ever read.
"""

import json
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lamella.machine import free_ports

TWINS = Path(__file__).parent / "twins"
LAYERS, HIDDEN, VOCAB, INNER = 4, 32, 64, 64
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def tensors() -> dict[str, list[int]]:
    shapes = {"model.embed_tokens.weight": [VOCAB, HIDDEN], "lm_head.weight": [VOCAB, HIDDEN]}
    shapes["model.norm.weight"] = [HIDDEN]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": [HIDDEN, HIDDEN],
            f"{prefix}self_attn.k_proj.weight": [HIDDEN // 2, HIDDEN],
            f"{prefix}self_attn.v_proj.weight": [HIDDEN // 2, HIDDEN],
            f"{prefix}self_attn.o_proj.weight": [HIDDEN, HIDDEN],
            f"{prefix}mlp.gate_proj.weight": [INNER, HIDDEN],
            f"{prefix}mlp.up_proj.weight": [INNER, HIDDEN],
            f"{prefix}mlp.down_proj.weight": [HIDDEN, INNER],
            f"{prefix}input_layernorm.weight": [HIDDEN],
            f"{prefix}post_attention_layernorm.weight": [HIDDEN],
        }
    return shapes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, offset = {}, 0
    for name, shape in tensors().items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    weights = struct.pack("<Q", len(text)) + text + bytes(offset)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def ready_file(tmp_path: Path) -> Path:
    return tmp_path / "ready"


@pytest.fixture
def run_base(tmp_path: Path) -> Path:
    """Where run directories are made; nothing may be left in it."""
    base = tmp_path / "run"
    base.mkdir()
    return base


@pytest.fixture
def lamella(
    start: Callable[..., Any], tmp_path: Path, ready_file: Path, run_base: Path
) -> Callable[..., Any]:
    def begin(*words: str, **env: str) -> Any:
        return start(
            *(sys.executable, "-m", "lamella", *words),
            env={
                "PYTHONPATH": str(TWINS),
                "TWIN_READY": str(ready_file),
                "XDG_RUNTIME_DIR": str(run_base),
                "LAMELLA_HOME": str(tmp_path / "home"),
                "COLUMNS": "160",
                **env,
            },
        )

    return begin


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def serving(
    lamella: Callable[..., Any], model: Path, port: int, ready_file: Path
) -> Callable[[], Any]:
    def begin() -> Any:
        run = lamella("serve", str(model), "--stages", "2", "--port", str(port), "--device", "cpu")
        run.wait_for("stage 1: ")
        ready_file.touch()
        run.wait_for("tiny is ready at")
        return run

    return begin


def processes_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_from_start_to_stop(
    lamella: Callable[..., Any],
    model: Path,
    port: int,
    ready_file: Path,
    run_base: Path,
    is_gone: Callable[[int], bool],
) -> None:
    run = lamella("serve", str(model), "--stages", "2", "--port", str(port), "--device", "cpu")
    run.wait_for(lambda line: line.startswith("stage 1: ") and "50 MiB/s, 1.5 s left" in line)
    ready_file.touch()
    run.wait_for(lambda line: line.split()[:4] == ["0", "0", "to", "1"])
    run.wait_for(f"tiny is ready at http://127.0.0.1:{port} (context 256 tokens")
    line = run.wait_for(f"curl http://127.0.0.1:{port}/v1/completions")
    assert json.loads(line.split(" -d ")[1].strip("'"))["model"] == "tiny"
    (run_dir,) = run_base.iterdir()
    keys = sorted(path.name for path in run_dir.glob("*.key.json"))
    assert keys == ["gateway-0.key.json", "stage-0.key.json", "stage-1.key.json"]
    children = processes_of(run.process.pid)
    assert len(children) >= 4  # janitor, worker parent, two stages, gateway

    assert run.end(signal.SIGINT) == 0
    assert all(is_gone(child.pid) for child in children)
    assert list(run_base.iterdir()) == []


def test_ctrl_c_while_it_plans(
    lamella: Callable[..., Any], model: Path, port: int, run_base: Path
) -> None:
    run = lamella("serve", str(model), "--port", str(port), "--device", "cpu")
    while not any(run_base.iterdir()):
        assert run.process.poll() is None
    assert run.end(signal.SIGINT) == 0
    assert list(run_base.iterdir()) == []


def test_a_killed_child_comes_back(serving: Callable[[], Any]) -> None:
    run = serving()
    gateway = next(
        child for child in processes_of(run.process.pid) if "lamella_gateway" in child.cmdline()
    )
    gateway.kill()
    run.wait_for("supervisor WARNING gateway ended with signal SIGKILL; starting again")
    again = [c for c in processes_of(run.process.pid) if "lamella_gateway" in c.cmdline()]
    assert [child.pid for child in again] != [gateway.pid]
    assert run.end() == 0


def test_it_says_when_it_is_not_ready_and_when_it_is_again(
    serving: Callable[[], Any], ready_file: Path
) -> None:
    run = serving()
    ready_file.unlink()
    run.wait_for(lambda line: line.endswith("not ready: stage 1 is loading"))
    ready_file.touch()
    run.wait_for(lambda line: line.endswith("ready again"))


def test_status_says_what_runs(serving: Callable[[], Any], lamella: Callable[..., Any]) -> None:
    none = lamella("status")
    assert "nothing runs here" in none.rest()
    assert none.process.returncode == 1
    run = serving()
    status = lamella("status", "-o", "json")
    text = status.rest()
    assert status.process.returncode == 0
    (found,) = json.loads(text)
    assert found["ready"] is True
    assert [stage["state"] for stage in found["stages"]] == ["serving", "serving"]
    assert found["pid"] == run.process.pid


def test_a_failing_stage_ends_the_run_with_its_reason(
    lamella: Callable[..., Any], model: Path, port: int, run_base: Path
) -> None:
    reason = "model.safetensors ends at byte 17"
    run = lamella("serve", str(model), "--port", str(port), "--device", "cpu", TWIN_FAIL=reason)
    assert run.rest().splitlines()[-1] == f"lamella: stage-0: {reason}"
    assert run.process.returncode == 2
    assert list(run_base.iterdir()) == []


def test_two_servers_on_one_port(
    serving: Callable[[], Any], lamella: Callable[..., Any], model: Path, port: int
) -> None:
    first = serving()
    second = lamella("serve", str(model), "--port", str(port))
    assert second.rest().startswith(f"lamella: --port: 127.0.0.1:{port} is taken by another")
    assert second.process.returncode == 2
    assert first.process.poll() is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "nowhere"], "lamella: nowhere: no such file or folder"),
        (["plan", "MODEL", "--stages", "5"], "lamella: stages: got 5, want at most 4"),
        (["plan", "MODEL", "--split", "1,2"], "lamella: split: 1+2 makes 3 layers"),
        (["plan", "MODEL", "--stage-memory", "1Gi", "--stages", "2", "--max-model-len", "999"],
         "lamella: context: got 999 tokens, the model takes at most 256"),
        (["plan", "MODEL", "--stage-memory", "100Mi"], "lamella: does not fit: stage 3 of 4"),
        (["plan", "MODEL", "--quantization", "int4"],
         "lamella: --quantization: got 'int4', want one of none, int8"),
        (["serve", "MODEL", "--quantization", "int8", "--runner", "packed"],
         "lamella: --runner: got 'packed', want one of auto, fast"),
        (["plan", "MODEL", "-o", "xml"], "lamella: --output: got 'xml', want one of table, json"),
        (["serve", "MODEL", "--stages", "two"], "lamella: Invalid value for '--stages'"),
        (["serve", "MODEL", "--device", "tpu"], "lamella: --device: got 'tpu'"),
        (["serve", "EMPTY"], "lamella: EMPTY: no config.json in it"),
        (["serve", "MODEL", "--api-keys", "gone"], "lamella: --api-keys: got 'gone'"),
        (["chat", "--url", "http://127.0.0.1:9"], "lamella: http://127.0.0.1:9: no answer"),
        (["bench", "-c", "1,x"], "lamella: --concurrency: got '1,x'"),
        (["sing"], "lamella: No such command 'sing'"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    lamella: Callable[..., Any], model: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"MODEL": str(model), "EMPTY": str(empty)}
    run = lamella(*(places.get(word, word) for word in words))
    text = run.rest()
    assert text.startswith(message.replace("EMPTY", str(empty)))
    assert len(text.splitlines()) == 1
    assert run.process.returncode == 2


def test_a_plan_is_printed_without_loading_anything(
    lamella: Callable[..., Any], model: Path
) -> None:
    manifest = {
        "apiVersion": "lamella.dev/v1alpha1",
        "kind": "ShardedModel",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"uri": f"file:{model}"}, "pipeline": {"stageMemory": "2Gi"}},
    }
    path = model.parent / "tiny.yaml"
    path.write_text(json.dumps(manifest))
    small = json.loads(lamella("plan", str(path), "-o", "json", "--quantization", "int8").rest())
    assert small["model"]["quantization"] == "int8"
    run = lamella("plan", str(path), "-o", "json")
    plan = json.loads(run.rest())
    assert small["stages"][0]["weight_bytes"] < plan["stages"][0]["weight_bytes"]
    assert [(s["first_layer"], s["last_layer"]) for s in plan["stages"]] == [(0, 4)]
    assert plan["stages"][0]["weight_bytes"] == sum(
        2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in tensors().values()
    )


def test_an_old_python_is_told_so() -> None:
    text = (Path(sys.modules["lamella"].__path__[0]) / "__main__.py").read_text()
    compile(text, "__main__.py", "exec", flags=0, dont_inherit=True)
    fake = text.replace("sys.version_info", "(3, 9)")
    with pytest.raises(SystemExit, match=r"want 3\.11 or newer"):
        exec(compile(fake, "__main__.py", "exec"), {"__name__": "other"})


@pytest.fixture
def reloading(
    lamella: Callable[..., Any], model: Path, port: int, ready_file: Path
) -> Callable[..., Any]:
    """Writes the manifest; the first time it also serves it, then sends SIGHUP."""
    path, runs = model.parent / "tiny.yaml", []

    # caches for what can be asked of such a context take all that they may, on any machine
    config = CONFIG | {"max_position_embeddings": 1 << 20}
    (model / "config.json").write_text(json.dumps(config))

    def write(stages: int, **context: int) -> Any:
        document = {
            "apiVersion": "lamella.dev/v1alpha1",
            "kind": "ShardedModel",
            "metadata": {"name": "tiny"},
            "spec": {
                "model": {"uri": f"file:{model}"},
                "pipeline": {"stages": stages},
                "context": context,
                "drainSeconds": 0,
            },
        }
        path.write_text(json.dumps(document))
        if runs:
            runs[0].process.send_signal(signal.SIGHUP)
        else:
            ready_file.touch()
            words = ("--port", str(port), "--device", "cpu")
            runs.append(lamella("serve", str(path), *words))
            runs[0].wait_for("tiny is ready at")
        return runs[0]

    return write


def workers(run: Any) -> list[int]:
    found = processes_of(run.process.pid)
    return [p.pid for p in found if "lamella.warm" in p.cmdline() and p.ppid() == run.process.pid]


@pytest.mark.parametrize(
    ("context", "order"),
    [({}, "start beside the old ones"), ({"maxSequences": 65_536}, "after the old ones end")],
    ids=["room", "no room"],
)
def test_a_changed_manifest_is_taken_up(
    reloading: Callable[..., Any],
    is_gone: Callable[[int], bool],
    context: dict[str, int],
    order: str,
    run_base: Path,
) -> None:
    run = reloading(2, **context)
    (old,) = workers(run)
    gateway = [p.pid for p in processes_of(run.process.pid) if "lamella_gateway" in p.cmdline()]
    reloading(3, **context)
    run.wait_for(lambda line: order in line)
    run.wait_for(lambda line: line.endswith("taken up: 3 stages of layers 0-0, 1-2, 3-3 serve"))
    assert is_gone(old)
    (new,) = workers(run)
    (status,) = (json.loads(path.read_text()) for path in run_base.glob("*/status.json"))
    assert status["splits"] == [0, 1, 3]
    reloading(2, **context)
    run.wait_for(lambda line: line.endswith("taken up: 2 stages of layers 0-1, 2-3 serve"))
    assert is_gone(new)
    assert gateway == [
        p.pid for p in processes_of(run.process.pid) if "lamella_gateway" in p.cmdline()
    ]
    assert run.end() == 0
    assert list(run_base.iterdir()) == []


@pytest.mark.parametrize("context", [{}, {"maxSequences": 65_536}], ids=["room", "no room"])
def test_new_stages_that_cannot_start_leave_or_bring_back_the_old_ones(
    reloading: Callable[..., Any],
    ready_file: Path,
    run_base: Path,
    context: dict[str, int],
    lamella: Callable[..., Any],
) -> None:
    run = reloading(2, **context)
    (old,) = workers(run)
    broken = ready_file.with_name("ready.broken")
    broken.touch()
    reloading(3, **context)
    run.wait_for(lambda line: line.endswith("old stages serve: worker-2: the slice cannot be read"))
    broken.unlink()
    (address,) = (path.read_text().split() for path in run_base.glob("*/pipelines"))
    (config,) = (json.loads(path.read_text()) for path in run_base.glob("*/stage-0.json"))
    assert address == [config["gateway_address"]]
    if not context:
        assert workers(run) == [old]
    reloading(4, **context)
    run.wait_for(lambda line: "taken up: 4 stages" in line)
    assert run.end() == 0


def test_what_is_asked_meanwhile_withdraws_what_still_loads(
    reloading: Callable[..., Any], ready_file: Path, is_gone: Callable[[int], bool]
) -> None:
    run = reloading(2)
    (old,) = workers(run)
    ready_file.unlink()
    reloading(3)
    run.wait_for(lambda line: "3 stages of layers 0-0, 1-2, 3-3 start beside" in line)
    reloading(2)
    run.wait_for(lambda line: line.endswith("the manifest asks for the stages that run"))
    assert workers(run) == [old]
    reloading(3)
    run.wait_for(lambda line: "3 stages of layers 0-0, 1-2, 3-3 start beside" in line)
    reloading(4)
    run.wait_for(lambda line: "4 stages of layers 0-0, 1-1, 2-2, 3-3 start beside" in line)
    ready_file.touch()
    run.wait_for(lambda line: "taken up: 4 stages" in line)
    assert is_gone(old)
    assert run.end() == 0
