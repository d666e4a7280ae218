"""Reading slices: bit-exact, and hardly a byte more than needed, from a folder and from a hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lamella_checkpoint import slices
from lamella_checkpoint.headers import TensorInfo, read_headers
from lamella_checkpoint.slices import SliceReader, plan_runs
from lamella_checkpoint.source import LocalSource, open_source
from lamella_contract.errors import CorruptModel

SHAPES = st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple)
DTYPES = st.sampled_from([np.float32, np.float16, np.int8, np.int64])


def random_tensors(seed: int, kinds: list[tuple[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {
        f"t{index}": rng.integers(-100, 100, shape).astype(dtype)
        for index, (shape, dtype) in enumerate(kinds)
    }


@settings(deadline=None)  # a loaded machine is slow
@given(
    kinds=st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
    chosen=st.sets(st.integers(0, 11)),
    workers=st.integers(1, 4),
    files=st.integers(1, 3),
)
def test_any_subset_is_exact_and_lean(
    kinds: Any,
    seed: int,
    chosen: set[int],
    workers: int,
    files: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("slices")
    tensors = random_tensors(seed, kinds)
    names = list(tensors)
    for file in range(files):
        own = {name: tensors[name] for name in names[file::files]}
        if own:
            save_file(own, folder / f"part{file}.safetensors")
    source = LocalSource(folder)
    headers = read_headers(source)
    before = source.bytes_read
    reader = SliceReader(
        source, [headers[f"t{i}"] for i in chosen if f"t{i}" in headers], max_workers=workers
    )
    got = reader.read_all()
    assert set(got) == {f"t{i}" for i in chosen if f"t{i}" in headers}
    for name, data in got.items():
        assert data.tobytes() == tensors[name].tobytes()
    assert reader.ratio <= 1.01
    assert source.bytes_read - before == reader.bytes_read
    assert source.progress.snapshot().bytes_done == source.progress.snapshot().bytes_total
    source.close()


@settings(max_examples=20, deadline=None)
@given(chosen=st.sets(st.integers(0, 29), min_size=1), seed=st.integers(0, 2**16))
def test_any_subset_from_a_hub(
    chosen: set[int], seed: int, hub_of_many: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, uri = hub_of_many
    source = open_source(uri, cache_dir=tmp_path_factory.mktemp("cache"))
    headers = read_headers(source)
    before, fetched = source.bytes_read, source.bytes_fetched
    reader = SliceReader(source, [headers[f"t{i}"] for i in chosen], max_workers=3)
    for name, data in reader:
        assert data.tobytes() == tensors[name].tobytes()
    assert reader.ratio <= 1.01
    # What the header's guess brought is read from the cache, by whole extents.
    assert source.bytes_fetched - fetched <= reader.bytes_read
    assert source.bytes_read - before <= reader.bytes_read
    source.close()


@pytest.fixture(scope="module")
def hub_of_many(tmp_path_factory: pytest.TempPathFactory, module_hub: Any) -> Any:
    """Thirty tensors of very different sizes on a hub, and their uri."""
    rng = np.random.default_rng(1)
    sizes = [int(size) for size in rng.integers(1, 30_000, 30)]
    tensors = random_tensors(2, [((size,), np.float32) for size in sizes])
    folder = tmp_path_factory.mktemp("many")
    save_file(tensors, folder / "model.safetensors")
    commit = module_hub.push("org/many", {p.name: p.read_bytes() for p in folder.iterdir()})
    return tensors, f"hf://org/many@{commit}"


def test_tensors_bigger_than_a_request_are_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "PART_BYTES", 1000)
    monkeypatch.setattr(slices, "RUN_BYTES", 5000)
    tensors = random_tensors(3, [((n,), np.float32) for n in (3000, 5, 1, 700, 250, 1000, 999)])
    save_file(tensors, tmp_path / "model.safetensors")
    reads: list[int] = []

    class Watching(LocalSource):
        def read_scatter(self, name: str, start: int, buffers: Any) -> None:
            reads.append(sum(len(buffer) for buffer in buffers))
            super().read_scatter(name, start, buffers)

    source = Watching(tmp_path)
    headers = read_headers(source)
    reads.clear()
    got = SliceReader(source, headers.values(), ahead_bytes=1).read_all()
    assert {name: data.tobytes() for name, data in got.items()} == {
        name: value.tobytes() for name, value in tensors.items()
    }
    assert max(reads) == 1000
    assert sum(reads) == sum(value.nbytes for value in tensors.values())


def test_into_a_final_place(make_model: Callable[..., Path], tensors_of: Any) -> None:
    source = LocalSource(make_model())
    headers = read_headers(source)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    fused = np.zeros((32, 16), np.float32)  # q, k and v one below the other
    rows = dict(zip(names, np.split(fused, [16, 24]), strict=True))
    into = {name: row.reshape(-1).view(np.uint8) for name, row in rows.items()}
    SliceReader(source, [headers[name] for name in names], into=into).read_all()
    tensors = tensors_of()
    assert np.array_equal(fused, np.concatenate([tensors[name] for name in names]))


@pytest.mark.parametrize(
    "place",
    [np.zeros(3, np.uint8), np.zeros(16, np.float32), np.zeros(128, np.uint8)[::2]],
    ids=["too small", "not bytes", "not contiguous"],
)
def test_a_place_that_does_not_fit(
    make_model: Callable[..., Path], place: np.ndarray[Any, Any]
) -> None:
    source = LocalSource(make_model())
    info = read_headers(source)["model.norm.weight"]
    with pytest.raises(ValueError, match=r"into\['model\.norm\.weight'\].*want 64 writable"):
        SliceReader(source, [info], into={info.name: place})


def test_leaving_early_and_errors_end_the_reading(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    source = LocalSource(folder)
    headers = read_headers(source)
    for _ in SliceReader(source, headers.values()):
        break
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CorruptModel, match="ends at byte 5000"):
        SliceReader(source, headers.values()).read_all()


def info(start: int, end: int, file: str = "f") -> TensorInfo:
    return TensorInfo(f"{file}{start}", "U8", (end - start,), file, start, end)


PLANS: list[Any] = [
    pytest.param([info(0, 10), info(10, 30)], [(0, 30)], id="neighbours"),
    pytest.param([info(10, 30), info(0, 10)], [(0, 30)], id="out of order"),
    pytest.param([info(0, 10), info(11, 30)], [(0, 10), (11, 30)], id="gap too costly"),
    pytest.param([info(0, 1000), info(1004, 2000)], [(0, 2000)], id="gap of 0.2 %"),
    pytest.param(
        [info(0, 1000), info(1004, 2000), info(2008, 2500), info(2512, 3000)],
        [(0, 2500), (2512, 3000)],
        id="smallest gaps first",
    ),
    pytest.param([info(0, 10), info(10, 20, "g")], [(0, 10), (10, 20)], id="two files"),
    pytest.param([info(0, 10), info(0, 10)], [(0, 10), (0, 10)], id="the same twice"),
    pytest.param([info(5, 5), info(5, 9)], [(5, 9)], id="empty tensor"),
    pytest.param([], [], id="nothing"),
]


@pytest.mark.parametrize(("infos", "expected"), PLANS)
def test_plan_runs(infos: list[TensorInfo], expected: list[tuple[int, int]]) -> None:
    runs = plan_runs(infos, sum(item.nbytes for item in infos))
    assert [(run.start, run.end) for run in runs] == expected
