from __future__ import annotations

import pytest
import torch

from bae_lens.nn import SURROGATES, binarize
from tests.helpers import grad_of


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_value_is_one_above_zero_and_zero_at_or_below_it(surrogate):
    pre = torch.tensor([-3.0, -1e-30, -0.0, 0.0, 1e-30, 0.5, 7.0])

    assert binarize(pre, surrogate).tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_those_of_the_input(dtype):
    pre = torch.randn(2, 3, 5).to(dtype)

    bits = binarize(pre)

    assert bits.shape == pre.shape
    assert bits.dtype == dtype
    assert torch.equal(bits.bool(), pre > 0)


def test_nan_is_off():
    assert binarize(torch.tensor([float("nan")])).item() == 0


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_sigmoid_surrogate_is_the_derivative_of_the_tempered_sigmoid(temperature):
    pre = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    upstream = torch.linspace(-1, 2, 41, dtype=torch.float64)
    binarize(pre, "sigmoid", temperature).backward(upstream)

    smooth = pre.detach().clone().requires_grad_()
    torch.sigmoid(smooth / temperature).backward(upstream)

    torch.testing.assert_close(pre.grad, smooth.grad, rtol=1e-12, atol=1e-15)


def test_sigmoid_surrogate_peaks_at_the_threshold():
    pre = torch.tensor([0.0, 0.0], requires_grad=True)

    (binarize(pre[:1], temperature=1.0) + binarize(pre[1:], temperature=0.5)).sum().backward()

    assert grad_of(pre).tolist() == [0.25, 0.5]


def test_sigmoid_surrogate_vanishes_far_from_the_threshold():
    pre = torch.tensor([-300.0, 300.0], requires_grad=True)

    binarize(pre).sum().backward()

    assert grad_of(pre).tolist() == [0, 0]


def test_identity_surrogate_passes_the_gradient_unchanged():
    pre = torch.randn(4, 6, requires_grad=True)
    upstream = torch.randn(4, 6)

    binarize(pre, "identity").backward(upstream)

    assert torch.equal(grad_of(pre), upstream)


def test_paper_surrogate_is_x_times_one_minus_x():
    pre = torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0], requires_grad=True)

    binarize(pre, "paper").backward(torch.full((6,), 2.0))

    assert grad_of(pre).tolist() == [-4, 0, 0.375, 0.5, 0, -4]


@pytest.mark.parametrize("surrogate", ["identity", "paper"])
def test_only_the_sigmoid_reads_the_temperature(surrogate):
    grads = []
    for temperature in (0.1, 10.0):
        pre = torch.linspace(-2, 2, 9, requires_grad=True)
        binarize(pre, surrogate, temperature).sum().backward()
        grads.append(pre.grad)

    assert torch.equal(*grads)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradient_keeps_the_dtype(surrogate):
    pre = torch.randn(5, dtype=torch.bfloat16, requires_grad=True)

    binarize(pre, surrogate).sum().backward()

    assert grad_of(pre).dtype == torch.bfloat16


def test_unknown_surrogate_names_the_known_ones():
    with pytest.raises(ValueError, match=r"sigmoid, identity, paper; got 'tanh'"):
        binarize(torch.zeros(1), "tanh")  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        binarize(torch.zeros(1), temperature=temperature)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_compiles_whole_and_gives_the_same_value_and_gradient(surrogate):
    torch._dynamo.reset()
    x = torch.randn(7, 5)

    def loss(pre):
        return (binarize(pre, surrogate, 0.7) * torch.arange(5.0)).sum()

    eager, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = loss(eager)
    value.backward()
    value_compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled)
    value_compiled.backward()

    assert value_compiled.item() == value.item()
    torch.testing.assert_close(compiled.grad, eager.grad)
