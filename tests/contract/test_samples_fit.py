"""The samples' plans exist: each model is as large as its manifest's memory takes.

The models are described by the numbers of their published configs; nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lamella_contract.plan import plan
from lamella_contract.profile import LayerProfile, ModelProfile
from lamella_contract.spec import parse

ROOT = Path(__file__).parents[2]
RUNTIME = 1 << 30


def dense(
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    head: int,
    vocab: int,
    tied: bool,
) -> ModelProfile:
    """A Llama-like model in bfloat16."""
    attention = 2 * hidden * head * (heads + kv_heads)
    layer = LayerProfile(2 * (attention + 3 * hidden * inner), 4 * kv_heads * head, 0, "full")
    embedding = 2 * vocab * hidden
    return ModelProfile(
        uri="",
        commit="",
        family="llama",
        dtype="bfloat16",
        hidden_size=hidden,
        vocab_size=vocab,
        max_model_len=40960,
        layers=(layer,) * layers,
        embedding_bytes=embedding,
        head_bytes=embedding,
        final_bytes=2 * hidden,
        tied=tied,
        boundary_bytes_per_token=2 * hidden,
        allowed_cuts=tuple(range(1, layers)),
    )


LLAMA_70B = dense(80, 8192, 28672, 64, 8, 128, 128256, False)
QWEN_32B = dense(64, 5120, 25600, 64, 8, 128, 151936, False)
SAMPLES = {
    "shardedmodel.yaml": (QWEN_32B, 4),
    "examples/four-gpus.yaml": (LLAMA_70B, 4),
    "examples/unequal-nodes.yaml": (LLAMA_70B, 3),
    "examples/from-a-claim.yaml": (QWEN_32B, 4),
    "examples/from-an-image.yaml": (dense(36, 4096, 12288, 32, 8, 128, 151936, False), 2),
    "examples/on-cpus.yaml": (dense(28, 1024, 3072, 16, 8, 128, 151936, True), 2),
}


@pytest.mark.parametrize(("name", "sample"), SAMPLES.items(), ids=SAMPLES)
def test_the_model_fits(name: str, sample: tuple[ModelProfile, int]) -> None:
    profile, stages = sample
    spec = parse(yaml.safe_load((ROOT / name).read_text())).spec
    made = plan(
        profile,
        stages=spec.pipeline.stages,
        split=spec.pipeline.split,
        stage_memory=spec.pipeline.memory(),
        max_model_len=spec.context.max_model_len,
        max_sequences=spec.context.max_sequences,
        runtime_bytes=RUNTIME,
    )
    assert len(made.stages) == stages
    wanted = spec.context.max_model_len
    assert wanted is None or made.max_model_len >= wanted
    assert made.kv_tokens >= 2 * made.max_model_len


def test_no_sample_is_left_out() -> None:
    examples = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.yaml")}
    assert examples - {"examples/demo.yaml"} == set(SAMPLES) - {"shardedmodel.yaml"}
