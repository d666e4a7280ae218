"""A packed table multiplies as the whole weight does, bit for bit, and gives its rows back."""

from collections.abc import Iterator

import pytest
import torch

from lamella_worker.fast import packed_table
from lamella_worker.fast.linear import PackedLinear
from lamella_worker.fast.packed_table import GROUP_ROWS, PackedTable, pack_table, piece_rows


def can_pack() -> bool:
    try:
        PackedTable(GROUP_ROWS, 32)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


needs_layout = pytest.mark.skipif(not can_pack(), reason="oneDNN's layout is another one here")

SHAPES = [
    pytest.param(97, 32, id="one-piece"),
    pytest.param(640, 64, id="whole-groups"),
    pytest.param(1000, 40, id="rows-and-columns-are-padded"),
    pytest.param(1000, 1, id="one-column"),
]


def table_of(weight: torch.Tensor, step: int = 2 * GROUP_ROWS) -> PackedTable | None:
    def read(_: int) -> Iterator[torch.Tensor]:
        return iter([piece.clone() for piece in weight.split(step)])

    return pack_table(read, *weight.shape)


@needs_layout
@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_it_is_head_and_embedding(rows, hidden):
    torch.manual_seed(0)
    weight = torch.randn(rows, hidden).bfloat16()
    table, whole = table_of(weight), PackedLinear(weight)
    assert table is not None
    for tokens in (1, 4, 37):
        x = torch.randn(tokens, hidden).bfloat16()
        assert torch.equal(table(x), whole(x))
    assert torch.equal(table.take(torch.arange(rows)), weight)
    assert table.take(torch.arange(0)).shape == (0, hidden)


@needs_layout
@pytest.mark.parametrize("row", [-1, 97], ids=["negative", "behind-the-last"])
def test_rows_that_there_are_not_are_refused(row):
    table = table_of(torch.randn(97, 32).bfloat16())
    assert table is not None
    with pytest.raises(IndexError, match="table of 97"):
        table.take(torch.tensor([3, row]))


@needs_layout
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([torch.ones(64, 32)], id="too-few-rows"),
        pytest.param([torch.ones(64, 32)] * 3, id="too-many-rows"),
        pytest.param([torch.ones(128, 16)], id="other-columns"),
        pytest.param([torch.randn(40, 32), torch.randn(88, 32)], id="within-a-group"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(pieces):
    assert pack_table(lambda _: [piece.bfloat16() for piece in pieces], 128, 32) is None


@needs_layout
def test_a_build_without_the_operators_has_none(monkeypatch):
    def missing(*_: object) -> int:
        raise AttributeError("data_ptr")

    monkeypatch.setattr(packed_table, "_memory_of", missing)
    assert table_of(torch.ones(97, 32).bfloat16()) is None


@pytest.mark.parametrize(
    ("rows", "hidden", "wanted"),
    [(262144, 640, 10944), (32000, 768, 2752), (97, 32, 65536)],
    ids=["large", "small", "tiny"],
)
def test_a_piece_is_a_small_part_and_no_tiny_one(rows, hidden, wanted):
    assert piece_rows(rows, hidden) == wanted
