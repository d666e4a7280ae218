"""The comparison's figures, its table and its words: what is counted, and what is never dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.peers import faults, gguf_model, limits, measure, report, systems

from lamella import bench
from lamella.bench_client import Sample

FILES = systems.Files(Path("/m/model"), Path("/m/model.gguf"))
TOOLS = systems.Tools(Path("/p/vllm"), Path("/p/llama"), Path("/p/hf"))


def level(
    concurrency: int, rate: float, failures: int = 0, tokens: int | None = None
) -> bench.Level:
    """A level whose times follow from its rate."""
    good = concurrency - failures
    return bench.Level(
        concurrency=concurrency,
        requests=concurrency,
        failures=failures,
        prompt_tokens=64 * good,
        completion_tokens=128 * good if tokens is None else tokens,
        wall_s=1.0,
        output_tokens_per_s=rate,
        requests_per_s=rate / 128,
        ttft_ms_p50=50.0,
        ttft_ms_p99=60.0,
        tpot_ms_p50=1e3 * concurrency / max(rate, 1.0),
        tpot_ms_p99=1.0,
        itl_ms_p50=1.0,
        itl_ms_p99=2.0,
        first_error="HTTP 500: gone" if failures else "",
    )


def turn(system: str, number: int, it: bench.Level, **cpu_us: float) -> measure.Turn:
    return measure.Turn(system, number, it, cpu_us, 10.0)


def test_a_cell_is_the_median_and_failures_are_summed() -> None:
    turns = [
        turn("a", n, level(4, rate, failures), gateway=40.0, supervisor=2.0, stage=900.0)
        for n, (rate, failures) in enumerate([(100.0, 0), (300.0, 1), (110.0, 0)])
    ]
    cell = measure.summarize(turns)
    assert (cell.tokens_per_s, cell.lowest, cell.highest) == (110.0, 100.0, 300.0)
    assert (cell.requests, cell.failures, cell.first_error) == (12, 1, "HTTP 500: gone")
    assert (cell.cpu_us, cell.server_us) == (942.0, 42.0)
    assert cell.short == 0


def test_tokens_that_did_not_come_are_told() -> None:
    results = measure.Results([turn("llama-1", 1, level(4, 80.0, tokens=500), server=1.0)])
    assert "12 tokens short" in report.table(results, [4])


def test_the_table_names_what_is_missing_and_divides_by_each_peer() -> None:
    results = measure.Results(missing={"llama-1": "there is no cmake"})
    for number, (ours, theirs) in enumerate([(60.0, 30.0), (66.0, 33.0), (70.0, 35.0)]):
        results.turns.append(turn("lamella-2", number, level(1, ours), gateway=30.0))
        results.turns.append(turn("vllm-2", number, level(1, theirs), server=9.0))
    text = report.table(results, [1, 4])
    assert "| llama.cpp, 1 thread | - | - | - | not measured |" in text
    assert "llama.cpp, 1 thread is not measured: there is no cmake" in text
    assert "| vLLM, 2 stages, a core each | 2.00 | - |" in text
    ours = "| Lamella, 2 stages in turn | 66.0 (15.2; 50) | - | 30, gateway and supervisor 30 |"
    assert ours in text


@pytest.mark.parametrize("system", systems.SYSTEMS, ids=lambda system: system.key)
def test_every_system_is_pinned_to_the_two_cores_and_serves_on_its_first_port(
    system: systems.System,
) -> None:
    ports = (9001, 9002, 9003)[: system.ports]
    made = system.build(TOOLS, FILES, (4, 7), ports)
    assert made
    for process in made:
        assert set(process.cores) <= {4, 7}
    words = [word for process in made for word in process.argv]
    assert "9001" in words
    assert any(str(FILES.folder) in word for word in words)
    killed = [process for process in made if process.kill is not None]
    assert len(killed) == (
        1 if system.stages == 2 and system.peer != "transformers" else len(killed)
    )


def test_each_stage_of_a_pair_has_a_core_of_its_own_or_both() -> None:
    by_key = {system.key: system for system in systems.SYSTEMS}
    binds = {
        key: [p.env.get("VLLM_CPU_OMP_THREADS_BIND") for p in by_key[key].build(*given)]
        for key in ("vllm-1", "vllm-1b", "vllm-2", "vllm-2b", "vllm-2n")
        for given in [(TOOLS, FILES, (0, 1), (9001, 9002)[: by_key[key].ports])]
    }
    assert binds == {
        "vllm-1": ["0"],
        "vllm-1b": ["0,1"],
        "vllm-2": ["0|1"],
        "vllm-2b": ["0,1|0,1"],
        "vllm-2n": ["0", "1"],
    }
    rpc = by_key["llama-2"].build(TOOLS, FILES, (0, 1), (9001, 9002, 9003))
    assert [process.cores for process in rpc] == [(0,), (1,), (0, 1)]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("model.layers.3.mlp.up_proj.weight", "blk.3.ffn_up.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ],
)
def test_names_in_gguf(name: str, want: str) -> None:
    assert gguf_model.gguf_name(name) == want


def test_the_longest_silence_counts_the_beginning_and_the_end() -> None:
    assert faults.longest_silence([1.0, 1.5], 4.5) == 3.0
    assert faults.longest_silence([5.0, 5.5], 6.0) == 5.0
    assert faults.longest_silence([], 2.0) == 2.0


@pytest.mark.parametrize(
    ("health", "want"),
    [
        ([(9.0, True), (10.0, True), (12.0, False), (14.0, True)], 2.0 + 6.0),
        ([(10.0, False), (12.0, False)], 0.0),
        ([], 0.0),
    ],
    ids=["true, false, true", "honest", "nothing heard"],
)
def test_how_long_the_health_page_lies(health: list[tuple[float, bool]], want: float) -> None:
    assert faults.lies_s(health, killed_s=10.0, until_s=20.0) == want


def test_what_clients_saw_of_a_kill() -> None:
    samples = [
        (Sample((0.1, 0.2), 64, 160), 9.0, True),
        (Sample(error="HTTP 500: dead"), 4.0, True),
        (Sample(error="the stream ended early"), 330.0, False),
    ]
    seen = faults.summarize("x", samples, [1.0, 3.0, 329.0], 1.5, None, 8.0, True, 330.0)
    assert (seen.whole, seen.failed, seen.hanging) == (1, 1, 1)
    assert (seen.first_failure_s, seen.longest_silence_s) == (2.5, 329.0)
    text = faults.table([("X", seen)], {"llama-2": "there is no cmake"})
    assert "never: it ended" in text
    assert "llama-2 is not there: there is no cmake" in text
    assert "X: HTTP 500: dead" in text


def test_a_step_reads_all_weights_but_the_embedding(tmp_path: Path) -> None:
    spans = {
        "model.embed_tokens.weight": {"data_offsets": [0, 1000]},
        "lm_head.weight": {"data_offsets": [1000, 1600]},
        "model.norm.weight": {"data_offsets": [1600, 1616]},
        "__metadata__": {"format": "pt"},
    }
    header = json.dumps(spans).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert limits.step_bytes(tmp_path) == 616


def test_ours_is_held_against_its_own_steps_and_the_bandwidth() -> None:
    results = measure.Results(floors=[measure.Floor(255_000_000, 17e9)])
    for key, rate in (("lamella-1", 50.0), ("lamella-2", 47.6)):
        it = replace(level(1, rate), possible_tokens_per_s=50.0)
        results.turns.append(turn(key, 1, it, gateway=30.0))
    text = "\n".join(report.limits(results, [1, 4]))
    assert "Lamella, 2 stages in turn: 1: 95% of 50 tok/s." in text
    assert "Two stages less one, per token at 1: 1.01 ms." in text
    assert "255 MB per step at 17.0 GB/s = 15.0 ms; two stages need 1.40 times that." in text


def test_rounds_are_kept_for_a_later_call() -> None:
    results = measure.Results([turn("lamella-2", 1, level(4, 100.0, 1), gateway=30.0)])
    results.floors.append(measure.Floor(255, 17.0))
    results.missing["vllm-1"] = "no g++"
    again = measure.Results.of_json(json.loads(json.dumps(results.as_json())))
    assert again.turns == results.turns
    assert again.floors == results.floors
    assert again.missing == {}, "it is tried anew"


@pytest.mark.parametrize(
    ("key", "concurrency", "due"),
    [
        ("lamella-2", 16, [0, 1, 2, 3, 4]),
        ("vllm-2", 64, [0, 2, 4]),
        ("llama-2", 1, [0, 2, 4]),
        ("hf-2", 64, [0]),
    ],
)
def test_in_which_rounds_there_is_a_turn(key: str, concurrency: int, due: list[int]) -> None:
    (system,) = (system for system in systems.SYSTEMS if system.key == key)
    assert [n for n in range(5) if measure.is_due(system, concurrency, n)] == due
