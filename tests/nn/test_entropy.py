from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.nn import binary_entropy, marginal_entropy
from tests.helpers import grad_of


def fair_bits(n_bits: int) -> torch.Tensor:
    """Every code of ``n_bits`` bits once: each bit is fair and they are independent."""
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * n_bits).reshape(-1, n_bits)


def test_binary_entropy_known_answers():
    p = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.75], dtype=torch.float64)
    quarter = 2 - 0.75 * math.log2(3)

    expected = torch.tensor([0, 1, 0, quarter, quarter], dtype=torch.float64)
    torch.testing.assert_close(binary_entropy(p), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_bits_have_exactly_no_entropy(value):
    assert marginal_entropy(torch.full((10, 7), value)).item() == 0


def test_a_fair_coin_has_one_bit():
    assert marginal_entropy(torch.tensor([[0.0], [1.0]])).item() == 1


@pytest.mark.parametrize("n_bits", [1, 2, 5])
def test_independent_fair_bits_add_up_to_their_joint_entropy(n_bits):
    assert marginal_entropy(fair_bits(n_bits)).item() == pytest.approx(n_bits, rel=1e-6)


def test_duplicated_bits_are_counted_twice():
    bits = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()

    doubled = marginal_entropy(torch.cat([bits, bits], 1))

    assert doubled.item() == pytest.approx(2 * marginal_entropy(bits).item(), rel=1e-6)


def test_inverting_a_bit_changes_nothing():
    bits = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    flipped = bits.clone()
    flipped[:, ::2] = 1 - flipped[:, ::2]

    torch.testing.assert_close(marginal_entropy(flipped), marginal_entropy(bits))


def test_leading_dimensions_are_all_averaged_over():
    bits = (torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()

    for shape in ((4, 6, 6), (2, 3, 4, 6)):
        assert torch.equal(marginal_entropy(bits.reshape(shape)), marginal_entropy(bits))


def test_bool_codes():
    bits = torch.rand(30, 6, generator=torch.Generator().manual_seed(0)) < 0.3

    value = marginal_entropy(bits)

    assert value.dtype == torch.float32
    assert torch.equal(value, marginal_entropy(bits.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_codes_are_reduced_in_float32(dtype):
    # 3,001 of 5,001: bfloat16 sums stop growing at 256, and could not hold this mean either.
    bits = (torch.arange(5001) < 3001).to(dtype).unsqueeze(1)

    value = marginal_entropy(bits)

    assert value.dtype == torch.float32
    p = 3001 / 5001
    expected = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_low_precision_under_autocast():
    bits = (torch.arange(5001) < 17).to(torch.bfloat16).unsqueeze(1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = marginal_entropy(bits)

    assert value.dtype == torch.float32
    assert torch.equal(value, marginal_entropy(bits.float()))


def test_float64_stays_float64():
    assert marginal_entropy(torch.rand(5, 3, dtype=torch.float64).round()).dtype == torch.float64


def test_gradient_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    codes = (torch.rand(40, 8, generator=generator) < 0.3).double()
    codes[0], codes[1] = 0, 1  # so that every bit varies
    by_autograd = codes.clone().requires_grad_()
    p = by_autograd.mean(0)
    (3 * -(p * p.log2() + (1 - p) * (1 - p).log2()).sum()).backward()

    ours = codes.clone().requires_grad_()
    (3 * marginal_entropy(ours)).backward()

    torch.testing.assert_close(ours.grad, by_autograd.grad, rtol=1e-12, atol=0)


def test_gradient_agrees_with_finite_differences():
    # Off the bits the value is still Σ H₂(mean), so a step in one entry moves the mean by step/n.
    codes = (torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    codes[0], codes[1] = 0, 1

    torch.autograd.gradcheck(marginal_entropy, (codes.requires_grad_(),), eps=1e-6, atol=1e-7)


def test_bits_that_do_not_vary_get_no_gradient():
    # The release's log(p + 1e-10) pushes a silent bit further off with 33 bits/n.
    n = 1000
    codes = torch.zeros(n, 3, dtype=torch.float64)
    codes[:, 1] = 1
    codes[0, 2] = 1
    codes.requires_grad_()

    marginal_entropy(codes).backward()

    off, on, once = grad_of(codes).unbind(1)
    assert off.tolist() == on.tolist() == [0] * n
    torch.testing.assert_close(once, torch.full_like(once, math.log2(n - 1) / n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_keeps_shape_and_dtype(dtype):
    codes = torch.ones(2, 3, 4, dtype=dtype, requires_grad=True)

    marginal_entropy(codes).backward()

    assert grad_of(codes).shape == (2, 3, 4)
    assert grad_of(codes).dtype == dtype


def test_gradient_is_multiplied_by_the_upstream_one():
    codes = fair_bits(3)[:5]
    grads = []
    for factor in (1.0, -2.5):
        leaf = codes.clone().requires_grad_()
        (factor * marginal_entropy(leaf)).backward()
        grads.append(leaf.grad)

    torch.testing.assert_close(grads[1], -2.5 * grads[0])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_rows_raises(shape):
    with pytest.raises(ValueError, match="at least one row"):
        marginal_entropy(torch.zeros(shape))


def test_compiles_whole():
    torch._dynamo.reset()
    codes = (torch.rand(20, 6) < 0.3).float()
    eager, compiled = codes.clone().requires_grad_(), codes.clone().requires_grad_()
    value = marginal_entropy(eager)
    value.backward()

    compiled_fn = torch.compile(marginal_entropy, backend="aot_eager", fullgraph=True)
    value_compiled = compiled_fn(compiled)
    value_compiled.backward()

    torch.testing.assert_close(value_compiled, value)
    torch.testing.assert_close(compiled.grad, eager.grad)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**16))
def test_never_below_zero_nor_above_the_number_of_bits(n, d, density, seed):
    codes = torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < density

    value = marginal_entropy(codes).item()

    assert 0 <= value <= d * (1 + 1e-6)
    assert (value == 0) == bool((codes == codes[:1]).all())
