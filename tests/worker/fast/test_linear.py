"""Packed products equal plain ones, alone and with what is fused behind them."""

import pytest
import torch
import torch.nn.functional as F

from lamella_worker.fast.linear import (
    ACTIVATIONS,
    PackedLinear,
    PlainLinear,
    fewest_rows,
    make_linear,
    packing_pays,
)


def has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())


FORMS = [
    pytest.param(PlainLinear, torch.float32, 1e-5, id="plain-float32"),
    pytest.param(PlainLinear, torch.bfloat16, 5e-2, id="plain-bfloat16"),
    pytest.param(
        PackedLinear,
        torch.bfloat16,
        5e-2,
        id="packed-bfloat16",
        marks=pytest.mark.skipif(not has_onednn(), reason="torch was built without oneDNN"),
    ),
]


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("rows", [1, 4, 37])
@pytest.mark.parametrize(("form", "dtype", "tolerance"), FORMS)
def test_equal_to_float64(form, dtype, tolerance, rows, bias):
    torch.manual_seed(0)
    weight, b = torch.randn(24, 40).to(dtype), torch.randn(24).to(dtype) if bias else None
    x, other = torch.randn(rows, 40).to(dtype), torch.randn(rows, 24).to(dtype)
    y = F.linear(x.double(), weight.double(), None if b is None else b.double())
    linear = form(weight, b)
    cases = [
        (linear(x), y),
        (linear.add(x, other), y + other.double()),
        (linear.times(x, other), y * other.double()),
        *((linear.activated(x, name), ACTIVATIONS[name](y)) for name in ACTIVATIONS),
    ]
    for found, wanted in cases:
        assert found.dtype == dtype
        scale = max(1.0, float(wanted.abs().max()))
        assert float((found.double() - wanted).abs().max()) / scale < tolerance


def test_a_residual_is_not_written_to():
    weight, x, residual = torch.randn(8, 8), torch.randn(2, 8), torch.ones(2, 8)
    PlainLinear(weight).add(x, residual)
    packed = make_linear(weight.bfloat16())
    packed.add(x.bfloat16(), residual.bfloat16())
    assert torch.equal(residual, torch.ones(2, 8))


def test_float32_is_left_plain():
    assert not packing_pays(torch.float32)
    assert isinstance(make_linear(torch.randn(4, 4)), PlainLinear)
    assert fewest_rows(torch.float32, "cpu") == 1
    assert fewest_rows(torch.bfloat16, "cuda") == 1


def test_what_is_measured_is_one_of_the_choices():
    form = make_linear(torch.randn(16, 16).bfloat16())
    assert isinstance(form, PackedLinear) == packing_pays(torch.bfloat16)
    assert fewest_rows(torch.bfloat16, "cpu") in (1, 4)
