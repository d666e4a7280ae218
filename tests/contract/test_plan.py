"""The planner against brute force, on tables, and its refusals word by word.

``pytest tests/contract/test_plan.py``
"""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lamella_contract.errors import DoesNotFit, ForbiddenCut, PlanError
from lamella_contract.plan import Plan, plan
from lamella_contract.profile import LayerProfile, ModelProfile

MIB, GIB = 1 << 20, 1 << 30
ANY = object()


def model(
    layers: list[LayerProfile] | int,
    *,
    weight: int = 100 * MIB,
    kv: int = 4096,
    embedding: int = 0,
    head: int = 0,
    final: int = 0,
    tied: bool = False,
    cuts: tuple[int, ...] | None = None,
    max_model_len: int = 4096,
    reason: str = "",
) -> ModelProfile:
    if isinstance(layers, int):
        layers = [LayerProfile(weight, kv, 0, "full_attention")] * layers
    return ModelProfile(
        uri="hf://org/name",
        commit="c0ffee",
        family="llama",
        dtype="bfloat16",
        hidden_size=64,
        vocab_size=1000,
        max_model_len=max_model_len,
        layers=tuple(layers),
        embedding_bytes=embedding,
        head_bytes=head,
        final_bytes=final,
        tied=tied,
        boundary_bytes_per_token=128,
        allowed_cuts=tuple(range(len(layers))) if cuts is None else cuts,
        cut_reason=reason,
    )


def counts(made: Plan) -> list[int]:
    return [stage.num_layers for stage in made.stages]


# -- balance ------------------------------------------------------------------------------------

BALANCED = {
    "one stage": ({"layers": 5}, {"stages": 1}, [5]),
    "even": ({"layers": 16}, {"stages": 2}, [8, 8]),
    "uneven": ({"layers": 7}, {"stages": 3}, [2, 2, 3]),
    "as many as layers": ({"layers": 4}, {"stages": 4}, [1, 1, 1, 1]),
    "a big vocabulary's head makes the last stage short": (
        {"layers": 16, "embedding": 400 * MIB, "head": 400 * MIB},
        {"stages": 2},
        [10, 6],
    ),
    "a tied head weighs the same": (
        {"layers": 16, "embedding": 400 * MIB, "head": 400 * MIB, "tied": True},
        {"stages": 2},
        [10, 6],
    ),
    "the embedding is not streamed": (
        {"layers": 16, "embedding": 800 * MIB},
        {"stages": 2},
        [8, 8],
    ),
    "a head heavier than all layers": (
        {"layers": 4, "head": 4000 * MIB},
        {"stages": 2},
        [3, 1],
    ),
    "only some cuts": ({"layers": 12, "cuts": (0, 4, 10)}, {"stages": 2}, [4, 8]),
    "manual": ({"layers": 18}, {"split": (10, 8)}, [10, 8]),
    "manual of one": ({"layers": 18}, {"split": (18,)}, [18]),
    "unequal memory": (
        {"layers": 16, "max_model_len": 4096},
        {"stage_memory": (4 * GIB, 2 * GIB), "max_model_len": 4096, "max_sequences": 32},
        [11, 5],
    ),
    "the fewest that fit": ({"layers": 16}, {"stage_memory": 700 * MIB}, [5, 5, 6]),
    "the fewest that hold the declared concurrency": (
        {"layers": 16},
        {"stage_memory": 700 * MIB, "max_model_len": 4096, "max_sequences": 8},
        [3, 3, 2, 3, 2, 3],
    ),
    "unknown memory is one stage": ({"layers": 16}, {}, [16]),
}


@pytest.mark.parametrize(("of", "ask", "expected"), BALANCED.values(), ids=BALANCED)
def test_layers_are_dealt_out(of: dict, ask: dict, expected: list[int]) -> None:
    assert counts(plan(model(**of), **ask)) == expected


def test_a_plan_in_full() -> None:
    of = model(4, embedding=50 * MIB, head=50 * MIB, final=1 * MIB, tied=True)
    made = plan(of, stages=2, stage_memory=GIB, max_sequences=2, runtime_bytes=100 * MIB)
    first, last = made.stages
    assert (first.first_layer, first.last_layer) == (0, 2)
    assert (last.first_layer, last.last_layer) == (2, 4)
    assert first.weight_bytes == 250 * MIB
    assert last.weight_bytes == 251 * MIB
    assert (first.streamed_bytes, last.streamed_bytes) == (200 * MIB, 251 * MIB)
    assert first.kv_bytes_per_token == last.kv_bytes_per_token == 8192
    assert last.kv_tokens == (1024 - 251 - 100) * MIB // 8192 // 16 * 16
    assert made.kv_tokens == 2 * 4096  # more than two full requests is of no use
    assert made.num_blocks == made.kv_tokens // 16
    assert (made.max_model_len, made.max_sequences, made.splits) == (4096, 2, (0, 2))


def test_one_stage_needs_no_copy_of_a_tied_head() -> None:
    of = model(2, embedding=50 * MIB, head=50 * MIB, tied=True)
    (stage,) = plan(of, stages=1).stages
    assert stage.weight_bytes == 250 * MIB == of.weight_bytes
    assert stage.streamed_bytes == 250 * MIB  # read once more as head


def test_state_per_sequence_is_kept_free() -> None:
    layers = [LayerProfile(100 * MIB, 0, 10 * MIB, "linear_attention")] * 2
    made = plan(model(layers), stages=1, stage_memory=400 * MIB, max_sequences=4)
    assert made.stages[0].state_bytes == 80 * MIB
    assert made.kv_tokens == 4 * 4096  # no cache per token: nothing but the use bounds it


def test_an_undeclared_context_shrinks_to_what_memory_allows() -> None:
    of = model(4, max_model_len=131072)
    made = plan(of, stages=1, stage_memory=464 * MIB)
    assert made.max_model_len == made.kv_tokens == 4096
    with pytest.raises(DoesNotFit):
        plan(of, stages=1, stage_memory=464 * MIB, max_model_len=8192)


def test_unknown_memory_plans_a_modest_context() -> None:
    made = plan(model(4, max_model_len=131072), stages=2)
    assert made.max_model_len == 8192
    assert (
        plan(model(4, max_model_len=131072), stages=2, max_model_len=65536).max_model_len == 65536
    )


# -- exactness ----------------------------------------------------------------------------------


def brute(of: ModelProfile, count: int, memory: tuple[int, ...], seqs: int, least: int):
    """Most blocks of the tightest stage, then least bytes of the slowest; None if none fits."""
    best = None
    inner = sorted(set(of.allowed_cuts) - {0})
    useful = -(-of.max_model_len // 16) * seqs
    for chosen in itertools.combinations(inner, count - 1):
        edges = (0, *chosen, of.num_layers)
        blocks, slowest = useful, 0
        for stage, (a, b) in enumerate(itertools.pairwise(edges)):
            run = of.layers[a:b]
            streamed = weight = sum(x.weight_bytes for x in run)
            if stage == 0:
                weight += of.embedding_bytes
            if stage == count - 1:
                streamed += of.final_bytes + of.head_bytes
                weight += of.final_bytes + (0 if of.tied and count == 1 else of.head_bytes)
            left = memory[stage] - weight - seqs * sum(x.state_bytes_per_sequence for x in run)
            kv = sum(x.kv_bytes_per_token for x in run)
            blocks = min(blocks, left // (16 * kv) if kv else (useful if left >= 0 else -1))
            slowest = max(slowest, streamed)
        if blocks >= least and (best is None or (-blocks, slowest) < best):
            best = (-blocks, slowest)
    return best


@st.composite
def problems(draw: st.DrawFn):
    size = draw(st.integers(1, 8))
    layer = st.builds(
        LayerProfile,
        st.integers(0, 60),
        st.integers(0, 3),
        st.sampled_from([0, 0, 5]),
        st.just("full_attention"),
    )
    layers = draw(st.lists(layer, min_size=size, max_size=size))
    cuts = draw(st.sets(st.integers(0, size - 1)))
    number = st.integers(0, 80)
    of = model(
        layers,
        embedding=draw(number),
        head=draw(number),
        final=draw(st.integers(0, 3)),
        tied=draw(st.booleans()),
        cuts=tuple(cuts),
        max_model_len=draw(st.integers(1, 40)),
    )
    units = len(cuts - {0}) + 1
    count = draw(st.integers(1, units))
    memory = draw(st.lists(st.integers(1, 1200), min_size=count, max_size=count))
    return of, count, tuple(memory)


@given(problem=problems(), seqs=st.integers(1, 3))
@settings(max_examples=500, deadline=None)
def test_no_cut_is_better(problem, seqs: int) -> None:
    of, count, memory = problem
    best = brute(of, count, memory, seqs, least=-(-of.max_model_len // 16))
    ask = {"stage_memory": memory, "max_sequences": seqs, "max_model_len": of.max_model_len}
    if best is None:
        with pytest.raises(DoesNotFit, match="does not fit: stage"):
            plan(of, **ask)
        return
    made = plan(of, **ask)
    assert (-made.num_blocks, max(s.streamed_bytes for s in made.stages)) == best
    check(of, made, count)
    # the same cuts given by hand are the same plan
    assert plan(of, split=tuple(counts(made)), **ask) == made


def check(of: ModelProfile, made: Plan, count: int) -> None:
    assert len(made.stages) == count
    edges = [stage.first_layer for stage in made.stages] + [made.stages[-1].last_layer]
    assert edges[0] == 0
    assert edges[-1] == of.num_layers
    assert all(a < b for a, b in itertools.pairwise(edges))
    assert set(edges[1:-1]) <= set(of.allowed_cuts)
    for stage in made.stages:
        assert stage.needed_bytes(made.kv_tokens) <= stage.memory_bytes
        assert stage.kv_tokens >= made.kv_tokens


@given(problem=problems(), memory=st.integers(1, 400))
@settings(max_examples=300, deadline=None)
def test_no_fewer_stages_fit(problem, memory: int) -> None:
    of, _, _ = problem
    least = -(-of.max_model_len // 16)
    units = len(set(of.allowed_cuts) - {0}) + 1
    fitting = [n for n in range(1, units + 1) if brute(of, n, (memory,) * n, 2, least * 2)]
    ask = {"stage_memory": memory, "max_sequences": 2, "max_model_len": of.max_model_len}
    if not fitting:
        with pytest.raises(DoesNotFit, match="no number of stages"):
            plan(of, **ask)
        return
    assert len(plan(of, **ask).stages) == fitting[0]


@given(problem=problems())
@settings(max_examples=200, deadline=None)
def test_the_shortfall_named_is_the_least(problem) -> None:
    """Memory grown by the number in the message fits, and by less does not."""
    of, count, memory = problem
    ask = {"stages": count, "max_sequences": 1, "max_model_len": of.max_model_len}
    try:
        plan(of, stage_memory=memory, **ask)
    except DoesNotFit as error:
        number = str(error).split(" too little")[0].split(": ")[-1]
        assume(number.endswith(" B"))  # above 1 KiB the number is rounded for people
        short = int(number.removesuffix(" B"))
    else:
        assume(False)
    plan(of, stage_memory=tuple(m + short for m in memory), **ask)
    with pytest.raises(DoesNotFit):
        plan(of, stage_memory=tuple(m + short - 1 for m in memory), **ask)


@pytest.mark.parametrize("memory", [None, 8 * GIB, 6 * GIB, GIB // 2], ids=str)
def test_four_hundred_layers_on_sixty_four_stages_take_no_second(memory: int | None) -> None:
    layers = [
        LayerProfile(100 * MIB + i * 7919 % 1000 * 1000, 4096 + i % 3, 0, "full_attention")
        for i in range(400)
    ]
    of = model(layers, embedding=500 * MIB, head=500 * MIB, max_model_len=32768)
    began = time.process_time()
    try:
        made = plan(of, stages=64, stage_memory=memory, max_sequences=64)
        assert len(made.stages) == 64
    except DoesNotFit:
        assert memory == GIB // 2
    assert time.process_time() - began < 1.0


# -- refusals -----------------------------------------------------------------------------------

SMALL = model(16, embedding=200 * MIB, head=200 * MIB)
DONORS = model(12, cuts=(0, 2, 3, 4, 8), reason="the layers from 8 on read the caches of layer 8")
REFUSALS = {
    "more stages than layers": (
        SMALL,
        {"stages": 20},
        PlanError,
        "stages: got 20, want at most 16: the model has 16 layers",
    ),
    "more memories than layers": (
        SMALL,
        {"stage_memory": (GIB,) * 17},
        PlanError,
        "stages: got 17, want at most 16: the model has 16 layers",
    ),
    "more stages than cuts": (
        DONORS,
        {"stages": 7},
        ForbiddenCut,
        "stages: got 7, want at most 5: llama can be cut only before layers 2 to 4, 8: "
        "the layers from 8 on read the caches of layer 8",
    ),
    "no cut at all": (
        model(3, cuts=()),
        {"stages": 2},
        ForbiddenCut,
        "stages: got 2, want at most 1: llama can be cut only before layers (none: one stage only)",
    ),
    "layers that do not add up": (
        SMALL,
        {"split": (10, 7)},
        PlanError,
        "split: 10+7 makes 17 layers, the model has 16",
    ),
    "a stage without layers": (
        SMALL,
        {"split": (16, 0)},
        PlanError,
        "split: got 16+0, want at least one layer per stage",
    ),
    "a forbidden cut": (
        DONORS,
        {"split": (9, 3)},
        ForbiddenCut,
        "split: 9+3 cuts before layer 9, llama can be cut only before layers 2 to 4, 8: "
        "the layers from 8 on read the caches of layer 8",
    ),
    "counts that disagree": (
        SMALL,
        {"stages": 3, "split": (8, 8), "stage_memory": (GIB, GIB)},
        PlanError,
        "stages: stages says 3, split says 2, stage memory says 2; want the same number",
    ),
    "no stage": (SMALL, {"stages": 0}, PlanError, "stages: got 0, want at least 1"),
    "no context": (
        SMALL,
        {"max_model_len": 0},
        PlanError,
        "max_model_len: got 0, want at least 1",
    ),
    "a context beyond the model's": (
        SMALL,
        {"max_model_len": 100_000},
        PlanError,
        "context: got 100,000 tokens, the model takes at most 4,096",
    ),
    "too little memory": (
        SMALL,
        {"stages": 2, "stage_memory": GIB, "max_model_len": 4096, "runtime_bytes": 100 * MIB},
        DoesNotFit,
        "does not fit: stage 0 of 2 (layers 0 to 7) needs 1.2 GiB (weights 1000.0 MiB, caches "
        "for 4,096 tokens 128.0 MiB, runtime 100.0 MiB) and has 1.0 GiB: 204.0 MiB too little; "
        "3 stages of 1.0 GiB would fit",
    ),
    "too little for any number": (
        SMALL,
        {"stage_memory": 250 * MIB},
        DoesNotFit,
        "does not fit: stage 0 of 16 (layer 0) needs 308.0 MiB (weights 300.0 MiB, caches for "
        "2,048 tokens 8.0 MiB, runtime 0 B) and has 250.0 MiB: 58.0 MiB too little; no number "
        "of stages of this memory fits: give them more, shorten the context, or lower the "
        "number of sequences",
    ),
    "too little by hand": (
        SMALL,
        {"split": (12, 4), "stage_memory": GIB},
        DoesNotFit,
        "does not fit: stage 0 of 2 (layers 0 to 11) needs 1.5 GiB (weights 1.4 GiB, caches for "
        "2,048 tokens 96.0 MiB, runtime 0 B) and has 1.0 GiB: 472.0 MiB too little; move the "
        "split, give the stage more memory, or shorten the context",
    ),
    "too little of unequal memory": (
        SMALL,
        {"stage_memory": (GIB, GIB // 2)},
        DoesNotFit,
        ANY,
    ),
}


@pytest.mark.parametrize(("of", "ask", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(of: ModelProfile, ask: dict, error: type[Exception], message: object) -> None:
    with pytest.raises(error) as caught:
        plan(of, **ask)
    assert type(caught.value) is error
    assert message is ANY or str(caught.value) == message


def test_a_profile_travels_as_json() -> None:
    of = dataclasses.replace(DONORS, tied=True)
    assert ModelProfile.from_json(of.to_json()) == of
