"""The paged pool: what is written is read back, and its invariants are checked."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from lamella_contract.errors import InvalidConfig, RequestError
from lamella_worker.paging.cache import KVShape, PagedPool, empty_pages


def pool(**shapes: KVShape) -> PagedPool:
    return PagedPool(4, 2, {int(k[1:]): v for k, v in shapes.items()}, torch.float32)


@pytest.mark.parametrize(
    ("shape", "joined"),
    [
        pytest.param(KVShape(2, 4, 4), True, id="equal-widths"),
        pytest.param(KVShape(1, 6, 4), False, id="mla-like"),
    ],
)
def test_write_then_read(shape, joined):
    pages = pool(l3=shape)
    rows = torch.tensor([5, 0, 3])
    k = torch.randn(3, shape.heads, shape.k_dim)
    v = torch.randn(3, shape.heads, shape.v_dim)
    pages.write(3, rows, k, v)
    assert torch.equal(pages.keys(3)[:, rows], k.transpose(0, 1))
    assert torch.equal(pages.values(3)[:, rows], v.transpose(0, 1))
    untouched = [1, 2, 4, 6, 7]
    assert not pages.keys(3)[:, untouched].any()
    assert (pages.joined(3) is not None) == joined
    pages.check_integrity()
    pages.reset()
    assert not pages.keys(3).any()
    assert not pages.values(3).any()


@pytest.mark.parametrize(
    ("sources", "blocks"),
    [
        pytest.param([0, 1, 2], [5, 6, 7], id="a-run"),
        pytest.param([4, 1, 7], [0, 6, 3], id="pieces"),
        pytest.param([2, 3, 4], [1, 2, 3], id="down-over-itself"),
        pytest.param([1, 2, 3], [2, 3, 4], id="up-over-itself"),
        pytest.param([1, 2], [2, 1], id="swapped"),
        pytest.param([3, 4, 5], [3, 4, 7], id="some-in-place"),
        pytest.param([3, 3], [1, 2], id="one-source-twice"),
        pytest.param([], [], id="nothing"),
    ],
)
@pytest.mark.parametrize("shape", [KVShape(2, 4, 4), KVShape(1, 6, 4)], ids=["joined", "two"])
def test_blocks_are_copied(sources: list[int], blocks: list[int], shape: KVShape) -> None:
    pages = PagedPool(8, 3, {0: shape, 5: shape}, torch.float32)
    for layer in (0, 5):
        for tensor in (pages.keys(layer), pages.values(layer)):
            tensor.copy_(torch.randn(tensor.shape))
    kept = [
        tensor.clone() for layer in (0, 5) for tensor in (pages.keys(layer), pages.values(layer))
    ]
    pages.copy(sources, blocks)
    found = [tensor for layer in (0, 5) for tensor in (pages.keys(layer), pages.values(layer))]
    for before, after in zip(kept, found, strict=True):
        wanted = before.clone()
        for source, block in zip(sources, blocks, strict=True):
            wanted[:, block * 3 : block * 3 + 3] = before[:, source * 3 : source * 3 + 3]
        assert torch.equal(after, wanted)


def test_bytes_are_counted():
    pages = pool(l0=KVShape(2, 4, 4), l1=KVShape(1, 6, 4))
    assert pages.rows == 8
    assert pages.kv_bytes == 8 * 4 * (2 * 8 + 10)


def test_integrity_names_a_shared_block():
    pages = pool(l0=KVShape(2, 4, 4))
    tables = [(0, np.array([0, 1], np.int32)), (1, np.array([1], np.int32))]
    with pytest.raises(RequestError, match="two tables"):
        pages.check_integrity(tables)


def test_an_empty_pool_is_refused():
    with pytest.raises(InvalidConfig, match="num_blocks=0"):
        PagedPool(0, 16, {}, torch.float32)


def test_a_large_pool_takes_no_memory_until_it_is_written() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    pages = empty_pages((64, 1 << 20, 8), torch.bfloat16, torch.device("cpu"))  # 1 GiB
    assert resident() - before < 64 << 20
    assert pages[3, 5].tolist() == [0.0] * 8
    pages[3, 5] = 1.0
    assert float(pages[3].sum()) == 8.0
