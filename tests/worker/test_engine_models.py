"""The engine on real (tiny, random) models: splits, switches, checkpoints, pressure on memory.

The oracle is the unsplit model of transformers, in float32 on the CPU.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3nTextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
)

from lamella_checkpoint.source import LocalSource
from lamella_contract.config import PipelineConfig, StageConfig
from lamella_contract.errors import (
    CorruptModel,
    EngineError,
    HubUnreachable,
    InvalidConfig,
    LamellaError,
    MissingTensor,
    ModelNotFound,
    OutOfMemory,
    PromptTooLong,
    UnsupportedFamily,
)
from lamella_worker.batch import Bundle, Segment, StepBatch
from lamella_worker.downloader import ShardDownloader
from lamella_worker.engine import Shard, TorchDynamicShardInferenceEngine
from lamella_worker.engine_infer import check_boundary
from lamella_worker.engine_step import halves, step_or_halves

VOCAB, LAYERS = 64, 4
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2),
    "tied": lambda: LlamaConfig(
        **{**SIZES, "max_position_embeddings": 12_000},
        intermediate_size=48,
        tie_word_embeddings=True,
    ),
    "window": lambda: MistralConfig(
        **SIZES, intermediate_size=48, num_key_value_heads=4, sliding_window=8
    ),
    "qwen3_next": lambda: Qwen3NextConfig(  # keeps recurrent state beside the pages
        **SIZES,
        intermediate_size=48,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),  # not a fast family
}
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3]


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """The engine collects garbage when it frees memory: 0.5 s with all of transformers' objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for seed, (name, make) in enumerate(CONFIGS.items()):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(make()).save_pretrained(folder)
        save_tokenizer(folder)
        found[name] = folder
    return found


def save_tokenizer(folder: Path) -> None:
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


@pytest.fixture
def make_engine() -> Iterator[Callable[..., TorchDynamicShardInferenceEngine]]:
    made: list[TorchDynamicShardInferenceEngine] = []

    def make(downloader: Any = None) -> TorchDynamicShardInferenceEngine:
        made.append(TorchDynamicShardInferenceEngine(downloader or ShardDownloader(), device="cpu"))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def shard_of(folder: Path, first: int = 0, last: int = LAYERS) -> Shard:
    return Shard.of(str(folder), range(first, last), LAYERS)


def oracle(folder: Path, ids: list[list[int]]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(ids)).logits[:, -1].numpy()


async def through(
    engines: list[TorchDynamicShardInferenceEngine],
    shards: list[Shard],
    request: str,
    ids: list[list[int]],
    state: Any = None,
) -> tuple[np.ndarray, Any]:
    data: Any = np.array(ids)
    for engine, shard in zip(engines, shards, strict=True):
        data, state = await engine.infer_tensor(request, shard, data, state)
        assert data is not None
    return data, state


# -- the law of the split, at the engine's level ---------------------------------------------


@pytest.mark.parametrize("splits", [(), (1,), (3,), (1, 3)], ids=["4", "1+3", "3+1", "1+2+1"])
@pytest.mark.parametrize("family", CONFIGS)
def test_engines_in_line_equal_the_unsplit_model(
    family: str,
    splits: tuple[int, ...],
    folders: dict[str, Path],
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    folder = folders[family]
    edges = [0, *splits, LAYERS]
    shards = [shard_of(folder, a, b) for a, b in itertools.pairwise(edges)]
    engines = [make_engine() for _ in shards]

    async def story() -> None:
        ids, new, state = list(PROMPT), list(PROMPT), None
        for _ in range(8):
            logits, state = await through(engines, shards, "r", [new], state)
            np.testing.assert_allclose(logits, oracle(folder, [ids]), atol=1e-5)
            new = [int(logits[0].argmax())]
            ids += new
        assert state == {"token_count": 19, "position": 19, "step": 8}

    asyncio.run(story())


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3_next"])
def test_cache_off_warm_engine_and_interleaving_change_nothing(
    family: str,
    folders: dict[str, Path],
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    folder, shard = folders[family], shard_of(folders[family])
    uncached, one_slot = make_engine(), make_engine()
    uncached.enable_cache = False

    async def story() -> None:
        await one_slot.ensure_shard(shard)
        one_slot.setup_cache(1, 64)
        for engine in (uncached, one_slot):
            ids: dict[str, list[int]] = {"a": PROMPT[:5], "b": PROMPT[3:]}
            for request in "ab":
                await through([engine], [shard], request, [ids[request]])
            for step in (1, 2, 3):
                for request in "ab":
                    ids[request] = [*ids[request], step]
                    logits, _ = await through([engine], [shard], request, [[step]])
                    want = oracle(folder, [ids[request]])
                    np.testing.assert_allclose(logits, want, atol=1e-5)
            logits, _ = await through([engine], [shard], "a", [PROMPT], {"position": 0})
            np.testing.assert_allclose(logits, oracle(folder, [PROMPT]), atol=1e-5)

    asyncio.run(story())


def test_a_batch_and_a_growing_cache(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    folder, shard, engine = folders["llama"], shard_of(folders["llama"]), make_engine()

    async def story() -> None:
        await engine.ensure_shard(shard)
        engine.setup_cache(1, 16)
        rows = [PROMPT, PROMPT[::-1]]
        await through([engine], [shard], "r", rows)
        longer = [[*row, *range(20)] for row in rows]
        logits, _ = await through([engine], [shard], "r", [list(range(20))] * 2)
        np.testing.assert_allclose(logits, oracle(folder, longer), atol=1e-5)

    asyncio.run(story())


def test_ten_thousand_tokens(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    folder = folders["tied"]
    ids = [int(i) for i in np.random.default_rng(1).integers(0, VOCAB, 10_000)]
    shards = [shard_of(folder, 0, 1), shard_of(folder, 1, 4)]
    engines = [make_engine(), make_engine()]
    logits, state = asyncio.run(through(engines, shards, "r", [ids]))
    np.testing.assert_allclose(logits, oracle(folder, [ids]), atol=1e-5)
    assert state["position"] == 10_000
    with pytest.raises(PromptTooLong, match="would hold 12001 tokens, the model 12000"):
        asyncio.run(through(engines, shards, "r", [ids[:2001]]))


def test_a_cut_that_more_than_hidden_states_cross_is_refused() -> None:
    model: Any = SimpleNamespace(config=Gemma3nTextConfig())
    check_boundary(Shard("gemma3n", 0, 3, 4), model)
    with pytest.raises(UnsupportedFamily, match="gemma3n_text"):
        check_boundary(Shard("gemma3n", 0, 1, 4), model)


# -- text ------------------------------------------------------------------------------------


def test_text_in_and_out_without_weights(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    engine, shard = make_engine(), shard_of(folders["llama"])

    async def story() -> None:
        ids = await engine.encode(shard, "w1 w2 w63")
        assert ids.dtype == np.int64
        assert ids.tolist() == [[1, 2, 63]]
        assert await engine.decode(shard, ids) == "w1 w2 w63"
        assert await engine.decode(shard, ids[0].astype(np.int32)) == "w1 w2 w63"
        assert await engine.decode(shard, np.array([], np.int64)) == ""
        assert engine.model_instance is None
        for prompt in ("", None, b"w1", "   "):
            with pytest.raises(ValueError, match="prompt"):
                await engine.encode(shard, prompt)  # type: ignore[arg-type]
        await engine.encode(shard, "w1 " * 256)
        with pytest.raises(PromptTooLong, match="257 tokens, the model holds 256"):
            await engine.encode(shard, "w1 " * 257)
        bad: Any
        for bad in ([64], [-1], [1.0], [[1], [2]], [[[1]]], [True], ["w1"], None):
            with pytest.raises(ValueError, match="token"):
                await engine.decode(shard, np.array(bad))

    asyncio.run(story())


def test_what_a_tokenizer_raises_propagates(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    class Broken:
        def encode(self, prompt: str) -> list[int]:
            raise KeyError(prompt)

    engine = make_engine()
    engine.tokenizer = Broken()
    with pytest.raises(KeyError, match="w1"):
        asyncio.run(engine.encode(shard_of(folders["llama"]), "w1"))


# -- shards ----------------------------------------------------------------------------------


class Counting(ShardDownloader):
    """Counts downloads; the folders are local."""

    calls = 0

    async def ensure_shard(self, shard: Shard) -> Path:
        self.calls += 1
        return await super().ensure_shard(shard)


def test_one_load_for_many_callers_and_a_switch(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    downloader = Counting()
    engine = make_engine(downloader)
    front, back = shard_of(folders["llama"], 0, 2), shard_of(folders["opt"], 2, 4)

    async def story() -> None:
        await asyncio.gather(*(engine.ensure_shard(front) for _ in range(8)))
        assert downloader.calls == 1
        held = engine.model_instance
        await engine.ensure_shard(front)
        assert engine.model_instance is held
        # Both shards wanted at once, again and again: every call computes on its own.
        hidden = np.zeros((1, 3, 32), np.float32)
        answers = await asyncio.gather(
            *(
                engine.infer_tensor(f"r{i}", front, np.array([PROMPT]))
                if i % 2
                else engine.infer_tensor(f"r{i}", back, hidden)
                for i in range(6)
            )
        )
        assert [a[0].shape for a in answers if a[0] is not None] == [(1, VOCAB), (1, 12, 32)] * 3

    asyncio.run(story())


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file)


def misshape(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(
        name for name in tensors if name.endswith((".0.mlp.up_proj.weight", ".0.fc1.weight"))
    )
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file)


def rename_family(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "abacus"}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[LamellaError]]] = {
    "truncated": (truncate, CorruptModel),
    "tensor missing": (drop_tensor, MissingTensor),
    "wrong shape": (misshape, CorruptModel),
    "unknown family": (rename_family, UnsupportedFamily),
    "no config": (lambda f: (f / "config.json").unlink(), ModelNotFound),
    "broken config": (lambda f: (f / "config.json").write_text("{"), CorruptModel),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelNotFound),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), CorruptModel),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_leaves_nothing_behind_and_can_be_retried(
    damage: str,
    folders: dict[str, Path],
    tmp_path: Path,
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    hurt, error = DAMAGE[damage]
    whole = folders["opt" if damage == "wrong shape" else "llama"]
    folder = copy_of(whole, tmp_path / "model")
    hurt(folder)
    engine, shard = make_engine(), shard_of(folder)

    async def story() -> None:
        for _ in range(2):
            with pytest.raises(error):
                await engine.ensure_shard(shard)
            assert engine.model_instance is None
            assert engine.current_shard is None
        for file in whole.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        logits, _ = await through([engine], [shard], "r", [PROMPT])
        np.testing.assert_allclose(logits, oracle(folder, [PROMPT]), atol=1e-5)

    asyncio.run(story())
    assert engine.out_of_memory_count == 0


class Memoryless(LocalSource):
    """Reading a tensor fails as an allocation does."""

    fail = True

    def read_scatter(self, name: str, start: int, buffers: Any) -> None:
        if self.fail and name.endswith(".safetensors") and start > 8:
            raise MemoryError
        super().read_scatter(name, start, buffers)


def test_out_of_memory_while_weights_are_read(
    folders: dict[str, Path],
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = folders["llama"]
    sources: list[Memoryless] = []

    def opener(uri: str, **_: Any) -> LocalSource:
        sources.append(Memoryless(Path(uri)))
        sources[-1].fail = len(sources) <= 4
        return sources[-1]

    engine, shard = make_engine(ShardDownloader(opener=opener)), shard_of(folder)

    async def story() -> None:
        with caplog.at_level(logging.ERROR, "lamella_worker.engine"):
            with pytest.raises(OutOfMemory):
                await engine.ensure_shard(shard)
            answer = await engine.infer_tensor("r", shard, np.array([PROMPT]))
            assert answer == (None, None)
        assert [r.getMessage() for r in caplog.records] == ["Out of memory on CPU"] * 2
        assert engine.out_of_memory_count == 2
        await through([engine], [shard], "r", [PROMPT])  # memory is there again

    asyncio.run(story())


def test_offline_a_cached_shard_works_and_a_missing_one_says_so(
    folders: dict[str, Path],
    tmp_path: Path,
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    engine = make_engine(ShardDownloader(tmp_path, offline=True))

    async def story() -> None:
        await engine.ensure_shard(shard_of(folders["llama"], 1, 2))
        with pytest.raises(HubUnreachable, match="nobody/nothing"):
            await engine.ensure_shard(Shard("hf://nobody/nothing", 0, 0, 1))
        with pytest.raises(ModelNotFound, match="absent"):
            await engine.ensure_shard(shard_of(tmp_path / "absent"))
        assert engine.current_shard == shard_of(folders["llama"], 1, 2)

    asyncio.run(story())


# -- checkpoints -----------------------------------------------------------------------------


def test_a_checkpoint_is_really_loaded_and_really_saved(
    folders: dict[str, Path],
    tmp_path: Path,
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    torch.manual_seed(99)
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(CONFIGS["llama"]()).save_pretrained(other)
    save_tokenizer(other)
    folder = folders["llama"]
    shards = [shard_of(folder, 0, 2), shard_of(folder, 2, 4)]
    engines = [make_engine(), make_engine()]

    async def story() -> None:
        await through(engines, shards, "old", [PROMPT])
        for engine, shard in zip(engines, shards, strict=True):
            await engine.load_checkpoint(shard, other)
        logits, _ = await through(engines, shards, "r", [PROMPT])
        np.testing.assert_allclose(logits, oracle(other, [PROMPT]), atol=1e-5)
        file = tmp_path / "saved" / "front.safetensors"
        await engines[0].save_checkpoint(shards[0], file)
        await engines[1].save_checkpoint(shards[1], tmp_path / "saved")
        front, back = load_file(file), load_file(tmp_path / "saved" / "model.safetensors")
        whole = load_file(other / "model.safetensors")
        assert set(front) | set(back) == set(whole)
        assert not set(front) & set(back)
        for name, tensor in (front | back).items():
            assert torch.equal(tensor, whole[name]), name
        await engines[0].load_checkpoint(shards[0], folder / "model.safetensors")
        await engines[0].load_checkpoint(shards[0], file)
        logits, _ = await through(engines, shards, "again", [PROMPT])
        np.testing.assert_allclose(logits, oracle(other, [PROMPT]), atol=1e-5)
        assert [p.name for p in file.parent.iterdir() if p.name.startswith(".")] == []

    asyncio.run(story())


def outside(folder: Path) -> None:
    file = folder / "model.safetensors"
    away = folder.parent / "away.safetensors"
    file.rename(away)
    file.symlink_to(away)


@pytest.mark.parametrize(
    ("hurt", "error"),
    [
        (truncate, CorruptModel),
        (drop_tensor, MissingTensor),
        (misshape, CorruptModel),
        (outside, CorruptModel),
    ],
    ids=["truncated", "tensor missing", "wrong shape", "link to the outside"],
)
def test_a_bad_checkpoint_leaves_the_weights_in_use(
    hurt: Callable[[Path], Any],
    error: type[Exception],
    folders: dict[str, Path],
    tmp_path: Path,
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    engine, shard = make_engine(), shard_of(folders["llama"])
    bad = copy_of(folders["llama"], tmp_path / "bad")
    hurt(bad)

    async def story() -> None:
        await through([engine], [shard], "r", [PROMPT[:-1]])
        for path in (bad, bad / "model.safetensors"):
            with pytest.raises(error):
                await engine.load_checkpoint(shard, path)
        logits, _ = await through([engine], [shard], "r", [PROMPT[-1:]])
        np.testing.assert_allclose(logits, oracle(folders["llama"], [PROMPT]), atol=1e-5)

    asyncio.run(story())


def test_checkpoints_that_are_not_ours_to_load(
    folders: dict[str, Path],
    tmp_path: Path,
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, shard = make_engine(), shard_of(folders["llama"])
    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")

    async def story() -> None:
        with pytest.raises(EngineError, match="call ensure_shard first"):
            await engine.load_checkpoint(shard, folders["llama"])
        with pytest.raises(EngineError, match="call ensure_shard first"):
            await engine.save_checkpoint(shard, tmp_path / "x.safetensors")
        await engine.ensure_shard(shard)
        with pytest.raises(ModelNotFound):
            await engine.load_checkpoint(shard, tmp_path / "absent.safetensors")
        for path in (pickled, tmp_path, str(tmp_path / "absent")):
            caplog.clear()
            with caplog.at_level(logging.INFO, "lamella_worker.engine"):
                await engine.load_checkpoint(shard, path)
            assert "not fully implemented" in caplog.records[0].getMessage()

    asyncio.run(story())
    assert not Path("pwned").exists()


# -- the stage's calls -----------------------------------------------------------------------


def stage_config(folder: Path, stage: int, splits: tuple[int, ...] = (0, 3)) -> StageConfig:
    pipeline = PipelineConfig(
        name="tiny", model_uri=str(folder), model_path=str(folder), commit="", num_layers=LAYERS,
        splits=splits, dtype="float32", block_size=4, num_blocks=64, max_sequences=4,
        max_model_len=128, max_step_tokens=64, max_queued_tokens=256, eos_token_ids=(2,),
        vocab_size=VOCAB, runner="auto",
    )  # fmt: skip
    return StageConfig(
        pipeline=pipeline, stage=stage, device="cpu", threads=1, cpu=None,
        control_address="tcp://127.0.0.1:1", gateway_address="tcp://127.0.0.1:2",
        data_bind="tcp://127.0.0.1:*", http_address="127.0.0.1:0", key_file="k", peer_keys=(),
        cache_dir="", hub_token_file="",
    )  # fmt: skip


def batch_of(*segments: tuple[int, int, int, bool]) -> StepBatch:
    """Segments (slot, start, count, sample); slot s owns blocks [16 s, 16 s + 16)."""
    return StepBatch(
        tuple(
            Segment(
                slot, start, count,
                np.arange(16 * slot, 16 * slot + -(-(start + count) // 4), dtype=np.int32), sample,
            )
            for slot, start, count, sample in segments
        ),
        4,
    )  # fmt: skip


def load_stages(
    folder: Path, make: Callable[..., TorchDynamicShardInferenceEngine]
) -> list[TorchDynamicShardInferenceEngine]:
    engines = [make(), make()]
    for stage, engine in enumerate(engines):
        engine.load_stage(stage_config(folder, stage))
    return engines


def ring(
    engines: list[TorchDynamicShardInferenceEngine], batch: StepBatch, ids: list[int]
) -> Bundle:
    bundle: Bundle = {"token_ids": torch.tensor(ids)}
    for engine in engines:
        bundle = engine.step(batch, bundle)
    return bundle


@pytest.mark.parametrize("family", ["llama", "window", "opt", "qwen3_next"])
def test_batched_steps_equal_the_unsplit_model(
    family: str,
    folders: dict[str, Path],
    make_engine: Callable[..., TorchDynamicShardInferenceEngine],
) -> None:
    folder = folders[family]
    engines = load_stages(folder, make_engine)
    long = [(7 * i) % VOCAB for i in range(40)]
    ring(engines, batch_of((0, 0, 30, False), (2, 0, 3, True)), long[:30] + PROMPT[:3])
    output = ring(engines, batch_of((2, 3, 1, True), (0, 30, 10, True)), [PROMPT[3], *long[30:]])
    want = np.concatenate([oracle(folder, [PROMPT[:4]]), oracle(folder, [long])])
    np.testing.assert_allclose(output["logits"].numpy(), want, atol=1e-5)
    for engine in engines:
        engine.release(2)
        engine.reset()
    output = ring(engines, batch_of((2, 0, 12, True)), PROMPT)
    np.testing.assert_allclose(output["logits"].numpy(), oracle(folder, [PROMPT]), atol=1e-5)


def test_what_a_loaded_stage_says_of_itself(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    engine = make_engine()
    seen: list[tuple[int, int, int]] = []
    with pytest.raises(EngineError, match="load_stage"):
        engine.step(batch_of((0, 0, 1, True)), {})
    assert engine.memory()["weight_bytes"] == 0
    engine.load_stage(
        stage_config(folders["llama"], 1),
        lambda done, total, read: seen.append((done, total, read)),
    )
    assert engine.current_shard == Shard("tiny", 3, 3, 4)
    memory = engine.memory()
    tensors = load_file(folders["llama"] / "model.safetensors")
    own = ("model.layers.3.", "model.norm", "lm_head")
    assert memory["weight_bytes"] == sum(
        t.nbytes for name, t in tensors.items() if name.startswith(own)
    )
    assert memory["kv_bytes"] == 2 * 2 * 8 * 4 * 64 * 4  # K and V, heads, width, bytes, pages
    assert memory["resident_bytes"] > 0
    done, total, read = seen[-1]
    assert done == total
    assert read <= 1.01 * memory["weight_bytes"] + 64 * 1024  # and the headers


def test_a_configuration_that_is_not_the_models(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    config = stage_config(folders["llama"], 0)
    engine = make_engine()
    pipeline = replace(config.pipeline, num_layers=9)
    with pytest.raises(InvalidConfig, match="num_layers=9, the model has 4"):
        engine.load_stage(replace(config, pipeline=pipeline))
    assert engine.model_instance is None


class Pressed:
    """A runner that has no memory for more than `limit` rows."""

    def __init__(self, runner: Any, limit: int) -> None:
        self.runner, self.limit = runner, limit
        self.seen: list[int] = []
        self.state_kinds: frozenset[str] = frozenset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def step(self, batch: StepBatch, inputs: Bundle) -> Bundle:
        self.seen.append(batch.tokens)
        if batch.tokens > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.runner.step(batch, inputs)


def test_a_step_without_memory_is_computed_in_halves(
    folders: dict[str, Path], make_engine: Callable[..., TorchDynamicShardInferenceEngine]
) -> None:
    engines = load_stages(folders["llama"], make_engine)
    plain = ring(engines, batch_of((0, 0, 12, True), (1, 0, 2, True)), [*PROMPT, 1, 2])
    runners = [Pressed(engine.model_instance.runner, 7) for engine in engines]
    for engine, runner in zip(engines, runners, strict=True):
        engine.reset()
        engine.model_instance.runner = runner
    output = ring(engines, batch_of((0, 0, 12, True), (1, 0, 2, True)), [*PROMPT, 1, 2])
    torch.testing.assert_close(output["logits"], plain["logits"], atol=1e-5, rtol=0)
    assert [runner.seen for runner in runners] == [[14, 7, 7]] * 2
    assert engines[0].out_of_memory_count == 0
    # Half is still too much: only this step fails, weights and pages stay.
    with pytest.raises(OutOfMemory, match="CPU has no memory for a step of 16 tokens"):
        ring(engines, batch_of((2, 0, 16, True)), list(range(16)))
    assert engines[0].out_of_memory_count == 1
    again = ring(engines, batch_of((0, 12, 1, True)), [5])
    want = oracle(folders["llama"], [[*PROMPT, 5]])
    np.testing.assert_allclose(again["logits"].numpy(), want, atol=1e-5)


def test_steps_that_cannot_be_halved(folders: dict[str, Path]) -> None:
    runner = Pressed(None, 0)
    cpu = torch.device("cpu")
    one, two = batch_of((0, 0, 1, True)), batch_of((0, 0, 2, True))
    with pytest.raises(OutOfMemory):
        step_or_halves(runner, one, {"token_ids": torch.zeros(1)}, cpu)
    with pytest.raises(OutOfMemory):  # a tensor that is not a row per token
        step_or_halves(runner, two, {"x": torch.zeros(2), "y": torch.zeros(5)}, cpu)
    runner.state_kinds = frozenset({"LinearAttentionLayer"})
    with pytest.raises(OutOfMemory):
        step_or_halves(runner, two, {"token_ids": torch.zeros(2)}, cpu)
    assert runner.seen == [1, 2, 2]


@pytest.mark.parametrize(
    ("segments", "wanted"),
    [
        ([(0, 0, 4, True)], [[(0, 0, 2, False)], [(0, 2, 2, True)]]),
        (
            [(0, 5, 1, True), (1, 5, 1, True)],
            [[(0, 5, 1, True)], [(1, 5, 1, True)]],
        ),
        (
            [(0, 0, 5, False), (1, 9, 1, True), (2, 3, 3, True)],
            [[(0, 0, 4, False)], [(0, 4, 1, False), (1, 9, 1, True), (2, 3, 3, True)]],
        ),
    ],
    ids=["one segment", "decode", "mixed"],
)
def test_halves(segments: Any, wanted: Any) -> None:
    batch = batch_of(*segments)
    rows = torch.arange(batch.tokens)
    parts = halves(batch, {"token_ids": rows})
    found = [[(s.slot, s.start, s.count, s.sample) for s in part.segments] for part, _ in parts]
    assert found == wanted
    assert torch.cat([bundle["token_ids"] for _, bundle in parts]).tolist() == rows.tolist()
    for part, bundle in parts:
        assert len(bundle["token_ids"]) == part.tokens
        part.check(num_blocks=64)
