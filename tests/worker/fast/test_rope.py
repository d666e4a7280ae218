"""Frequencies agree with transformers' formulas, rotation with its own and with GPT-J's."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lamella_contract.errors import UnsupportedFamily
from lamella_worker.fast.rope import half_split_order, make_rope, rotate_

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 16, **FACTORS},
}


def make_config(kind: str) -> Any:
    return AutoConfig.for_model(
        "llama",
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **KINDS[kind]},
    )


@pytest.mark.parametrize("length", [12, 100], ids=["short", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_transformers_for_a_sequence_of_the_served_length(kind, length):
    config = make_config(kind)
    positions = torch.arange(length)
    x = torch.randn(length, 4, 8)
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
    wanted, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    rope = make_rope(config, None, 8, length)
    found = x.clone()
    rotate_(found, rope.angles(positions, torch.float32))
    assert torch.allclose(found, wanted[0].transpose(0, 1), atol=1e-5)


def test_only_the_rotary_part_is_touched():
    rope = make_rope(make_config("default"), None, 4, 64)
    x = torch.randn(3, 2, 8)
    found = x.clone()
    rotate_(found, rope.angles(torch.tensor([0, 5, 9]), torch.float32))
    assert rope.dim == 4
    assert torch.equal(found[..., 4:], x[..., 4:])
    assert torch.equal(found[0], x[0])  # position 0 is not rotated
    assert not torch.equal(found[1, :, :4], x[1, :, :4])


def test_neighbours_become_halves():
    """Rotating neighbours, then reordering, is reordering, then rotating halves."""
    rope = make_rope(make_config("default"), None, 8, 64)
    cos, sin = rope.angles(torch.tensor([7]), torch.float32)
    x = torch.randn(1, 1, 10)
    even, odd = x[..., 0:8:2], x[..., 1:8:2]
    c, s = cos[..., :4], sin[..., 4:]
    neighbours = x.clone()
    neighbours[..., 0:8:2], neighbours[..., 1:8:2] = even * c - odd * s, odd * c + even * s
    order = half_split_order(10, 8)
    halves = x[..., order].contiguous()
    rotate_(halves, (cos, sin))
    assert torch.allclose(halves, neighbours[..., order], atol=1e-6)


def test_an_unknown_kind_is_refused():
    config = make_config("default")
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 10000.0}
    with pytest.raises(UnsupportedFamily, match="spiral"):
        make_rope(config, None, 8, 64)
