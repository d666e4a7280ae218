"""What `quantization: int8` does to a model's bytes, and which families it is for.

Knows names and shapes of tensors, no kernel: the worker (`fast/int8.py`) computes with them. The
matrices of the layers and the head become int8 with one scale per output channel; embedding, norms
and biases stay as they are.
"""

from __future__ import annotations

import math

from lamella_checkpoint.headers import TensorInfo
from lamella_contract.errors import UnsupportedFamily

INT8 = "int8"
FAMILIES = (
    "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "granite", "helium", "llama", "ministral", "mistral", "nemotron", "olmo", "olmo2",
    "olmo3", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""Model types of the hand-written decoder, which alone has int8 products."""
_CHANNEL_BYTES = 8
"""Of each output channel: its scale and, kept by the kernel, the sum of its weights."""


def check_family(uri: str, family: str, quantization: str) -> None:
    """Raise UnsupportedFamily for a family that has no quantized products."""
    if quantization == INT8 and family not in FAMILIES:
        raise UnsupportedFamily(
            f"{uri}: quantization: got int8 for {family}, want none or one of the families that "
            f"have it: {', '.join(FAMILIES)}"
        )


def matrix_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a matrix [out, in] in int8."""
    return math.prod(shape) + shape[0] * _CHANNEL_BYTES


def is_matrix(info: TensorInfo) -> bool:
    """Whether a tensor of a layer is multiplied with, rather than added or scaled by."""
    return len(info.shape) == 2 and "norm" not in info.name.rpartition(".")[0].rpartition(".")[2]
