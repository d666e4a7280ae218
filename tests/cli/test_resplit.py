"""What a changed manifest leads to, step by step, for every order of events."""

from dataclasses import replace
from typing import Any

import pytest

from lamella import fit, resplit
from lamella.machine import Machine
from lamella.resplit import Change, Decision, Outcome, Seen
from lamella_contract import names, spec
from lamella_contract.plan import Plan
from lamella_contract.profile import LayerProfile, ModelProfile

GIB = 1 << 30
BESIDE, AFTER = Change("old", "new", beside=True), Change("old", "new", beside=False)
BOTH, OLD, NEW, NONE = (
    frozenset({"old", "new"}),
    frozenset({"old"}),
    frozenset({"new"}),
    frozenset(),
)
DRAIN_S = 30.0


@pytest.mark.parametrize(
    ("change", "seen", "decision"),
    [
        pytest.param(BESIDE, Seen(OLD), Decision(("old",), start="new"), id="begin"),
        pytest.param(BESIDE, Seen(BOTH), Decision(("old", "new")), id="new is loading"),
        pytest.param(BESIDE, Seen(NEW), Decision(("old", "new")), id="old is gone, new loads"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=True), Decision(("new",)), id="new is ready"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=True, old_idle=True), Decision(("new",)),
                     id="idle before the gateway knew"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=True, moved_s=3), Decision(("new",)),
                     id="old has requests"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=False, moved_s=3), Decision(("new",)),
                     id="new falters, and stays"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=True, moved_s=3, old_idle=True),
                     Decision(("new",), end="old"), id="old has nothing left"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=True, moved_s=DRAIN_S),
                     Decision(("new",), end="old"), id="old has had its time"),
        pytest.param(BESIDE, Seen(NEW, new_ready=True, moved_s=31),
                     Decision(("new",), outcome=Outcome.DONE), id="old has ended"),
        pytest.param(BESIDE, Seen(OLD, given_up=True),
                     Decision(("old",), outcome=Outcome.GIVEN_UP), id="new cannot start"),
        pytest.param(BESIDE, Seen(NONE, given_up=True, moved_s=9),
                     Decision(("old",), start="old", outcome=Outcome.GIVEN_UP),
                     id="new dies for good after old has ended"),
        pytest.param(BESIDE, Seen(BOTH, withdrawn=True), Decision(("old",), end="new"),
                     id="withdrawn while it loads"),
        pytest.param(BESIDE, Seen(OLD, withdrawn=True),
                     Decision(("old",), outcome=Outcome.WITHDRAWN), id="withdrawn, has ended"),
        pytest.param(BESIDE, Seen(BOTH, new_ready=True, moved_s=3, withdrawn=True),
                     Decision(("new",)), id="too late to withdraw"),
        pytest.param(AFTER, Seen(NEW, withdrawn=True), Decision(("new",)),
                     id="no room: nothing to withdraw to"),
        pytest.param(AFTER, Seen(OLD), Decision(("new",), end="old"), id="no room: old ends"),
        pytest.param(AFTER, Seen(NONE), Decision(("new",), start="new"), id="no room: new starts"),
        pytest.param(AFTER, Seen(NEW), Decision(("new",)), id="no room: new is loading"),
        pytest.param(AFTER, Seen(NEW, new_ready=True, moved_s=0),
                     Decision(("new",), outcome=Outcome.DONE), id="no room: new is ready"),
        pytest.param(AFTER, Seen(NONE, given_up=True),
                     Decision(("old",), start="old", outcome=Outcome.GIVEN_UP),
                     id="no room: new cannot start, old comes back"),
    ],
)  # fmt: skip
def test_the_next_step(change: Change, seen: Seen, decision: Decision) -> None:
    assert resplit.decide(change, seen, DRAIN_S) == decision


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "after"])
def test_all_steps_lead_to_the_new_one_alone(beside: bool) -> None:
    """Plays every decision out; at no time does nobody run but where there is no room for both."""
    change, running, ready, steps = Change("old", "new", beside), {"old"}, False, []
    moved_s: float | None = None
    for _ in range(12):
        seen = Seen(frozenset(running), new_ready=ready, moved_s=moved_s, old_idle=False)
        decision = resplit.decide(change, seen, DRAIN_S)
        moved_s = 0.0 if ready and moved_s is None else None if moved_s is None else moved_s + 10
        ready = "new" in running
        running = (running | {decision.start} - {""}) - {decision.end}
        steps.append("+".join(sorted(running)))
        if decision.outcome is Outcome.DONE:
            break
    seen_once = list(dict.fromkeys(steps))
    assert seen_once == (["new+old", "new"] if beside else ["", "new"])


def manifest(**changes: Any) -> spec.ShardedModel:
    document = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": changes.pop("name", "tiny")},
        "spec": {"model": {"uri": "hf://org/tiny"}, "pipeline": {"stages": 2}} | changes,
    }
    return spec.parse(document)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, ""),
        ({"pipeline": {"stages": 3}}, ""),
        ({"pipeline": {"stages": 2, "stageMemory": "4Gi"}}, ""),
        ({"context": {"maxSequences": 3}}, ""),
        ({"drainSeconds": 5, "replicas": 2}, ""),
        ({"name": "other"}, "metadata.name"),
        ({"model": {"uri": "hf://org/other"}}, "spec.model"),
        ({"model": {"uri": "hf://org/tiny", "servedName": "x"}}, "spec.model"),
        ({"pipeline": {"stages": 2, "dtype": "float32"}}, "spec.pipeline.dtype"),
        (
            {"pipeline": {"stages": 2, "quantization": "int8"}},
            "spec.pipeline.quantization",
        ),
        ({"context": {"maxLength": 77}}, "spec.context.maxLength"),
        ({"gateway": {"apiKeysSecretRef": {"name": "s", "key": "k"}}}, "spec.gateway"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_needs_a_restart(changes: dict[str, Any], field: str) -> None:
    assert resplit.needs_restart(manifest(), manifest(**changes)) == field


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"drainSeconds": 5}, True),
        ({"pipeline": {"stages": 2, "split": [1, 3]}}, False),
        ({"pipeline": {"stages": 3}}, False),
        ({"context": {"maxSequences": 3}}, False),
    ],
    ids=["times", "split", "stages", "context"],
)
def test_what_is_another_layout(changes: dict[str, Any], same: bool) -> None:
    assert resplit.same_layout(manifest(), manifest(**changes)) is same


PROFILE = ModelProfile(
    uri="file:/models/tiny",
    commit="c0ffee",
    family="llama",
    dtype="bfloat16",
    hidden_size=64,
    vocab_size=1000,
    max_model_len=32768,
    layers=(LayerProfile(GIB // 2, 4096, 0, "full_attention"),) * 8,
    embedding_bytes=0,
    head_bytes=0,
    final_bytes=0,
    tied=True,
    boundary_bytes_per_token=128,
    allowed_cuts=tuple(range(1, 8)),
)


def planned(stages: int, here: Machine, device: str) -> Plan:
    wanted = replace(manifest().spec, pipeline=spec.PipelineSpec(stages=stages))
    return fit.local(PROFILE, wanted, here, device)


def cpu(free_gib: float) -> Machine:
    return Machine((0, 1), int(free_gib * GIB))


def gpus(*free_gib: float) -> Machine:
    return Machine((0, 1), 64 * GIB, tuple(int(free * GIB) for free in free_gib))


@pytest.mark.parametrize(
    ("device", "at_start", "free_now", "both"),
    [
        pytest.param("cpu", cpu(64), cpu(57), True, id="a large machine"),
        pytest.param("cpu", cpu(14), cpu(8), True, id="just enough"),
        pytest.param("cpu", cpu(12), cpu(6), False, id="too small for two of 4 GiB"),
        pytest.param("cpu", cpu(12), cpu(11), False, id="what is promised is not taken yet"),
        pytest.param("cpu", cpu(64), cpu(5), False, id="others have taken it"),
        pytest.param("cuda", gpus(24, 24), gpus(2, 2), False, id="caches fill the GPUs"),
    ],
)
def test_whether_there_is_room_for_both(
    device: str, at_start: Machine, free_now: Machine, both: bool
) -> None:
    old = planned(2, at_start, device)
    empty = resplit.without(old, free_now, at_start, device)
    new = planned(3, empty, device)
    assert resplit.both_fit(old, new, empty, device) is both
    for needs, room in zip(
        resplit.device_bytes(new, device, len(empty.gpu_free_bytes)),
        (empty.free_bytes,) if device == "cpu" else empty.gpu_free_bytes,
        strict=True,
    ):
        assert needs <= room


def test_gpus_are_counted_each() -> None:
    """Two stages on two GPUs, then three: the first GPU gets two of them."""
    here = gpus(40, 40)
    old, new = planned(2, here, "cuda"), planned(3, here, "cuda")
    first, second = resplit.device_bytes(new, "cuda", 2)
    needs = [stage.needed_bytes(new.kv_tokens) for stage in new.stages]
    assert (first, second) == (needs[0] + needs[2], needs[1])
    held = resplit.device_bytes(old, "cuda", 2)
    room = tuple(a + b for a, b in zip(held, (first, second), strict=True))
    assert resplit.both_fit(old, new, Machine((0,), 0, room), "cuda")
    assert not resplit.both_fit(old, new, Machine((0,), 0, (room[0], room[1] - 1)), "cuda")
