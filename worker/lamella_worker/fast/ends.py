"""The two ends of a decoder: token ids to rows of the embedding, and rows to logits.

Knows no layer and no step. A model whose head is its embedding has one table for both on a single
stage, packed where that is faster, so that it weighs what the plan counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from lamella_worker.fast.int8 import PIECE_ROWS, Int8Linear
from lamella_worker.fast.linear import PlainLinear, make_linear, packing_pays
from lamella_worker.fast.packed_table import PackedTable, pack_table
from lamella_worker.fast.spec import DecoderSpec
from lamella_worker.fast.weights import EMBEDDING, HEAD, TensorReader, read_matrix, read_pieces

Embed: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Token ids, int64 [tokens] -> [tokens, hidden size]."""
Head: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""[tokens, hidden size] -> [tokens, vocabulary]."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What a slice has of them; None: another stage's."""

    embed: Embed | None
    head: Head | None


def read_ends(
    reader: TensorReader,
    spec: DecoderSpec,
    *,
    is_first: bool,
    is_last: bool,
    dtype: torch.dtype,
    device: torch.device,
    int8: bool,
) -> Ends:
    """Read the ends of a slice; with `int8` the head is quantised, and a copy where it is tied."""
    packs = device.type == "cpu" and not int8 and packing_pays(dtype)
    shared = spec.tied and is_first and is_last
    if shared and packs and (table := _packed(reader, EMBEDDING, spec, dtype)) is not None:
        return Ends(table.take, table)
    matrix = read_matrix(reader, EMBEDDING, dtype, device) if is_first else None
    embed = None if matrix is None else _rows_of(matrix)
    name = EMBEDDING if spec.tied else HEAD
    if not is_last:
        return Ends(embed, None)
    if int8:
        pieces = read_pieces(reader, name, PIECE_ROWS, dtype)
        whole = matrix if shared else None
        return Ends(embed, Int8Linear(pieces if whole is None else whole, None, torch.float32))
    if shared and matrix is not None:
        # A packed copy would weigh as much again, which the plan does not count.
        return Ends(embed, PlainLinear(matrix))
    if packs and (table := _packed(reader, name, spec, dtype)) is not None:
        return Ends(embed, table)
    return Ends(embed, make_linear(read_matrix(reader, name, dtype, device)))


def _packed(
    reader: TensorReader, name: str, spec: DecoderSpec, dtype: torch.dtype
) -> PackedTable | None:
    return pack_table(lambda rows: read_pieces(reader, name, rows, dtype), spec.vocab, spec.hidden)


def _rows_of(matrix: torch.Tensor) -> Embed:
    return lambda ids: matrix.index_select(0, ids)
