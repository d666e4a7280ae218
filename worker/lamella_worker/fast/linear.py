"""Matrix products with weights laid out once, at load.

Knows no model. fast.py makes every projection with `make_linear`; on a CPU whose bf16 products are
faster with oneDNN's own weight layout they become `PackedLinear`, elsewhere `PlainLinear`. Whether
packing works and pays is tried once per process on a small case (`packing_pays`), not assumed.
Times are this thread's CPU time: a busy machine must not decide.
"""

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F

log = logging.getLogger(__name__)

BATCH_HINT = 16
"""Rows that oneDNN lays weights out for. A hint of 1 makes larger batches slow, for no gain."""


Operand: TypeAlias = Any
"""Rows [tokens, in]: a tensor, or what `take` of a product of the same kind made of one."""


class Linear(Protocol):
    """y = x W^T + b, alone or with what commonly follows in the same call. x [tokens, in]."""

    def take(self, x: torch.Tensor) -> Operand:
        """x as products of this kind take it, made once for all that multiply the same rows."""
        ...

    def __call__(self, x: Operand) -> torch.Tensor:
        """[tokens, out]."""
        ...

    def add(self, x: Operand, residual: torch.Tensor) -> torch.Tensor:
        """residual + y; both [tokens, out]."""
        ...

    def activated(self, x: Operand, activation: str) -> torch.Tensor:
        """activation(y); a name of ACTIVATIONS. For another product of this kind only."""
        ...

    def times(self, x: Operand, gate: torch.Tensor) -> torch.Tensor:
        """gate * y; both [tokens, out]. For another product of this kind only."""
        ...


MakeLinear: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None], Linear]
"""From a weight [out, in] and a bias [out]; the sources may then be freed."""


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""Activations by our name (transformers' ACT2FN has several names for one)."""

# oneDNN's names: (attribute, algorithm). What is absent is computed after the product.
_POST_OPS = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


class PlainLinear:
    """Weights as they are, [out, in]: any device, any dtype."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return x

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return F.linear(x, self._weight, self._bias)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return F.linear(x, self._weight, self._bias).add_(residual)

    def activated(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """See Linear."""
        return ACTIVATIONS[activation](F.linear(x, self._weight, self._bias))

    def times(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return F.linear(x, self._weight, self._bias).mul_(gate)


class PackedLinear:
    """Weights in oneDNN's layout; what follows the product is computed in registers."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        ops = torch.ops.mkldnn
        self._weight = ops._reorder_linear_weight(weight.contiguous(), BATCH_HINT)
        self._bias = bias
        self._unary = ops._linear_pointwise.default
        self._binary = ops._linear_pointwise.binary

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return x

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        y: torch.Tensor = self._unary(x, self._weight, self._bias, "none", [], "")
        return y

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        y: torch.Tensor = self._binary(x, residual, self._weight, self._bias, "add")
        return y

    def activated(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """See Linear."""
        post = _POST_OPS.get(activation)
        if post is None:
            return ACTIVATIONS[activation](self(x))
        y: torch.Tensor = self._unary(x, self._weight, self._bias, post[0], [], post[1])
        return y

    def times(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        y: torch.Tensor = self._binary(x, gate, self._weight, self._bias, "mul")
        return y


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The fastest form for this weight [out, in] on its device; the source may then be freed."""
    if weight.device.type == "cpu" and packing_pays(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


@cache
def packing_pays(dtype: torch.dtype) -> bool:
    """True when packed products agree with plain ones on this machine and are not slower.

    float32 stays plain: its own library is as fast, and results stay the same bit for bit.
    """
    if dtype != torch.bfloat16:
        return False
    try:
        agree = _agree(dtype)
    except (RuntimeError, AttributeError, NotImplementedError) as e:
        # A build without oneDNN, or an operator that this torch no longer has.
        log.info("packed weights are not available", extra={"reason": str(e)[:200]})
        return False
    plain_s, packed_s = _timings(dtype) if agree else (0.0, 0.0)
    pays = agree and packed_s < 1.05 * plain_s
    log.info(
        "packed weights were tried",
        extra={"agree": agree, "plain_us": plain_s * 1e6, "packed_us": packed_s * 1e6},
    )
    return pays


@cache
def fewest_rows(dtype: torch.dtype, device_type: str) -> int:
    """Rows below which a batch had better be padded, as measured on this machine: 1 or 4.

    On some processors the kernel for four rows streams weights faster than those for fewer.
    """
    if device_type != "cpu" or not packing_pays(dtype):
        return 1
    # Weights must come from memory, as a model's do: in a cache of 32 MB one row is the faster.
    forms = [PackedLinear(torch.zeros(2048, 768, dtype=dtype)) for _ in range(24)]  # 75 MB
    best = {1: float("inf"), 4: float("inf")}
    for _ in range(4):
        for rows in best:
            x = torch.zeros(rows, 768, dtype=dtype)
            start = time.thread_time()
            for form in forms:
                form(x)
            best[rows] = min(best[rows], time.thread_time() - start)
    fewest = 4 if best[4] < 0.98 * best[1] else 1
    log.info(
        "fewest rows were measured",
        extra={"rows": fewest, "one_us": best[1] * 1e6, "four_us": best[4] * 1e6},
    )
    return fewest


def _agree(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weight, bias = draw(48, 64), draw(48)
    packed, plain = PackedLinear(weight, bias), PlainLinear(weight, bias)
    for rows in (1, 5, 33):
        x, other = draw(rows, 64), draw(rows, 48)
        pairs = [
            (packed(x), plain(x)),
            (packed.add(x, other), plain.add(x, other)),
            (packed.times(x, other), plain.times(x, other)),
            *((packed.activated(x, a), plain.activated(x, a)) for a in ACTIVATIONS),
        ]
        for a, b in pairs:
            # Two roundings of bf16 (8 bits) apart at most, on values that reach about 50.
            if not torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-1):
                return False
    return True


def _timings(dtype: torch.dtype, rows: int = 4, tries: int = 7) -> tuple[float, float]:
    """Best seconds of a product that is typical for decode: (plain, packed)."""
    weight = torch.zeros(2048, 768, dtype=dtype)
    x = torch.zeros(rows, 768, dtype=dtype)
    forms: list[Linear] = [PlainLinear(weight), PackedLinear(weight)]
    best = [float("inf"), float("inf")]
    for _ in range(tries):  # interleaved, so that a busy moment hits both
        for i, form in enumerate(forms):
            start = time.thread_time()
            form(x)
            best[i] = min(best[i], time.thread_time() - start)
    return best[0], best[1]
