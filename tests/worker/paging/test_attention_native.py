"""The compiled attention of decode rows: equal to the portable one, the same bits in any batch."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella_worker.batch import Segment, StepBatch
from lamella_worker.paging.attention import AttentionSpec, PortableAttention
from lamella_worker.paging.attention_native import NativeAttention, compiled, prebuilt
from lamella_worker.paging.attention_plan import AttentionPlan
from lamella_worker.paging.attention_views import ViewAttention
from lamella_worker.paging.cache import KVShape, PagedPool

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
BLOCK, BLOCKS = 4, 96
GEOMETRIES = {  # query heads, key heads, key's and value's elements
    "grouped": (6, 2, 32, 32),
    "own-keys": (3, 3, 16, 16),
    "one-key-head": (8, 1, 16, 16),
    "odd": (4, 2, 12, 12),
    "smaller-than-a-vector": (4, 2, 8, 4),
    "not-a-multiple": (2, 1, 40, 24),
}
MIXED = [(11, 1), (70, 1), (64, 1), (0, 7), (4, 1), (6, 9), (0, 1), (15, 1)]

pytestmark = pytest.mark.skipif(
    compiled(1, 16, 16, torch.float32) is None, reason="there is no C compiler"
)


def native(spec, dtype):
    function = compiled(spec.heads // spec.kv_heads, spec.k_dim, spec.v_dim, dtype)
    assert function is not None
    return NativeAttention(function, ViewAttention())


def make_pool(spec, dtype):
    torch.manual_seed(0)
    pool = PagedPool(BLOCKS, BLOCK, {0: KVShape(spec.kv_heads, spec.k_dim, spec.v_dim)}, dtype)
    pool.keys(0).copy_(torch.randn(pool.keys(0).shape))
    pool.values(0).copy_(torch.randn(pool.values(0).shape))
    return pool


def make_batch(shapes, seed=3, contiguous=False):
    order = np.random.default_rng(seed).permutation(BLOCKS).astype(np.int32)
    free = iter(range(BLOCKS) if contiguous else order)
    segments = []
    for slot, (start, count) in enumerate(shapes):
        needed = -(-(start + count) // BLOCK)
        table = np.array([next(free) for _ in range(needed)], np.int32)
        segments.append(Segment(slot, start, count, table, True))
    return StepBatch(tuple(segments), BLOCK)


def queries(batch, spec, dtype):
    # As the runner gives them: a view into the rows of a fused projection.
    torch.manual_seed(1)
    wide = torch.randn(batch.tokens, spec.heads + 3, spec.k_dim).to(dtype)
    return wide[:, : spec.heads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "scattered"])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (5, None), (1, None), (33, 2.0)])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_equal_to_the_portable_one(geometry, window, softcap, contiguous, dtype):
    spec = AttentionSpec(*geometry, 0.3, window, softcap)
    batch, pool = make_batch(MIXED, contiguous=contiguous), make_pool(spec, dtype)
    q, plan = queries(batch, spec, dtype), AttentionPlan(batch, CPU)
    found = native(spec, dtype).attend(q, pool, 0, plan, spec)
    wanted = PortableAttention().attend(q, pool, 0, plan, spec)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 2)), min_size=1, max_size=7),
    st.sampled_from([None, 1, 3, 8, 17]),
    st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_any_step_is_equal_to_the_portable_one(shapes, window, seed):
    spec = AttentionSpec(6, 2, 32, 32, 0.2, window)
    batch, pool = make_batch(shapes, seed), make_pool(spec, torch.float32)
    q, plan = queries(batch, spec, torch.float32), AttentionPlan(batch, CPU)
    found = native(spec, torch.float32).attend(q, pool, 0, plan, spec)
    wanted = PortableAttention().attend(q, pool, 0, plan, spec)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_alone_and_elsewhere_in_the_pool(dtype):
    spec = AttentionSpec(6, 2, 32, 32, 0.2)
    together, pool = make_batch([(n, 1) for n in (250, 3, 31, 64, 15)]), make_pool(spec, dtype)
    backend, q = native(spec, dtype), queries(together, spec, dtype)
    found = backend.attend(q, pool, 0, AttentionPlan(together, CPU), spec)
    for row, segment in enumerate(together.segments):
        moved = np.arange(len(segment.blocks), dtype=np.int32)
        other = make_pool(spec, dtype)
        other.copy(segment.blocks.tolist(), moved.tolist())
        alone = StepBatch((Segment(0, segment.start, 1, moved, True),), BLOCK)
        plan = AttentionPlan(alone, CPU)
        assert torch.equal(backend.attend(q[row : row + 1], other, 0, plan, spec)[0], found[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("growth", [1.02, 0.98], ids=["largest-last", "largest-first"])
def test_scores_that_grow_or_fall_over_many_tiles(growth, dtype):
    spec = AttentionSpec(6, 2, 32, 32, 0.3)
    batch, pool = make_batch([(300, 1)], contiguous=True), make_pool(spec, dtype)
    pool.keys(0).mul_(growth ** torch.arange(BLOCKS * BLOCK)[:, None])
    q, plan = queries(batch, spec, dtype), AttentionPlan(batch, CPU)
    found = native(spec, dtype).attend(q, pool, 0, plan, spec).float()
    wanted = PortableAttention().attend(q.float(), as_float(pool, spec), 0, plan, spec)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)


def as_float(pool, spec):
    other = make_pool(spec, torch.float32)
    other.keys(0).copy_(pool.keys(0))
    other.values(0).copy_(pool.values(0))
    return other


def test_what_is_not_a_number_is_not_hidden_and_stays_with_its_sequence():
    spec = AttentionSpec(4, 2, 16, 16, 0.2)
    batch, pool = make_batch([(9, 1), (20, 1)]), make_pool(spec, torch.bfloat16)
    pool.keys(0)[:, int(batch.segments[0].blocks[1]) * BLOCK] = float("nan")
    q = queries(batch, spec, torch.bfloat16)
    plan = AttentionPlan(batch, CPU)
    found = native(spec, torch.bfloat16).attend(q, pool, 0, plan, spec)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_large_scores_do_not_overflow():
    spec = AttentionSpec(4, 2, 16, 16, 30.0)
    batch, pool = make_batch([(50, 1)]), make_pool(spec, torch.float32)
    q, plan = queries(batch, spec, torch.float32), AttentionPlan(batch, CPU)
    found = native(spec, torch.float32).attend(q, pool, 0, plan, spec)
    wanted = PortableAttention().attend(q, pool, 0, plan, spec)
    assert torch.allclose(found, wanted, atol=1e-3)


def compiler(folder, first):
    """The C compiler, after a line of shell that sees its words."""
    path = folder / "cc"
    path.write_text(f'#!/bin/sh\n{first}\nexec cc "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_without_a_working_compiler_there_is_none_and_one_line_says_why(
    monkeypatch, caplog, compiler
):
    caplog.set_level("INFO")
    monkeypatch.setenv("CC", compiler)
    assert compiled.__wrapped__(3, 16, 16, torch.float32) is None
    assert len(caplog.records) == 1


def test_without_a_place_for_files_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "read-only"))
    assert compiled.__wrapped__(3, 16, 16, torch.float32) is None


def test_it_is_linked_to_no_openmp_of_its_own(monkeypatch, tmp_path):
    said = tmp_path / "said"
    monkeypatch.setenv("CC", compiler(tmp_path, f'echo "$*" >>{said}'))
    assert compiled.__wrapped__(3, 16, 16, torch.float32) is not None
    links = [line for line in said.read_text().splitlines() if "-shared" in line]
    assert len(links) == 1
    assert "-fopenmp" not in links[0]


def test_where_torch_shows_no_openmp_it_brings_its_own(monkeypatch, tmp_path):
    refuses = 'case "$*" in *-shared*-fopenmp*) ;; *-shared*) exit 1 ;; esac'
    monkeypatch.setenv("CC", compiler(tmp_path, refuses))
    assert compiled.__wrapped__(3, 16, 16, torch.float32) is not None


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """What scripts/attention makes of two geometries."""
    folder = tmp_path_factory.mktemp("libraries")
    geometries = {**os.environ, "GEOMETRIES": "3:32:32 2:40:24"}
    subprocess.run([ROOT / "scripts" / "attention", folder], check=True, env=geometries)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", [(6, 2, 32, 32), (2, 1, 40, 24)], ids=str)
def test_each_library_for_this_processor_is_equal_to_the_portable_one(
    libraries, tmp_path, geometry, dtype
):
    spec = AttentionSpec(*geometry, 0.3)
    symbol = f"decode_{spec.heads // spec.kv_heads}_{spec.k_dim}_{spec.v_dim}_{str(dtype)[6:]}"
    batch, pool = make_batch(MIXED), make_pool(spec, dtype)
    q, plan = queries(batch, spec, dtype), AttentionPlan(batch, CPU)
    wanted = PortableAttention().attend(q, pool, 0, plan, spec).float()
    tolerance, tried = 1e-5 if dtype == torch.float32 else 2e-2, 0
    for library in libraries.iterdir():
        alone = tmp_path / library.stem
        alone.mkdir()
        shutil.copy(library, alone)
        function = prebuilt(alone, symbol)
        if function is not None:
            tried += 1
            found = NativeAttention(function, ViewAttention()).attend(q, pool, 0, plan, spec)
            assert torch.allclose(found.float(), wanted, rtol=tolerance, atol=tolerance), library
    assert tried


def test_a_library_for_another_processor_is_passed_over(libraries, tmp_path):
    shutil.copytree(libraries, tmp_path, dirs_exist_ok=True)
    source = "int supported(void) { return 0; }"
    other = tmp_path / "decode.zz.so"
    command = ["cc", "-x", "c", "-shared", "-fPIC", "-o", other, "-"]
    subprocess.run(command, input=source, text=True, check=True)
    assert prebuilt(tmp_path, "decode_3_32_32_float32") is not None
    for library in libraries.iterdir():
        (tmp_path / library.name).unlink()
    assert prebuilt(tmp_path, "decode_3_32_32_float32") is None


def test_a_geometry_that_no_library_has_is_not_found(libraries, tmp_path):
    assert prebuilt(libraries, "decode_5_32_32_float32") is None
    assert prebuilt(tmp_path, "decode_3_32_32_float32") is None


def openmp_runtimes():
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {name for line in lines if re.search(r"lib[a-z]?omp", name := line.split()[-1])}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_it_computes_in_the_threads_of_torch():
    spec = AttentionSpec(6, 2, 32, 32, 0.2)
    batch, pool = make_batch(MIXED), make_pool(spec, torch.float32)
    q, before = queries(batch, spec, torch.float32), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).exp_()  # large enough that torch shares it out
        threads, runtimes = set(os.listdir("/proc/self/task")), openmp_runtimes()
        native(spec, torch.float32).attend(q, pool, 0, AttentionPlan(batch, CPU), spec)
        assert set(os.listdir("/proc/self/task")) <= threads
        assert openmp_runtimes() == runtimes
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(threads):
    spec = AttentionSpec(6, 2, 32, 32, 0.2)
    batch, pool = make_batch(MIXED), make_pool(spec, torch.bfloat16)
    backend, q = native(spec, torch.bfloat16), queries(batch, spec, torch.bfloat16)
    before = torch.get_num_threads()
    found = []
    for count in (threads, before):
        torch.set_num_threads(count)
        found.append(backend.attend(q, pool, 0, AttentionPlan(batch, CPU), spec))
    torch.set_num_threads(before)
    assert torch.equal(*found)
