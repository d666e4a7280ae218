"""The fast runner against transformers' own code, in float32, family by family.

One oracle: the unsplit Hugging Face model run on each sequence alone, without a cache. The stages
run as the workers run them: two sequences of very different lengths packed in one batch, prefill in
chunks, then decode, through 1, 2 and 3 stages with pages from a shuffled pool.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lamella_contract.errors import (
    EngineError,
    InvalidConfig,
    MissingTensor,
    UnsupportedFamily,
)
from lamella_worker.batch import Segment, StepBatch
from lamella_worker.fast.families import FAMILIES
from lamella_worker.fast.runner import FastRunner, supports, tensor_names
from lamella_worker.fast.table import spec_of
from lamella_worker.paging.attention import AttentionBackend
from lamella_worker.paging.attention_native import NativeAttention, compiled
from lamella_worker.paging.attention_views import ViewAttention

BLOCK = 4
LENGTHS = (41, 9)  # tokens of the two sequences before decode
STEPS = 6
MAX_LEN = 64

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_theta": 10000.0}
LONG = [1.0 + 0.5 * i for i in range(4)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": LONG,
    "rope_theta": 10000.0,
}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied-biased": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama-mha-wide-heads": {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 16},
    "llama-gelu": {"model_type": "llama", "hidden_act": "gelu"},
    "llama-linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, **ROPE},
    },
    "llama-llama3": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            **ROPE,
        },
    },
    "llama-yarn": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            **ROPE,
        },
    },
    "llama-dynamic": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, **ROPE},
    },
    "mistral-window": {"model_type": "mistral", "sliding_window": 7},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "ministral": {
        "model_type": "ministral",
        "head_dim": 8,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    },
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 16, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        "num_key_value_heads": 1,
        "sliding_window_pattern": 3,
        "final_logit_softcapping": 5.0,
    },
    "phi3": {"model_type": "phi3"},
    "phi3-window": {"model_type": "phi3", "sliding_window": 7},
    "phi3-longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 16,
        "rope_parameters": LONGROPE,
    },
    "phi3-partial": {
        "model_type": "phi3",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, **ROPE},
    },
    "olmo": {"model_type": "olmo", "clip_qkv": 0.3},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", "sliding_window": 6},
    "exaone4": {"model_type": "exaone4", "sliding_window": 6, "sliding_window_pattern": 2},
    "exaone4-full": {
        "model_type": "exaone4",
        "sliding_window": None,
        "layer_types": ["full_attention"] * 5,
    },
    "granite": {
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
    },
    "smollm3": {"model_type": "smollm3"},
    "smollm3-window": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 6},
    "cohere": {"model_type": "cohere", "use_qk_norm": True},
    "cohere-plain": {"model_type": "cohere"},
    "cohere2": {"model_type": "cohere2", "sliding_window": 6},
    "starcoder2": {"model_type": "starcoder2", "use_bias": True, "sliding_window": 7},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True},
    "stablelm-parallel": {"model_type": "stablelm", "use_parallel_residual": True},
    "glm": {"model_type": "glm", "head_dim": 16, "attention_bias": True},
    "glm4": {"model_type": "glm4", "head_dim": 16},
    "helium": {"model_type": "helium", "head_dim": 8},
    "seed_oss": {"model_type": "seed_oss", "head_dim": 16},
    "arcee": {"model_type": "arcee"},
    "ernie4_5": {"model_type": "ernie4_5", "head_dim": 16, "use_bias": True},
    "nemotron": {"model_type": "nemotron"},
}


class DictReader:
    """Tensors of a state dict; remembers what was read."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.seen: list[str] = []

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        self.seen += names
        return {name: self.tensors[name].clone() for name in names}

    def read_rows(self, name: str, first: int, last: int) -> torch.Tensor:
        if first == 0:
            self.seen.append(name)
        return self.tensors[name][first:last].clone()


def make_config(case: dict[str, Any]) -> Any:
    kwargs = {**TINY, **copy.deepcopy(case)}
    return transformers.AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)


def make_model(config: Any, seed: int = 0) -> Any:
    """A random Hugging Face model whose norms and biases are not trivial."""
    torch.manual_seed(seed)
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() == 1 or "norm" in name:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.15 * noise)
    return model


def make_stages(config: Any, model: Any, cuts: Sequence[int], **kwargs: Any) -> list[FastRunner]:
    tensors = model.state_dict()
    bounds = [*cuts, config.num_hidden_layers]
    stages = []
    for first, last in itertools.pairwise(bounds):
        runner = FastRunner.build(config, first, last, DictReader(tensors), torch.float32, "cpu")
        runner.setup_caches(
            num_blocks=40, block_size=BLOCK, max_sequences=4, max_model_len=MAX_LEN, **kwargs
        )
        stages.append(runner)
    return stages


def attention_of(config: Any, name: str) -> AttentionBackend:
    """One attention that the start-up check may choose, whatever is faster here."""
    if name == "views":
        return ViewAttention()
    spec = spec_of(config)
    head_dim = spec.head_dim
    function = compiled(spec.heads // spec.kv_heads, head_dim, head_dim, torch.float32)
    if function is None:
        pytest.skip("there is no C compiler")
    return NativeAttention(function, ViewAttention())


def run(stages: list[FastRunner], batch: StepBatch, ids: np.ndarray) -> torch.Tensor:
    bundle = {"token_ids": torch.from_numpy(ids)}
    for stage in stages:
        bundle = stage.step(batch, bundle)
        stage.pool.check_integrity([(s.slot, s.blocks) for s in batch.segments])
    return bundle["logits"]


def tables(scattered: bool, sizes: Sequence[int]) -> list[np.ndarray]:
    """Block tables for sequences of up to `sizes` tokens."""
    order = np.arange(40, dtype=np.int32)
    if scattered:
        np.random.default_rng(1).shuffle(order)
    counts = [-(-size // BLOCK) for size in sizes]
    ends = np.cumsum([0, *counts])
    return [order[a:b] for a, b in itertools.pairwise(ends)]


def serve(
    stages: list[FastRunner], prompts: list[np.ndarray], steps: int, *, scattered: bool, chunk: int
) -> list[np.ndarray]:
    """Logits per sequence, [steps + 1, vocabulary]: after the prompt and each further token."""
    blocks = tables(scattered, [len(p) for p in prompts])
    lengths = [len(p) - steps for p in prompts]
    done = [0] * len(prompts)
    logits: list[list[np.ndarray]] = [[] for _ in prompts]
    while any(d < len(p) for d, p in zip(done, prompts, strict=True)):
        segments, ids = [], []
        for slot, prompt in enumerate(prompts):
            left = lengths[slot] - done[slot]
            if done[slot] == len(prompt):
                continue
            count = min(chunk, left) if left > 0 else 1
            end = done[slot] + count
            sample = end >= lengths[slot]
            table = blocks[slot][: -(-end // BLOCK)]
            segments.append(Segment(slot, done[slot], count, table, sample))
            ids.append(prompt[done[slot] : end])
            done[slot] = end
        batch = StepBatch(tuple(segments), BLOCK)
        batch.check(40)
        found = run(stages, batch, np.concatenate(ids)).numpy()
        for row, segment in enumerate(batch.sampled):
            logits[segment.slot].append(found[row])
    return [np.stack(rows) for rows in logits]


def oracle(model: Any, prompt: np.ndarray, steps: int) -> np.ndarray:
    """Logits after the prompt and after each further token, from the unsplit model alone."""
    with torch.inference_mode():
        ids = torch.from_numpy(prompt)[None]
        all_logits = model(input_ids=ids, use_cache=False).logits[0]
    return all_logits[len(prompt) - steps - 1 :].numpy()


def fix_frequencies(model: Any) -> None:
    """Make the oracle rotate as for a sequence of the served length, whatever it is given.

    Long-rope and dynamic NTK follow the longest row that a call holds; a server fixes them at load.
    """
    rotary = model.model.rotary_emb
    if getattr(rotary, "rope_type", "default") not in ("longrope", "dynamic"):
        return
    with torch.inference_mode():
        init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[rotary.rope_type]
        inv_freq, _ = init(rotary.config, None, seq_len=MAX_LEN)
    for name in ("inv_freq", "original_inv_freq"):
        setattr(rotary, name, torch.nn.Buffer(inv_freq.clone(), persistent=False))
    rotary.long_inv_freq = inv_freq


def prompts_of(config: Any, lengths: Sequence[int]) -> list[np.ndarray]:
    draw = np.random.default_rng(7)
    return [draw.integers(3, config.vocab_size, n).astype(np.int64) for n in lengths]


SPLITS = [
    pytest.param((0,), False, 16, id="unsplit"),
    pytest.param((0, 3), True, 11, id="two-stages"),
    pytest.param((0, 1, 3), True, 64, id="three-stages"),
]


@pytest.mark.parametrize(("cuts", "scattered", "chunk"), SPLITS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("attention", ["views", "native"])
def test_equal_to_unsplit_hugging_face(case, cuts, scattered, chunk, attention):
    config = make_config(CASES[case])
    model = make_model(config)
    fix_frequencies(model)
    assert supports(config)
    prompts = prompts_of(config, [n + STEPS for n in LENGTHS])
    stages = make_stages(config, model, cuts, attention=attention_of(config, attention))
    found = serve(stages, prompts, STEPS, scattered=scattered, chunk=chunk)
    for prompt, logits in zip(prompts, found, strict=True):
        wanted = oracle(model, prompt, STEPS)
        assert logits.shape == wanted.shape
        scale = max(1.0, float(np.abs(wanted).max()))
        assert float(np.abs(logits - wanted).max()) / scale < 1e-5


def test_every_family_of_the_table_is_tried():
    assert {case["model_type"] for case in CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("attention", ["views", "native"])
def test_greedy_output_does_not_depend_on_the_batch(attention):
    config = make_config(CASES["llama"])
    model = make_model(config)
    prompts = prompts_of(config, [21, 5, 33, 12])

    def generate(together: list[np.ndarray], scattered: bool) -> list[list[int]]:
        backend = attention_of(config, attention)
        (stage,) = make_stages(config, model, (0,), attention=backend)
        blocks = tables(scattered, [len(p) + 8 for p in together])
        done, ids = [0] * len(together), [list(map(int, p)) for p in together]
        for _ in range(8):
            segments = tuple(
                Segment(slot, d, len(known) - d, blocks[slot], True)
                for slot, (d, known) in enumerate(zip(done, ids, strict=True))
            )
            tokens = np.concatenate([known[d:] for d, known in zip(done, ids, strict=True)])
            logits = run([stage], StepBatch(segments, BLOCK), tokens.astype(np.int64))
            done = [len(known) for known in ids]
            for known, best in zip(ids, logits.argmax(-1).tolist(), strict=True):
                known.append(best)
        return ids

    together = generate(prompts, scattered=True)
    assert together == [generate([p], scattered=False)[0] for p in prompts]


def test_bfloat16_stays_near_float32():
    config = make_config(CASES["llama"])
    model = make_model(config)
    batch = StepBatch((Segment(0, 0, 12, np.arange(3, dtype=np.int32), True),), BLOCK)
    ids = prompts_of(config, [12])[0]
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        runner = FastRunner.build(config, 0, 5, DictReader(model.state_dict()), dtype, "cpu")
        runner.setup_caches(num_blocks=8, block_size=BLOCK, max_sequences=1, max_model_len=32)
        logits.append(run([runner], batch, ids))
    assert logits[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*logits).item() > 0.99


def test_reading_is_exact_and_starts_over_after_a_reset():
    config = make_config(CASES["qwen3-tied"])
    model = make_model(config)
    for first, last, ends in [(0, 2, 1), (2, 5, 2)]:
        reader = DictReader(model.state_dict())
        runner = FastRunner.build(config, first, last, reader, torch.float32, "cpu")
        assert sorted(reader.seen) == sorted(tensor_names(config, first, last))
        assert len(reader.seen) == 11 * (last - first) + ends
        assert runner.kv_bytes == 0
    (stage,) = make_stages(config, model, (0,))
    assert stage.kv_bytes == 5 * 2 * 2 * 16 * 40 * BLOCK * 4
    batch = StepBatch((Segment(0, 0, 9, np.arange(3, dtype=np.int32), True),), BLOCK)
    ids = prompts_of(config, [9])[0]
    first_time = run([stage], batch, ids)
    stage.reset_caches()
    stage.release(0)
    assert not stage.pool.keys(0).any()
    assert torch.equal(run([stage], batch, ids), first_time)


def test_only_sampled_rows_have_logits():
    config = make_config(CASES["llama"])
    (stage,) = make_stages(config, make_model(config), (0,))
    table = np.arange(3, dtype=np.int32)
    ids = prompts_of(config, [9])[0]
    batch = StepBatch((Segment(0, 0, 9, table, False),), BLOCK)
    assert run([stage], batch, ids).shape == (0, config.vocab_size)


def llama_with(**kwargs: Any) -> Any:
    config = make_config({"model_type": "llama"})
    for name, value in kwargs.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(lambda: make_config({"model_type": "opt"}), "model_type='opt'", id="family"),
        pytest.param(
            lambda: llama_with(quantization_config={"quant_method": "gptq"}),
            "quantization",
            id="quantized",
        ),
        pytest.param(lambda: llama_with(hidden_act="mish"), "activation 'mish'", id="activation"),
        pytest.param(
            lambda: llama_with(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
            "rope_type 'spiral'",
            id="rope",
        ),
        pytest.param(
            lambda: llama_with(
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            ),
            "partial_rotary_factor",
            id="partial-rope-that-llama-ignores",
        ),
        pytest.param(
            lambda: llama_with(layer_types=["chunked_attention"] * 5), "layer_types", id="layers"
        ),
        pytest.param(
            lambda: make_config({"model_type": "stablelm", "qk_layernorm": True}),
            "qk_layernorm",
            id="norm-per-head",
        ),
        pytest.param(
            lambda: make_config({"model_type": "gemma3_text", "use_bidirectional_attention": True}),
            "use_bidirectional_attention",
            id="bidirectional",
        ),
    ],
)
def test_unknown_features_are_refused(config, message):
    assert not supports(config())
    with pytest.raises(UnsupportedFamily, match=message):
        FastRunner.build(config(), 0, 1, DictReader({}), torch.float32, "cpu")


def test_wrong_use_is_named():
    config = make_config(CASES["llama"])
    model = make_model(config)
    with pytest.raises(InvalidConfig, match=r"\[3, 9\)"):
        FastRunner.build(config, 3, 9, DictReader({}), torch.float32, "cpu")
    runner = FastRunner.build(config, 1, 2, DictReader(model.state_dict()), torch.float32, "cpu")
    batch = StepBatch((Segment(0, 0, 9, np.arange(3, dtype=np.int32), True),), BLOCK)
    with pytest.raises(EngineError, match="setup_caches"):
        runner.step(batch, {})
    runner.setup_caches(num_blocks=8, block_size=BLOCK, max_sequences=1, max_model_len=32)
    with pytest.raises(EngineError, match=r"hidden: got nothing; wanted 9 rows"):
        runner.step(batch, {"token_ids": torch.zeros(9, dtype=torch.int64)})


def test_a_missing_tensor_is_named():
    class Empty:
        def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
            return {}

    with pytest.raises(MissingTensor, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        FastRunner.build(make_config(CASES["llama"]), 1, 2, Empty(), torch.float32, "cpu")
