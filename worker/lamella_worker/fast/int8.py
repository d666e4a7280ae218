"""Products of int8 weights with int8 rows: `Int8Linear`, the fast runner's `quantization: int8`.

Knows no model. Weights are quantised once, at load, with one scale per output channel; rows when
they are multiplied, each with a scale of its own. Whole numbers are summed exactly and the scales
are applied to the sums, so a row's result is the same bit for bit whatever stands beside it in the
batch. A processor on which the sums are not exact (some saturate on the way) is refused.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from lamella_contract.errors import InvalidConfig
from lamella_worker.fast.linear import ACTIVATIONS, Operand
from lamella_worker.readers import trim_heap

log = logging.getLogger(__name__)

LARGEST = 127
"""Quantised values lie in [-127, 127]."""
ZERO = 128
"""Rows are kept as unsigned bytes, moved by this much: the kernels multiply u8 by s8."""
_TINY = 1e-30  # keeps a row of zeros from dividing by zero
_CHUNK_ELEMENTS = 1 << 18  # of a weight, that are in float32 at once (1 MB: they stay in cache)
PIECE_ROWS = 16384
"""Of a weight, that are quantised and laid out at once: a large head is never in memory twice."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Quantised rows: x is about (values - 128) * largest / 127."""

    values: torch.Tensor  # uint8 [rows, in]
    largest: torch.Tensor  # float32 [rows, 1]

    @classmethod
    def of(cls, x: torch.Tensor) -> "Rows":
        """x [rows, in], bfloat16 or float32; each row by its own largest value."""
        y = x.to(torch.float32, copy=True)
        largest = y.abs().amax(-1, keepdim=True).clamp_min_(_TINY)
        # Truncation after adding a half is rounding, for what is not negative.
        y.mul_(LARGEST / largest).add_(ZERO + 0.5)
        return cls(y.to(torch.uint8), largest)


class Product(Protocol):
    """A weight of whole numbers, laid out for one kernel."""

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """uint8 [rows, in] -> float32 [rows, out]: sums of (values - 128) * weight, times scale."""
        ...


class OneDnnProduct:
    """oneDNN's u8 x s8 kernel, with the weight in its own layout."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """weight int8 [out, in], scale float32 [out]."""
        ops = torch.ops.onednn
        self._weight = ops.qlinear_prepack(weight, None)
        self._scale = scale
        self._zero = torch.zeros(1, dtype=torch.int64)  # of the weight: it is symmetric
        self._run = ops.qlinear_pointwise.default

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """See Product."""
        y: torch.Tensor = self._run(
            values,
            1.0,
            ZERO,
            self._weight,
            self._scale,
            self._zero,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return y


class PlainProduct:
    """torch's own int8 product, for builds and processors without the kernel above."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        """weight int8 [out, in], scale float32 [out]."""
        self._weight = weight.t()
        self._scale = scale

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """See Product."""
        signed = (values.to(torch.int16) - ZERO).to(torch.int8)
        return torch._int_mm(signed, self._weight).to(torch.float32).mul_(self._scale)


MakeProduct = Callable[[torch.Tensor, torch.Tensor], Product]


class Int8Linear:
    """Weights [out, in] in int8. What is made for another product may be float32 (see Linear)."""

    def __init__(
        self,
        weight: torch.Tensor | Iterable[torch.Tensor],
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`weight` is whole, or comes in pieces of its rows, of which one is held at a time.

        `dtype` is what `__call__` gives, whatever its rows are; None: the weight's.
        """
        make, self._out = choose_product(), 0
        self._products: list[tuple[slice, Product]] = []
        pieces = torch.split(weight, PIECE_ROWS) if isinstance(weight, torch.Tensor) else weight
        for piece in pieces:
            rows = slice(self._out, self._out + piece.shape[0])
            if rows.start:  # what the last piece left free is often a little too small for this one
                trim_heap()
            self._products.append((rows, make(*quantise_weight(piece))))
            self._out, self._dtype = rows.stop, dtype or piece.dtype
            del piece  # before the next one is read
        self._bias = None if bias is None else bias.float()

    def take(self, x: torch.Tensor) -> Rows:
        """See Linear."""
        return Rows.of(x)

    def __call__(self, x: Operand) -> torch.Tensor:
        """See Linear."""
        return self._sums(_rows(x)).to(self._dtype)

    def add(self, x: Operand, residual: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        return self._sums(_rows(x)).add_(residual).to(residual.dtype)

    def activated(self, x: Operand, activation: str) -> torch.Tensor:
        """See Linear; float32."""
        return ACTIVATIONS[activation](self._sums(_rows(x)))

    def times(self, x: Operand, gate: torch.Tensor) -> torch.Tensor:
        """See Linear; float32."""
        return self._sums(_rows(x)).mul_(gate)

    def _sums(self, rows: Rows) -> torch.Tensor:
        if len(self._products) == 1:
            y = self._products[0][1](rows.values).mul_(rows.largest)
        else:
            y = torch.empty(rows.values.shape[0], self._out)
            for part, product in self._products:
                torch.mul(product(rows.values), rows.largest, out=y[:, part])
        return y if self._bias is None else y.add_(self._bias)


def _rows(x: Operand) -> Rows:
    return x if isinstance(x, Rows) else Rows.of(x)


def quantise_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [out, in] and float32 [out], whose product, times 127, is about the weight."""
    ints = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0], dtype=torch.float32)
    step = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = slice(start, start + step)
        piece = weight[part].to(torch.float32, copy=True)
        largest = piece.abs().amax(1).clamp_min_(_TINY)
        ints[part] = piece.mul_((LARGEST / largest)[:, None]).round_().to(torch.int8)
        scale[part] = largest
    # Both 127s are in the weight's scale: that of its values, and that of the rows'.
    return ints, scale.div_(LARGEST * LARGEST)


@cache
def choose_product() -> MakeProduct:
    """The fastest kernel whose sums are exact here; InvalidConfig when none is."""
    timings: dict[str, float] = {}
    best: MakeProduct | None = None
    for make in (OneDnnProduct, PlainProduct):
        try:
            if not _exact(make):
                log.warning("int8 product refused", extra={"product": make.__name__})
                continue
            timings[make.__name__] = _time(make)
        except (RuntimeError, AttributeError, NotImplementedError) as e:
            # A build without oneDNN, or an operator that this torch no longer has.
            log.info("int8 product failed", extra={"reason": str(e)[:200]})
            continue
        if timings[make.__name__] <= min(timings.values()):
            best = make
    if best is None:
        raise InvalidConfig(
            "quantization: got 'int8', want none: no int8 product of this build of torch is exact "
            "on this processor"
        )
    extra = {"product": getattr(best, "__name__", ""), "took_us": timings}
    log.info("int8 product chosen", extra=extra)
    return best


def _exact(make: MakeProduct) -> bool:
    """Sums of random and of the largest values, which saturate 16 bits where a kernel uses them."""
    generator = torch.Generator().manual_seed(0)
    for out, size in ((72, 1024), (40, 36)):
        weight = torch.randint(
            -LARGEST, LARGEST + 1, (out, size), generator=generator, dtype=torch.int8
        )
        weight[:8], weight[8:16] = LARGEST, -LARGEST
        values = torch.randint(1, 256, (37, size), generator=generator, dtype=torch.uint8)
        values[0], values[1] = 255, 1
        wanted = ((values.double() - ZERO) @ weight.double().t()).float()
        product = make(weight, torch.ones(out))
        for rows in (1, 4, 37):
            if not torch.equal(product(values[:rows]), wanted[:rows]):
                return False
    return True


def _time(make: MakeProduct, rows: int = 4, tries: int = 5) -> float:
    """Best seconds, in CPU time, of a product that is typical for decode."""
    product = make(torch.zeros(2048, 768, dtype=torch.int8), torch.ones(2048))
    values = torch.full((rows, 768), ZERO, dtype=torch.uint8)
    best = float("inf")
    for _ in range(tries):
        start = time.thread_time()
        product(values)
        best = min(best, time.thread_time() - start)
    return best
