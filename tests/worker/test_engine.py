"""The seed's calls of the engine on a twin model: states, errors, memory, sessions.

The twin is a few lines of arithmetic in which every past token of a sequence counts, so that an
answer is right only if the cache is. test_engine_models.py runs the same calls on real models.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamella_contract.errors import EngineError, InvalidConfig, ModelNotFound, PromptTooLong
from lamella_worker.batch import Bundle, StepBatch
from lamella_worker.engine import Shard, ShardInferenceState, TorchDynamicShardInferenceEngine
from lamella_worker.engine_errors import InvalidInput, SessionLost

WHOLE = Shard("twin", 0, 1, 2)
FIRST = Shard("twin", 0, 0, 2)
LAST = Shard("twin", 1, 1, 2)
VOCAB, WIDTH = 11, 3
CONFIG = {
    "torch_dtype": torch.float32, "vocab_size": VOCAB, "hidden_size": WIDTH, "max_seq_len": 64,
}  # fmt: skip


class TwinModel:
    """Logits count the tokens seen at the positions of the slot's pages; hidden states pass on."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.model = self
        self.failures: list[BaseException] = []
        self.cache_failures: list[BaseException] = []
        self.set_up: list[tuple[int, int]] = []
        self.resets = 0
        self.computed: list[int] = []
        self._pages: dict[int, float] = {}

    def setup_caches(
        self, *, batch_size: int, dtype: torch.dtype, decoder_max_seq_len: int
    ) -> None:
        if self.cache_failures:
            raise self.cache_failures.pop(0)
        self.set_up.append((batch_size, decoder_max_seq_len))
        self._pages = {}

    def reset_caches(self) -> None:
        self.resets += 1
        self._pages = {}

    def generate(
        self, batch: StepBatch, inputs: Bundle
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        self.computed.append(batch.tokens)
        if self.failures:
            raise self.failures.pop(0)
        name = "token_ids" if self.shard.is_first else "hidden"
        values = inputs[name].reshape(batch.tokens, -1)[:, 0].float() + 1
        rows = batch.cache_rows.tolist()
        self._pages.update(zip(rows, values.tolist(), strict=True))
        if not self.shard.is_last:
            return values.reshape(-1, 1).expand(-1, WIDTH), None
        return None, torch.stack([self._logits(batch, i) for i in range(len(batch.segments))])

    def _logits(self, batch: StepBatch, index: int) -> torch.Tensor:
        segment = batch.segments[index]
        size = batch.block_size
        seen = [
            self._pages[int(segment.blocks[p // size]) * size + p % size] * (p + 1)
            for p in range(segment.start + segment.count)
        ]
        return torch.tensor(seen).sum() + torch.arange(VOCAB)


def fresh_logits(*ids: int) -> list[float]:
    total = float(sum((token + 1) * (at + 1) for at, token in enumerate(ids)))
    return [total + i for i in range(VOCAB)]


def make_engine(shard: Shard = WHOLE) -> tuple[TorchDynamicShardInferenceEngine, TwinModel]:
    engine = TorchDynamicShardInferenceEngine(None, device="cpu")
    twin = TwinModel(shard)
    engine.model_instance, engine.current_shard, engine.model_config = twin, shard, dict(CONFIG)
    return engine, twin


async def infer(
    engine: TorchDynamicShardInferenceEngine, request: str, *ids: int, state: Any = None
) -> list[float]:
    output, _ = await engine.infer_tensor(request, WHOLE, np.array([ids]), state)
    assert output is not None
    assert output.dtype == np.float32
    assert output.shape == (1, VOCAB)
    return [float(x) for x in output[0]]


def run(work: Any) -> Any:
    return asyncio.run(work)


# -- device, cache, clearing -----------------------------------------------------------------


def test_the_device_follows_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_DEVICE", "meta")
    assert TorchDynamicShardInferenceEngine(None).device == torch.device("meta")
    assert TorchDynamicShardInferenceEngine(None, device="cpu").device == torch.device("cpu")
    monkeypatch.setenv("LAMELLA_DEVICE", "abacus")
    with pytest.raises(InvalidConfig, match="abacus"):
        TorchDynamicShardInferenceEngine(None)


def test_the_cache_is_set_up_once_and_grows() -> None:
    engine, twin = make_engine()
    engine.setup_cache(1, 16)
    engine.setup_cache(1, 16)
    engine.setup_cache(1, 8)
    assert twin.set_up == [(1, 16)]
    engine.setup_cache(1, 32)
    engine.setup_cache(2, 8)
    assert twin.set_up == [(1, 16), (1, 32), (2, 32)]


def test_the_engines_own_flag_decides() -> None:
    engine, twin = make_engine()
    engine.cache_initialized = True
    engine.setup_cache(1, 16)
    assert twin.set_up == []


def test_no_cache_is_set_up_when_it_is_off() -> None:
    engine, twin = make_engine()
    engine.enable_cache = False
    engine.setup_cache(1, 16)
    assert twin.set_up == []
    assert not engine.cache_initialized


@pytest.mark.parametrize(
    ("rows", "length", "error", "message"),
    [
        (1, 65, PromptTooLong, "65 tokens was asked for, the model holds 64"),
        (0, 8, InvalidInput, "batch_size=0"),
        (1, 0, InvalidInput, "total_response_length=0"),
    ],
    ids=["past the model's maximum", "no rows", "no tokens"],
)
def test_a_cache_that_cannot_be(
    rows: int, length: int, error: type[Exception], message: str
) -> None:
    engine, twin = make_engine()
    with pytest.raises(error, match=message):
        engine.setup_cache(rows, length)
    assert twin.set_up == []


def test_a_cache_without_a_model_is_refused() -> None:
    with pytest.raises(EngineError, match="ensure_shard"):
        TorchDynamicShardInferenceEngine(None).setup_cache()


def test_clearing_is_idempotent_and_keeps_what_costs_nothing() -> None:
    engine, twin = make_engine()
    engine.out_of_memory_count = 3
    engine.tokenizer = object()
    engine.clear_model()
    engine.clear_model()
    assert twin.resets == 1
    assert engine.model_instance is None
    assert engine.out_of_memory_count == 3
    assert engine.model_config == CONFIG
    assert engine.tokenizer is not None


# -- infer_tensor ----------------------------------------------------------------------------


def test_a_request_goes_on_where_it_stands() -> None:
    engine, twin = make_engine()

    async def story() -> None:
        output, state = await engine.infer_tensor("a", WHOLE, np.array([[1, 2, 3]]))
        assert output is not None
        assert output[0].tolist() == fresh_logits(1, 2, 3)
        assert state == {"token_count": 3, "position": 3, "step": 1}
        assert await infer(engine, "a", 4, state=state) == fresh_logits(1, 2, 3, 4)
        assert await infer(engine, "a", 5) == fresh_logits(1, 2, 3, 4, 5)
        assert engine.inference_state is not None
        assert engine.inference_state.to_dict() == {"token_count": 5, "position": 5, "step": 3}
        assert engine.current_request_id == "a"

    run(story())
    assert twin.computed == [3, 1, 1]


def test_two_requests_interleaved_equal_two_in_sequence() -> None:
    engine, _twin = make_engine()
    engine.setup_cache(1, 32)  # one slot: each request takes it from the other

    async def story() -> None:
        await asyncio.gather(infer(engine, "a", 1, 2), infer(engine, "b", 7, 8, 9))
        for step in range(3):
            at_a, at_b = await asyncio.gather(
                infer(engine, "a", step), infer(engine, "b", step + 4)
            )
        assert at_a == fresh_logits(1, 2, 0, 1, 2)
        assert at_b == fresh_logits(7, 8, 9, 4, 5, 6)

    run(story())


def test_with_slots_for_both_nothing_is_computed_twice() -> None:
    engine, twin = make_engine()

    async def story() -> None:
        for request, ids in (("a", (1, 2)), ("b", (3,)), ("a", (4,)), ("b", (5,))):
            await infer(engine, request, *ids)
        assert await infer(engine, "a", 6) == fresh_logits(1, 2, 4, 6)

    run(story())
    assert sum(twin.computed) == 6


def test_a_second_prompt_on_a_warm_engine_equals_a_fresh_one() -> None:
    engine, _ = make_engine()

    async def story() -> None:
        await infer(engine, "a", 9, 9, 9, 9)
        assert await infer(engine, "b", 1, 2) == fresh_logits(1, 2)
        restarted = await infer(engine, "a", 1, 2, state={"position": 0})
        assert restarted == fresh_logits(1, 2)

    run(story())


def test_cache_off_equals_cache_on() -> None:
    engine, twin = make_engine()
    engine.enable_cache = False

    async def story() -> None:
        await infer(engine, "a", 1, 2)
        assert await infer(engine, "a", 3) == fresh_logits(1, 2, 3)

    run(story())
    assert twin.computed == [2, 3]
    assert twin.set_up == []


def test_a_cache_that_grows_forgets_no_request() -> None:
    engine, twin = make_engine()
    engine.setup_cache(1, 16)

    async def story() -> None:
        ids = [i % VOCAB for i in range(40)]
        await infer(engine, "a", *ids[:10])
        await infer(engine, "a", *ids[10:30])
        assert await infer(engine, "a", *ids[30:]) == fresh_logits(*ids)

    run(story())
    assert twin.set_up[0] == (1, 16)
    assert twin.set_up[-1] == (1, 64)


def test_a_batch_of_several_rows() -> None:
    engine, _ = make_engine()

    async def story() -> None:
        await engine.infer_tensor("a", WHOLE, np.array([[1, 2], [3, 4], [5, 6]]))
        output, _ = await engine.infer_tensor("a", WHOLE, np.array([[7], [8], [9]]))
        assert output is not None
        assert output.tolist() == [
            fresh_logits(1, 2, 7), fresh_logits(3, 4, 8), fresh_logits(5, 6, 9),
        ]  # fmt: skip
        with pytest.raises(ValueError, match="has 3 rows, the input has 1"):
            await infer(engine, "a", 1)

    run(story())


def test_ten_thousand_tokens() -> None:
    engine, _twin = make_engine()
    engine.model_config = {**CONFIG, "max_seq_len": None}
    ids = np.random.default_rng(0).integers(0, VOCAB, 10_000)
    assert run(infer(engine, "a", *ids.tolist())) == pytest.approx(fresh_logits(*ids.tolist()))
    assert run(infer(engine, "a", 1))  # and goes on


def test_a_stage_hands_on_the_hidden_states_of_its_last_layer() -> None:
    first, _ = make_engine(FIRST)
    last, _ = make_engine(LAST)

    async def story() -> None:
        state: Any = None
        for ids in ([[1, 2, 3]], [[4]], [[5]]):
            hidden, state = await first.infer_tensor("a", FIRST, np.array(ids), state)
            assert hidden is not None
            assert hidden.shape == (1, len(ids[0]), WIDTH)
            output, state = await last.infer_tensor("a", LAST, hidden, state)
        assert output is not None
        seen = [token + 1 for token in (1, 2, 3, 4, 5)]
        assert output[0].tolist() == fresh_logits(*seen)
        assert state == {"token_count": 5, "position": 5, "step": 3}

    run(story())


def test_only_the_last_position_of_long_logits_is_given() -> None:
    engine, twin = make_engine()
    long = torch.arange(2 * 3 * 4, dtype=torch.bfloat16).reshape(2, 3, 4)
    twin.generate = lambda batch, inputs: (None, long)  # type: ignore[method-assign]
    output, _ = run(engine.infer_tensor("a", WHOLE, np.array([[1, 2, 3], [1, 2, 3]])))
    assert output.tolist() == long[:, -1].tolist()


@pytest.mark.parametrize(
    ("shard", "data", "message"),
    [
        (WHOLE, None, "null"),
        (WHOLE, [[1, 2]], "list"),
        (WHOLE, np.array([1, 2]), r"wants \[batch, tokens\]"),
        (WHOLE, np.array([[[1, 2]]]), r"wants \[batch, tokens\]"),
        (WHOLE, np.array([[1.0, 2.0]]), "wants integers"),
        (WHOLE, np.array([[True, False]]), "wants integers"),
        (WHOLE, np.array([["a"]]), "wants integers"),
        (WHOLE, np.array([[None]], dtype=object), "wants integers"),
        (WHOLE, np.zeros((1, 0), np.int64), "at least one token"),
        (WHOLE, np.zeros((0, 3), np.int64), "at least one token"),
        (WHOLE, np.array([[-1]]), "ids go from -1"),
        (WHOLE, np.array([[VOCAB]]), "ids go from 11"),
        (LAST, np.zeros((1, 2, WIDTH), np.int64), "wants floats"),
        (LAST, np.zeros((2, WIDTH), np.float32), r"wants \[batch, tokens, hidden\]"),
        (LAST, np.zeros((1, 2, WIDTH + 1), np.float32), "the model is 3 wide"),
        (LAST, np.array([[1, 2]]), "wants floats"),
    ],
    ids=[
        "null", "list", "1-D", "3-D ids", "floats", "booleans", "text", "objects", "no tokens",
        "no rows", "negative", "past the vocabulary", "integer hidden", "2-D hidden", "wrong width",
        "ids on a later stage",
    ],
)  # fmt: skip
def test_input_that_is_refused_before_any_compute(shard: Shard, data: Any, message: str) -> None:
    engine, twin = make_engine(shard)
    with pytest.raises(ValueError, match=message):
        run(engine.infer_tensor("a", shard, data))
    assert twin.computed == []
    assert len(engine.sessions) == 0


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"position": 7}, SessionLost, "not known here"),
        ({"position": -1}, ValueError, "position=-1"),
        ({"position": "3"}, ValueError, "position='3'"),
        ({"position": True}, ValueError, "position=True"),
        ([1], ValueError, "is a list"),
    ],
    ids=["of another engine", "negative", "text", "boolean", "list"],
)
def test_a_state_that_cannot_be(state: Any, error: type[Exception], message: str) -> None:
    engine, twin = make_engine()
    with pytest.raises(error, match=message):
        run(infer(engine, "a", 1, state=state))
    assert twin.computed == []


def test_a_state_that_is_not_where_the_request_stands() -> None:
    engine, _ = make_engine()

    async def story() -> None:
        await infer(engine, "a", 1, 2, 3)
        with pytest.raises(SessionLost, match="stands at position 3, its input starts at 2"):
            await infer(engine, "a", 1, state={"position": 2})
        assert await infer(engine, "a", 4, state={"position": 3}) == fresh_logits(1, 2, 3, 4)
        assert await infer(engine, "a", 5, state={}) == fresh_logits(1, 2, 3, 4, 5)

    run(story())
    last, _ = make_engine(LAST)
    hidden = np.zeros((1, 4, WIDTH), np.float32)
    with pytest.raises(ValueError, match="4 tokens came with it"):
        run(last.infer_tensor("a", LAST, hidden, {"position": 3}))


def test_a_sequence_longer_than_the_model_is_refused_whole() -> None:
    engine, _twin = make_engine()

    async def story() -> None:
        await infer(engine, "a", *[1] * 60)
        with pytest.raises(PromptTooLong, match="would hold 65 tokens, the model 64"):
            await infer(engine, "a", *[1] * 5)
        assert await infer(engine, "a", *[1] * 4) == fresh_logits(*[1] * 64)

    run(story())


def test_a_model_that_gives_the_wrong_thing() -> None:
    engine, twin = make_engine()
    twin.generate = lambda batch, inputs: (torch.zeros(1, 1, WIDTH), None)  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="gave no logits"):
        run(infer(engine, "a", 1))
    first, twin = make_engine(FIRST)
    twin.generate = lambda batch, inputs: (None, torch.zeros(1, VOCAB))  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="gave no hidden"):
        run(first.infer_tensor("a", FIRST, np.array([[1]])))


def test_a_runtime_error_propagates_and_the_request_can_go_on() -> None:
    engine, twin = make_engine()

    async def story() -> None:
        await infer(engine, "a", 1, 2)
        twin.failures = [RuntimeError("shapes do not match")]
        with pytest.raises(RuntimeError, match="shapes do not match"):
            await infer(engine, "a", 3)
        assert engine.out_of_memory_count == 0
        assert engine.model_instance is twin
        assert await infer(engine, "a", 3) == fresh_logits(1, 2, 3)

    run(story())


# -- out of memory ---------------------------------------------------------------------------

MEMORY_ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, other: 1 MB)"),
    lambda: MemoryError(),
]
memory_errors = pytest.mark.parametrize("make", MEMORY_ERRORS, ids=["cuda", "cpu", "mps", "python"])


@memory_errors
def test_out_of_memory_frees_the_model(
    make: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    engine, twin = make_engine()
    engine.device = torch.device("cuda")
    twin.failures = [make()]
    with caplog.at_level(logging.ERROR, "lamella_worker.engine"):
        assert run(engine.infer_tensor("a", WHOLE, np.array([[1]]))) == (None, None)
    assert [r.getMessage() for r in caplog.records] == ["Out of memory on CUDA"]
    assert engine.out_of_memory_count == 1
    assert engine.model_instance is None
    assert engine.current_shard is None
    assert twin.resets == 1
    assert len(twin.computed) == 1


@memory_errors
def test_out_of_memory_with_other_sessions_evicts_them_and_tries_again(
    make: Callable[[], BaseException],
) -> None:
    engine, twin = make_engine()

    async def story() -> None:
        await infer(engine, "other", 5)
        await infer(engine, "a", 1, 2)
        twin.failures = [make()]
        assert await infer(engine, "a", 3) == fresh_logits(1, 2, 3)
        assert engine.out_of_memory_count == 0
        assert "other" not in engine.sessions
        twin.failures = [make()]  # none is left to evict
        assert await engine.infer_tensor("a", WHOLE, np.array([[4]])) == (None, None)
        assert engine.out_of_memory_count == 1

    run(story())


def test_out_of_memory_twice_gives_up() -> None:
    engine, twin = make_engine()

    async def story() -> None:
        await infer(engine, "other", 5)
        twin.failures = [MemoryError(), MemoryError()]
        assert await engine.infer_tensor("a", WHOLE, np.array([[1]])) == (None, None)

    run(story())
    assert engine.out_of_memory_count == 1


@memory_errors
def test_out_of_memory_in_the_cache(make: Callable[[], BaseException]) -> None:
    engine, twin = make_engine()
    twin.cache_failures = [make()]
    with pytest.raises(EngineError, match="no memory for a cache of 1 x 16 tokens"):
        engine.setup_cache(1, 16)
    assert engine.out_of_memory_count == 1
    assert engine.model_instance is None
    assert not engine.cache_initialized


def test_a_cache_that_does_not_fit_is_tried_at_the_size_that_is_needed() -> None:
    engine, twin = make_engine()
    twin.cache_failures = [MemoryError()]
    assert run(infer(engine, "a", 1, 2)) == fresh_logits(1, 2)
    assert twin.set_up == [(1, 2)]
    engine, twin = make_engine()
    twin.cache_failures = [MemoryError(), MemoryError()]
    assert run(engine.infer_tensor("a", WHOLE, np.array([[1]]))) == (None, None)
    assert engine.out_of_memory_count == 1


# -- the byte budget -------------------------------------------------------------------------


def test_sessions_beyond_the_budget_are_forgotten_oldest_first() -> None:
    engine, _ = make_engine()
    engine.sessions.budget_bytes = 100

    async def story() -> None:
        for request in "abc":
            await infer(engine, request, 1, 2, 3, 4, 5)  # 40 bytes of ids each
        assert "a" not in engine.sessions
        assert engine.sessions.bytes_used <= 100
        with pytest.raises(SessionLost, match="not known here"):
            await infer(engine, "a", 6, state={"position": 5})
        assert await infer(engine, "b", 6) == fresh_logits(1, 2, 3, 4, 5, 6)

    run(story())


def test_a_session_beyond_the_budget_lives_on_its_cache_alone() -> None:
    engine, _ = make_engine()
    engine.setup_cache(1, 32)
    engine.sessions.budget_bytes = 10

    async def story() -> None:
        await infer(engine, "a", 1, 2, 3)
        assert await infer(engine, "a", 4) == fresh_logits(1, 2, 3, 4)
        await infer(engine, "b", 5)  # takes the one slot
        with pytest.raises(SessionLost, match="its inputs were evicted at position 4"):
            await infer(engine, "a", 5)
        assert await infer(engine, "a", 7, state={"position": 0}) == fresh_logits(7)

    run(story())


# -- shards ----------------------------------------------------------------------------------


class Downloader:
    """Gives a folder that has no model in it, and counts."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder
        self.calls = 0

    async def ensure_shard(self, shard: Shard) -> Any:
        self.calls += 1
        await asyncio.sleep(0)
        if isinstance(self.folder, Exception):
            raise self.folder
        return self.folder


@pytest.mark.parametrize(
    ("folder", "error"),
    [
        (None, EngineError),
        (ModelNotFound("there is no such model"), ModelNotFound),
        ("nowhere", ModelNotFound),
        (Path("nowhere"), ModelNotFound),
    ],
    ids=["no path", "downloader fails", "no folder", "no folder as Path"],
)
def test_a_shard_that_cannot_be_had(folder: Any, error: type[Exception]) -> None:
    downloader = Downloader(folder)
    engine = TorchDynamicShardInferenceEngine(downloader)
    for attempt in (1, 2):  # a failure is not remembered as success
        with pytest.raises(error):
            run(engine.ensure_shard(WHOLE))
        assert engine.model_instance is None
        assert engine.current_shard is None
        assert engine.model_config is None
        assert engine.tokenizer is None
        assert downloader.calls == attempt


def test_a_failed_switch_keeps_the_old_shard_until_the_new_ones_files_are_there() -> None:
    engine, _twin = make_engine()
    engine.shard_downloader = Downloader("nowhere")
    with pytest.raises(ModelNotFound):
        run(engine.infer_tensor("a", FIRST, np.array([[1]])))
    assert engine.current_shard == WHOLE
    assert run(infer(engine, "a", 1)) == fresh_logits(1)


def test_callers_at_the_same_time_share_one_flight_and_its_error() -> None:
    downloader = Downloader(ModelNotFound("gone"))
    engine = TorchDynamicShardInferenceEngine(downloader)

    async def story() -> list[Any]:
        calls = [engine.ensure_shard(WHOLE) for _ in range(5)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(e) for e in run(story())] == [ModelNotFound] * 5
    assert downloader.calls == 1


def test_a_caller_that_leaves_does_not_stop_the_others() -> None:
    downloader = Downloader(ModelNotFound("gone"))
    engine = TorchDynamicShardInferenceEngine(downloader)

    async def story() -> None:
        first = asyncio.create_task(engine.ensure_shard(WHOLE))
        second = asyncio.create_task(engine.ensure_shard(WHOLE))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(ModelNotFound):
            await second

    run(story())
    assert downloader.calls == 1


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("m", -1, 0, 2), "start_layer=-1"),
        (("m", 1, 0, 2), "start <= end"),
        (("m", 0, 2, 2), "end < n"),
        (("m", 0, 0, 0), "n_layers=0"),
        (("", 0, 0, 1), "model_id"),
        (("m", 0.0, 0, 1), "start_layer=0.0"),
        (("m", False, 0, 1), "start_layer=False"),
    ],
    ids=["negative", "end before start", "end past n", "no layers", "no name", "float", "bool"],
)
def test_a_shard_that_cannot_be(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shard(*values)


def test_a_shard_knows_its_half_open_range() -> None:
    shard = Shard("m", 2, 4, 6)
    assert shard.layers == range(2, 5)
    assert Shard.of("m", range(2, 5), 6) == shard
    assert Shard.from_dict(shard.to_dict()) == shard
    assert (shard.is_first, shard.is_last) == (False, False)
    with pytest.raises(ValueError, match="keys"):
        Shard.from_dict({**shard.to_dict(), "extra": 1})


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (None, (0, 0, 0)),
        ({}, (0, 0, 0)),
        ({"position": 4}, (0, 4, 0)),
        ({"position": None, "step": 2, "mask": [[1]], "later": "x"}, (0, 0, 2)),
    ],
    ids=["null", "empty", "some", "unknown and null"],
)
def test_a_state_from_another_version(data: Any, wanted: tuple[int, ...]) -> None:
    state = ShardInferenceState.from_dict(data)
    assert (state.token_count, state.position, state.step) == wanted
    assert ShardInferenceState.from_dict(state.to_dict()) == state
    assert state.mask is None


@pytest.mark.parametrize("top_k", [0, None, 1000], ids=["0", "none", "past the vocabulary"])
def test_sampling_needs_no_model(top_k: int | None) -> None:
    engine = TorchDynamicShardInferenceEngine(None)
    assert run(engine.sample(np.array([[0.0, 9.0, 1.0]]), temp=0, top_k=top_k)).tolist() == [1]
    assert run(engine.sample(np.array([[[5.0, 0.0], [0.0, 5.0]]]), 0.0)).tolist() == [1]


@pytest.mark.parametrize(
    "logits",
    [[[np.nan, 1.0]], [[-np.inf, -np.inf]], None, [["a"]]],
    ids=["nan", "-inf", "null", "text"],
)
def test_logits_that_cannot_be_sampled(logits: Any) -> None:
    engine = TorchDynamicShardInferenceEngine(None)
    with pytest.raises(ValueError, match=r"\w"):
        run(engine.sample(logits))
