"""Every attention backend against a row-by-row twin, over contiguous and scattered pages."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_worker.batch import Segment, StepBatch
from lamella_worker.paging.attention import AttentionSpec, PortableAttention
from lamella_worker.paging.attention_choice import choose_attention
from lamella_worker.paging.attention_native import NativeAttention
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.attention_views import ViewAttention
from lamella_worker.paging.cache import KVShape, PagedPool

CPU = torch.device("cpu")
BACKENDS = [
    PortableAttention(),
    ViewAttention(),
    ViewAttention(float_decode=True, chunk_products=True),
]
BLOCK = 4
BLOCKS = 24


def naive(q, pool, batch, spec):
    """One query and one head at a time, in float64."""
    k, v = pool.keys(0).double(), pool.values(0).double()
    out, row = [], 0
    for segment in batch.segments:
        for position in range(segment.start, segment.length):
            first = 0 if spec.window is None else max(0, position + 1 - spec.window)
            at = np.arange(first, position + 1)
            rows = segment.blocks[at // BLOCK] * BLOCK + at % BLOCK
            heads = []
            for head in range(spec.heads):
                kv = head // (spec.heads // spec.kv_heads)
                scores = k[kv, rows] @ q[row, head].double() * spec.scale
                if spec.softcap is not None:
                    scores = torch.tanh(scores / spec.softcap) * spec.softcap
                if spec.sinks is not None:
                    scores = torch.cat((scores, spec.sinks[head : head + 1].double()))
                weights = torch.softmax(scores, 0)[: len(at)]
                heads.append(weights @ v[kv, rows])
            out.append(torch.cat(heads))
            row += 1
    return torch.stack(out)


def make_pool(spec, dtype=torch.float32):
    pool = PagedPool(BLOCKS, BLOCK, {0: KVShape(spec.kv_heads, spec.k_dim, spec.v_dim)}, dtype)
    pool.keys(0).copy_(torch.randn(pool.keys(0).shape))
    pool.values(0).copy_(torch.randn(pool.values(0).shape))
    return pool


def make_batch(shapes, order):
    free = iter(order)
    segments = []
    for slot, (start, count) in enumerate(shapes):
        needed = -(-(start + count) // BLOCK)
        blocks = np.array([next(free) for _ in range(needed)], np.int32)
        segments.append(Segment(slot, start, count, blocks, True))
    return StepBatch(tuple(segments), BLOCK)


MIXED = [(11, 1), (11, 1), (11, 1), (4, 1), (0, 7), (6, 9), (0, 1)]
SHUFFLED = [int(x) for x in np.random.default_rng(3).permutation(BLOCKS)]
SPECS = {
    "plain": AttentionSpec(4, 4, 8, 8, 0.3),
    "grouped": AttentionSpec(4, 2, 8, 8, 0.3),
    "one-key-head": AttentionSpec(4, 1, 8, 8, 0.3),
    "wide-keys": AttentionSpec(4, 2, 12, 8, 0.3),
    "window": AttentionSpec(4, 2, 8, 8, 0.3, window=5),
    "window-of-one": AttentionSpec(4, 2, 8, 8, 0.3, window=1),
    "softcap": AttentionSpec(4, 2, 8, 8, 0.3, softcap=2.0),
    "softcap-window": AttentionSpec(4, 2, 8, 8, 0.3, window=5, softcap=2.0),
    "sinks": AttentionSpec(4, 2, 8, 8, 0.3, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


@pytest.mark.parametrize("order", [range(BLOCKS), SHUFFLED], ids=["contiguous", "scattered"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_equal_to_the_naive_twin(backend, spec, order):
    torch.manual_seed(0)
    pool, batch = make_pool(spec), make_batch(MIXED, order)
    # As the runner gives it: a view into the rows of a fused projection.
    q = torch.randn(batch.tokens, spec.heads + 3, spec.k_dim)[:, : spec.heads]
    found = backend.attend(q, pool, 0, AttentionPlan(batch, CPU), spec)
    assert found.shape == (batch.tokens, spec.heads * spec.v_dim)
    assert torch.allclose(found.double(), naive(q, pool, batch, spec), atol=1e-5)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=5),
    st.sampled_from([None, 1, 3, 8]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_any_step_is_equal_to_the_naive_twin(shapes, window, random):
    spec = AttentionSpec(2, 1, 4, 4, 0.5, window=window)
    order = list(range(BLOCKS))
    if random.random() < 0.5:
        random.shuffle(order)
    torch.manual_seed(len(shapes))
    pool, batch = make_pool(spec), make_batch(shapes, order)
    q = torch.randn(batch.tokens, spec.heads, spec.k_dim)
    wanted = naive(q, pool, batch, spec)
    for backend in BACKENDS:
        found = backend.attend(q, pool, 0, AttentionPlan(batch, CPU), spec)
        assert torch.allclose(found.double(), wanted, atol=1e-5), backend.name


def test_equal_decode_rows_become_one_piece():
    batch = make_batch([(11, 1)] * 3 + [(0, 3)] + [(11, 1)] * 2, range(BLOCKS))
    pieces = AttentionPlan(batch, CPU).pieces(None, grouped=True)
    assert [(p.row, p.rows, p.sequences) for p in pieces] == [(0, 3, 3), (3, 3, 1), (6, 2, 2)]
    assert pieces[0].stride == 3 * BLOCK


@pytest.mark.parametrize("window", [None, 40, 700], ids=str)
def test_long_chunks_are_cut_by_queries(window):
    spec = AttentionSpec(4, 2, 8, 8, 0.3, window=window)
    pool = PagedPool(60, 16, {0: KVShape(2, 8, 8)}, torch.float32)
    pool.keys(0).copy_(torch.randn(pool.keys(0).shape))
    pool.values(0).copy_(torch.randn(pool.values(0).shape))
    blocks = np.arange(60, dtype=np.int32)
    batch = StepBatch((Segment(0, 500, 300, blocks, True),), 16)
    q = torch.randn(300, 4, 8)
    plan = AttentionPlan(batch, CPU)
    found = ViewAttention(chunk_products=True).attend(q, pool, 0, plan, spec)
    wanted = PortableAttention().attend(q, pool, 0, plan, spec)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_long_sequences_are_cut_by_heads_in_scratch():
    spec = AttentionSpec(4, 4, 8, 8, 0.3)
    pool = PagedPool(10000, 16, {0: KVShape(4, 8, 8)}, torch.bfloat16)
    pool.keys(0).copy_(torch.randn(pool.keys(0).shape))
    pool.values(0).copy_(torch.randn(pool.values(0).shape))
    blocks = np.arange(10000, dtype=np.int32)
    batch = StepBatch((Segment(0, 159_999, 1, blocks, True),), 16)
    q = torch.randn(1, 4, 8).bfloat16()
    plan = AttentionPlan(batch, CPU)
    found = ViewAttention(float_decode=True).attend(q, pool, 0, plan, spec)
    wanted = PortableAttention().attend(q, pool, 0, plan, spec)
    assert torch.allclose(found.float(), wanted.float(), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_backend_is_chosen_that_agrees(dtype):
    spec = AttentionSpec(6, 2, 16, 16, 0.25)
    chosen = choose_attention(spec, dtype, CPU)
    assert isinstance(chosen, ViewAttention | NativeAttention)
    assert choose_attention(spec, dtype, CPU) is chosen  # tried once
    assert math.isclose(spec.scale, 0.25)
