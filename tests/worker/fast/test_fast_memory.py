"""What a stage of the fast runner holds: its weights once, and pages as the plan counts them."""

import gc
import itertools
import weakref
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from storages import live_bytes
from tests.worker.fast.test_fast import CASES, DictReader, make_config, make_model

from lamella_checkpoint.caches import layer_caches
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.fast.linear import packing_pays
from lamella_worker.fast.runner import FastRunner, tensor_names
from lamella_worker.fast.weights import EMBEDDING, HEAD

BLOCKS, BLOCK = 1024, 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pages_take_what_the_plan_counts_per_token(case, dtype):
    config = make_config(CASES[case])
    tensors = make_model(config).state_dict()
    planned = layer_caches(config, config.num_hidden_layers, dtype.itemsize)
    for first, last in itertools.pairwise((0, 2, config.num_hidden_layers)):
        runner = FastRunner.build(config, first, last, DictReader(tensors), dtype, "cpu")
        held = []
        for blocks in (1, 1 + BLOCKS):  # what does not grow with the pages is in both
            runner.setup_caches(
                num_blocks=blocks, block_size=BLOCK, max_sequences=8, max_model_len=1024
            )
            held.append(live_bytes())
        wanted = BLOCKS * BLOCK * sum(layer.kv_bytes_per_token for layer in planned[first:last])
        assert wanted <= held[1] - held[0] <= 1.05 * wanted


class CountingReader(DictReader):
    """Counts, at every read, the bytes of what it gave and is still held, this read's included."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.most = 0
        self._given: list[tuple[weakref.ref[torch.Tensor], int]] = []

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        found = super().read(names)
        self._count(found.values())
        return found

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        rows = super().read_rows(name, first, last)
        self._count([rows])
        return rows

    def _count(self, tensors: Iterable[torch.Tensor]) -> None:
        gc.collect()
        self._given += [(weakref.ref(tensor), tensor.nbytes) for tensor in tensors]
        self._given = [(ref, nbytes) for ref, nbytes in self._given if ref() is not None]
        self.most = max(self.most, sum(nbytes for _, nbytes in self._given))


@pytest.mark.parametrize(
    ("tied", "first"),
    [(True, 0), (True, 2), (False, 2)],
    ids=["tied-both-ends", "tied-last-stage", "last-stage"],
)
def test_a_table_is_packed_in_the_memory_that_is_planned_for_it(tied, first):
    if not packing_pays(torch.bfloat16):
        pytest.skip("weights are kept as they are read here: nothing is held beside them")
    case = {"model_type": "qwen3", "tie_word_embeddings": tied}
    tensors = make_model(make_config(case)).to(torch.bfloat16).state_dict()
    config = make_config({**case, "vocab_size": 1 << 21})  # 134 MB, and layers of nearly nothing
    tensors[EMBEDDING] = tensors[HEAD] = torch.randn(config.vocab_size, 32).bfloat16()
    reader = CountingReader(tensors)
    planned = sum(tensors[name].nbytes for name in tensor_names(config, first, 5))
    runner = FastRunner.build(config, first, 5, reader, torch.bfloat16, "cpu")
    assert 2 * reader.most < 0.1 * planned  # a piece stands beside its packed copy
    if first == 0:
        runner.setup_caches(num_blocks=8, block_size=4, max_sequences=1, max_model_len=32)
        ids = torch.tensor([5, 1, config.vocab_size - 1])
        batch = StepBatch((Segment(0, 0, 3, np.arange(1, dtype=np.int32), True),), 4)
        logits = runner.step(batch, {"token_ids": ids})["logits"]
        assert logits.shape == (1, config.vocab_size)
