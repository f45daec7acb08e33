from __future__ import annotations

import itertools

import pytest
import torch

from bae_lens.nn import SURROGATES, binarize, heights_of, levels, quantize_levels, thresholds_of
from bae_lens.nn.levels import inverse_softplus
from tests.helpers import grad_of

N, D, L, TAU = 37, 5, 4, 0.6


@pytest.fixture(params=[True, False], ids=["listed", "dense"])
def _both_ways(request, monkeypatch):
    """What the CPU does, and what a device does."""
    monkeypatch.setattr(levels, "_lists_entries", lambda pre: request.param)


def draw(dtype=torch.float64, seed=0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    pre = rand(N, D)
    thresholds = thresholds_of(rand(D, L - 1))
    heights = heights_of(rand(D, L - 1))
    thresholds, heights = thresholds.detach(), heights.detach()
    return pre.requires_grad_(), thresholds.requires_grad_(), heights.requires_grad_()


def plainly(pre, thresholds, heights):
    """The definition, with a tensor of one more dimension."""
    passes = (pre.unsqueeze(-1) > thresholds).to(pre.dtype)
    return (passes * heights).sum(-1), passes.sum(0)


@pytest.mark.usefixtures("_both_ways")
def test_a_latent_is_worth_the_heights_of_the_thresholds_it_passes():
    pre, thresholds, heights = draw()

    code = quantize_levels(pre, thresholds, heights, temperature=TAU)

    acts, counts = plainly(pre, thresholds, heights)
    torch.testing.assert_close(code.acts, acts, rtol=1e-12, atol=0)
    assert torch.equal(code.counts, counts)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_activation_is_one_of_the_known_values_to_the_last_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    pre = (20 * torch.randn(200, D, generator=generator)).to(dtype)
    thresholds, heights = (
        made_of(torch.randn(D, 29, generator=generator).to(dtype))
        for made_of in (thresholds_of, heights_of)
    )

    acts = quantize_levels(pre, thresholds, heights).acts

    known = (acts.unsqueeze(-1) == heights.cumsum(1)).any(-1)
    assert torch.equal(known, pre > 0)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("n_rows", [1, 10, N])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_are_those_of_steps_with_the_surrogate(surrogate, n_rows, monkeypatch):
    """In the definition each step is a ``binarize``, whose gradient has tests of its own."""
    monkeypatch.setattr(levels, "_BLOCK", n_rows * D)
    given, reference = draw(), draw()
    weight = torch.linspace(-1, 2, N * D, dtype=torch.float64).reshape(N, D)
    cost = torch.linspace(-0.5, 0.4, D * L, dtype=torch.float64).reshape(D, L)

    code = quantize_levels(*given, surrogate, TAU)
    ((code.acts * weight).sum() + (code.counts * cost).sum()).backward()

    pre, thresholds, heights = reference
    steps = binarize(pre.unsqueeze(-1) - thresholds, surrogate, TAU)
    (((steps * heights).sum(-1) * weight).sum() + (steps.sum(0) * cost).sum()).backward()
    for tensor, other in zip(given, reference, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("weight_of_loss", [1.0, 1024.0])
def test_with_the_curvature_a_step_is_worth_what_crossing_it_changes(weight_of_loss):
    """Of a squared error, for whichever side of whichever threshold a row is on."""
    generator = torch.Generator().manual_seed(3)
    row = torch.randn(D, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(N, 6, generator=generator, dtype=torch.float64)
    pre, thresholds, heights = draw()
    curvature = 2 * row.square().sum(1) / N

    code = quantize_levels(pre, thresholds, heights, "sigmoid", TAU, curvature)
    loss = (code.acts @ row - x).square().sum() / N + code.zero
    (weight_of_loss * loss).backward()

    expected = torch.zeros(N, D, dtype=torch.float64)
    values = torch.cat([torch.zeros(D, 1, dtype=torch.float64), heights.detach().cumsum(1)], 1)
    with torch.no_grad():
        acts = plainly(pre, thresholds, heights)[0]
        for i, j, level in itertools.product(range(N), range(D), range(L)):
            errors = []
            for value in values[j, level : level + 2]:
                other = acts[i].clone()
                other[j] = value
                errors.append((other @ row - x[i]).square().sum() / N)
            s = torch.sigmoid((pre[i, j] - thresholds[j, level]) / TAU)
            expected[i, j] += (errors[1] - errors[0]) * s * (1 - s) / TAU
    torch.testing.assert_close(grad_of(pre), weight_of_loss * expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("_both_ways")
def test_a_curvature_of_no_loss_changes_nothing():
    given, other = draw(), draw()

    quantize_levels(*given, temperature=TAU, curvature=torch.ones(D)).acts.square().sum().backward()
    quantize_levels(*other, temperature=TAU).acts.square().sum().backward()

    for tensor, same in zip(given, other, strict=True):
        assert torch.equal(grad_of(tensor), grad_of(same))


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_one_level_of_height_one_is_binarize_to_the_last_bit(surrogate):
    pre = draw(torch.float32)[0]
    other = pre.detach().clone().requires_grad_()
    weight = torch.randn(N, D, generator=torch.Generator().manual_seed(1))

    acts = quantize_levels(pre, torch.zeros(D, 1), torch.ones(D, 1), surrogate, TAU).acts
    (acts * weight).sum().backward()
    bits = binarize(other, surrogate, TAU)
    (bits * weight).sum().backward()

    assert torch.equal(acts, bits)
    torch.testing.assert_close(grad_of(pre), grad_of(other), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_types_are_those_of_the_input_and_counts_are_exact(dtype):
    pre, thresholds, heights = (t.detach().to(dtype).requires_grad_() for t in draw())
    given = (pre, thresholds, heights)

    code = quantize_levels(*given, temperature=TAU)
    (code.acts.sum() + code.counts.sum()).backward()

    assert code.acts.dtype == dtype
    assert code.counts.dtype == torch.float32
    assert torch.equal(code.counts, plainly(*given)[1].float())
    assert [grad_of(t).dtype for t in given] == [dtype] * 3


@pytest.mark.usefixtures("_both_ways")
def test_nan_is_off():
    acts = quantize_levels(torch.tensor([[torch.nan]]), torch.zeros(1, 2), torch.ones(1, 2)).acts

    assert acts.item() == 0


def test_a_batch_without_rows_has_no_counts():
    code = quantize_levels(torch.zeros(0, 2), torch.zeros(2, 3), torch.ones(2, 3))

    assert code.acts.shape == (0, 2)
    assert code.counts.sum() == 0


def test_nothing_but_the_pre_activations_is_kept_for_backward():
    pre, thresholds, heights = draw()
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        quantize_levels(pre, thresholds, heights)

    assert sorted(kept) == sorted([N * D, D * L, D * L])


def test_a_compiled_step_is_the_same():
    def step(pre, thresholds, heights):
        curvature = 2 * torch.ones(D)
        code = quantize_levels(pre, thresholds, heights, temperature=TAU, curvature=curvature)
        return code.acts.square().sum() + code.counts[:, -1].sum() + code.zero

    given, other = draw(torch.float32), draw(torch.float32)
    step(*given).backward()
    torch.compile(step, backend="aot_eager", fullgraph=True)(*other).backward()

    for a, b in zip(given, other, strict=True):
        assert torch.equal(grad_of(a), grad_of(b))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"surrogate": "relu"}, "surrogate must be one of"), ({"temperature": 0}, "greater than 0")],
)
def test_what_no_step_can_have_for_a_gradient_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        quantize_levels(torch.zeros(1, 1), torch.zeros(1, 2), torch.ones(1, 2), **options)


def test_thresholds_ascend_from_zero_and_heights_are_positive_from_one():
    raw = torch.tensor([[-20.0, 0.0, 3.0]])

    thresholds, heights = thresholds_of(raw), heights_of(raw)

    assert thresholds[0, 0] == 0
    assert (thresholds.diff() > 0).all()
    assert heights[0, 0] == 1
    assert (heights > 0).all()
    torch.testing.assert_close(thresholds.diff(), heights[:, 1:], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(inverse_softplus(heights[:, 1:]), raw, rtol=1e-4, atol=1e-4)
