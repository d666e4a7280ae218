"""int8: products within the rounding of 8 bits, and the law of the split for every fast family.

A cut changes nothing at all, bit for bit. What else is in the batch changes no product, and
attention in float32 by its rounding, so greedy tokens are compared there. Other chunks of a prompt
round more of it otherwise, which now and then moves an activation by a whole step of 8 bits.
"""

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.worker.fast.test_fast import (
    BLOCK,
    CASES,
    STEPS,
    DictReader,
    fix_frequencies,
    make_config,
    make_model,
    oracle,
    prompts_of,
    serve,
    tables,
)

from lamella_checkpoint import quantization
from lamella_contract.errors import InvalidConfig, UnsupportedFamily
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.fast import int8
from lamella_worker.fast.families import FAMILIES
from lamella_worker.fast.int8 import Int8Linear, OneDnnProduct, PlainProduct, Rows
from lamella_worker.fast.linear import ACTIVATIONS
from lamella_worker.fast.runner import FastRunner
from lamella_worker.fast.weights import read_pieces
from lamella_worker.model import build_runner


def stages_of(config: Any, model: Any, cuts: Sequence[int]) -> list[FastRunner]:
    stages = []
    for first, last in zip(cuts, (*cuts[1:], config.num_hidden_layers), strict=True):
        reader = DictReader(model.state_dict())
        stage = FastRunner.build(config, first, last, reader, torch.float32, "cpu", "int8")
        stage.setup_caches(num_blocks=40, block_size=BLOCK, max_sequences=4, max_model_len=64)
        stages.append(stage)
    return stages


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("rows", [1, 4, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_near_those_of_float64(dtype, rows, bias):
    torch.manual_seed(0)
    weight, b = torch.randn(24, 40).to(dtype), torch.randn(24).to(dtype) if bias else None
    x, other = torch.randn(rows, 40).to(dtype), torch.randn(rows, 24).to(dtype)
    y = F.linear(x.double(), weight.double(), None if b is None else b.double())
    linear = Int8Linear(weight, b)
    shared = linear.take(x)
    cases = [
        (linear(x), y),
        (linear(shared), y),
        (linear.add(x, other), y + other.double()),
        (linear.times(shared, other), y * other.double()),
        *((linear.activated(shared, name), ACTIVATIONS[name](y)) for name in ACTIVATIONS),
    ]
    for found, wanted in cases:
        error = (found.double() - wanted).norm() / wanted.norm()
        assert float(error) < 2e-2
    assert linear(x).dtype == linear.add(x, other).dtype == dtype
    assert Int8Linear(weight, b, torch.float32)(x).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 5])
def test_a_weight_in_pieces_gives_the_same_bits(rows):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(97, 40), torch.randn(97), torch.randn(rows, 40)
    whole, pieces = Int8Linear(weight, bias), Int8Linear(iter(weight.split(20)), bias)
    assert torch.equal(pieces(x), whole(x))
    assert torch.equal(pieces.activated(x, "silu"), whole.activated(x, "silu"))


@pytest.mark.parametrize("rows", [10, 97, 200], ids=["many", "all", "more-than-there-are"])
def test_pieces_are_held_one_at_a_time(rows):
    table = torch.randn(97, 8)
    reader, given = DictReader({"table": table}), []

    def pieces():
        for piece in read_pieces(reader, "table", rows, torch.float32):
            gc.collect()
            assert not [ref for ref, _ in given if ref() is not None]
            given.append((weakref.ref(piece), piece.tolist()))
            yield piece
            del piece

    made = Int8Linear(pieces())
    assert [row for _, kept in given for row in kept] == table.tolist()
    assert made(torch.ones(1, 8)).shape == (1, 97)


@pytest.mark.parametrize("make", [OneDnnProduct, PlainProduct])
def test_a_row_does_not_depend_on_the_others(make):
    if not int8._exact(make):
        pytest.skip("this processor does not compute it exactly, and it is never chosen")
    torch.manual_seed(0)
    x = torch.randn(37, 300) * torch.logspace(-3, 3, 37)[:, None]
    x[5] = 0
    product = make(*int8.quantise_weight(torch.randn(130, 300)))
    rows = Rows.of(x)
    together = product(rows.values).mul_(rows.largest)
    for row in range(37):
        alone = Rows.of(x[row : row + 1])
        assert torch.equal(product(alone.values).mul_(alone.largest)[0], together[row])
    assert not together[5].any()


def test_both_kernels_give_the_same():
    weight, values = torch.randn(130, 300), Rows.of(torch.randn(5, 300)).values
    exact = [make for make in (OneDnnProduct, PlainProduct) if int8._exact(make)]
    found = [make(*int8.quantise_weight(weight))(values) for make in exact]
    assert all(torch.allclose(each, found[0], rtol=1e-6) for each in found)


def test_a_kernel_that_saturates_is_refused():
    class Saturating(PlainProduct):
        """Adds pairs in 16 bits, as processors without VNNI do."""

        def __call__(self, values: torch.Tensor) -> torch.Tensor:
            pairs = values.float()[:, :, None] * self._weight.float()[None]
            pairs = (pairs[:, ::2] + pairs[:, 1::2]).clamp(-32768, 32767)
            return pairs.sum(1) - 128 * self._weight.float().sum(0)

    assert not int8._exact(Saturating)


def test_what_is_not_a_number_stays_so():
    x = torch.ones(3, 64)
    x[1, 7] = float("nan")
    y = Int8Linear(torch.randn(8, 64))(x)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_cut_gives_the_same_and_is_near_the_unquantised_model(case):
    config = make_config(CASES[case])
    model = make_model(config)
    fix_frequencies(model)
    prompts = prompts_of(config, [n + STEPS for n in (41, 9)])

    def answers(cuts: Sequence[int]) -> list[np.ndarray]:
        return serve(stages_of(config, model, cuts), prompts, STEPS, scattered=True, chunk=11)

    unsplit = answers((0,))
    for one, other in zip(unsplit, answers((0, 1, 3)), strict=True):
        assert np.array_equal(one, other)
    for prompt, logits in zip(prompts, unsplit, strict=True):
        wanted = oracle(model, prompt, STEPS)
        alike = torch.cosine_similarity(torch.from_numpy(logits), torch.from_numpy(wanted))
        assert float(alike.min()) > 0.97


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16_stays_near_float32(case):
    config = make_config(CASES[case])
    model = make_model(config)
    batch = StepBatch((Segment(0, 0, 12, np.arange(3, dtype=np.int32), True),), BLOCK)
    ids = torch.from_numpy(prompts_of(config, [12])[0])
    logits = []
    for dtype, quantized in ((torch.float32, "none"), (torch.bfloat16, "int8")):
        reader = DictReader(model.state_dict())
        runner = FastRunner.build(config, 0, 5, reader, dtype, "cpu", quantized)
        runner.setup_caches(num_blocks=8, block_size=BLOCK, max_sequences=1, max_model_len=64)
        logits.append(runner.step(batch, {"token_ids": ids})["logits"])
    assert logits[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*logits).item() > 0.95


@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_chunks_move_logits_by_some_quantisation_steps_at_most(case):
    config = make_config(CASES[case])
    model = make_model(config)
    prompts = prompts_of(config, [n + STEPS for n in (41, 23)])

    def answers(together: list[np.ndarray], chunk: int) -> list[np.ndarray]:
        return serve(stages_of(config, model, (0,)), together, STEPS, scattered=True, chunk=chunk)

    for alone, beside in zip(
        [answers([prompt], 50)[0] for prompt in prompts], answers(prompts, 11), strict=True
    ):
        # 32 values to a row: one step of one of them is far more here than in a model of size.
        assert float(np.abs(alone - beside).max()) < 0.2 * float(alone.std())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_output_does_not_depend_on_the_batch(case):
    config = make_config(CASES[case])
    model = make_model(config)
    prompts = prompts_of(config, [21, 5, 33, 12])

    def generate(together: list[np.ndarray], cuts: Sequence[int]) -> list[list[int]]:
        stages = stages_of(config, model, cuts)
        blocks = tables(True, [len(p) + 8 for p in together])
        done, ids = [0] * len(together), [list(map(int, p)) for p in together]
        for _ in range(8):
            segments = tuple(
                Segment(slot, d, len(known) - d, blocks[slot], True)
                for slot, (d, known) in enumerate(zip(done, ids, strict=True))
            )
            tokens = np.concatenate([known[d:] for d, known in zip(done, ids, strict=True)])
            bundle = {"token_ids": torch.from_numpy(tokens.astype(np.int64))}
            for stage in stages:
                bundle = stage.step(StepBatch(segments, BLOCK), bundle)
            done = [len(known) for known in ids]
            for known, best in zip(ids, bundle["logits"].argmax(-1).tolist(), strict=True):
                known.append(best)
        return ids

    assert generate(prompts, (0, 2)) == [generate([p], (0,))[0] for p in prompts]


def test_at_most_one_matrix_is_in_memory_twice():
    class Watching(DictReader):
        """At every read, all that was given before must be gone, but for the embedding."""

        given: tuple[Any, ...] = ()

        def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
            gc.collect()
            assert not [ref for ref in self.given if ref() is not None]
            found = super().read(names)
            matrices = [t for name, t in found.items() if t.dim() == 2 and "embed" not in name]
            self.given = tuple(weakref.ref(tensor) for tensor in matrices)
            return found

    config = make_config(CASES["llama"])
    reader = Watching(make_model(config).state_dict())
    FastRunner.build(config, 0, 5, reader, torch.float32, "cpu", "int8")
    assert len(reader.seen) == len(set(reader.seen)) == 9 * 5 + 3


def test_the_families_that_the_planner_knows_are_those_of_the_runner():
    assert tuple(sorted(FAMILIES)) == quantization.FAMILIES


@pytest.mark.parametrize(
    ("family", "runner"),
    [("gpt2", "auto"), ("llama", "packed"), ("llama", "sequential")],
)
def test_other_runners_refuse_it_and_say_who_can(family, runner):
    config = make_config({"model_type": family})
    with pytest.raises(UnsupportedFamily, match=r"int8.*want none, or .*llama, ministral"):
        build_runner(
            config,
            0,
            1,
            DictReader({}),
            dtype=torch.float32,
            runner=runner,
            quantization="int8",
        )


def test_another_device_refuses_it():
    with pytest.raises(InvalidConfig, match=r"int8.*meta.*want a CPU"):
        FastRunner.build(
            make_config(CASES["llama"]), 0, 1, DictReader({}), torch.float32, "meta", "int8"
        )
