from __future__ import annotations

import pytest
import torch

from bae_lens.nn import binarize, with_feedback
from tests.helpers import grad_of

N, D_IN, D_SAE = 11, 6, 9


def draw(*batch, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_enc, gain = rand(D_IN, D_SAE).requires_grad_(), rand(D_SAE).requires_grad_()
    return rand(*batch, D_IN), W_enc, rand(D_SAE, D_IN), gain


def plainly(x, W_enc, W_dec, gain, steps):
    """The definition, step by step, by autograd: residuals are constants, and each row keeps the last of
    the steps that leave the least."""
    pre = x @ W_enc
    every, left = [pre], []
    for _ in range(steps):
        residual = (x - binarize(pre) @ W_dec).detach()
        left.append(residual.norm(dim=-1))
        pre = pre + gain * (residual @ W_enc)
        every.append(pre)
    left.append((x - binarize(pre) @ W_dec).detach().norm(dim=-1))
    step = steps - torch.stack(left).flip(0).argmin(0)
    return torch.stack(every).gather(0, step[None, ..., None].expand(1, *pre.shape))[0]


def with_ours(x, W_enc, W_dec, gain, steps):
    return with_feedback(x @ W_enc, x, W_enc, gain, lambda pre: binarize(pre) @ W_dec, steps)


@pytest.mark.parametrize("batch", [(N,), (3, 5)])
@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_values_and_gradients_are_those_of_the_definition(steps, batch):
    given, other = draw(*batch), draw(*batch)

    pre, expected = with_ours(*given, steps), plainly(*other, steps)
    weight = torch.linspace(-1, 1, pre.numel(), dtype=torch.float64).reshape(pre.shape)
    (pre * weight).sum().backward()
    (expected * weight).sum().backward()

    torch.testing.assert_close(pre, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad_of(given[1]), grad_of(other[1]), rtol=1e-10, atol=1e-12)
    if steps > 0:
        torch.testing.assert_close(grad_of(given[3]), grad_of(other[3]), rtol=1e-10, atol=1e-12)


def test_without_a_gain_nothing_is_added():
    x, W_enc, W_dec, _ = draw(N)

    pre = with_ours(x, W_enc, W_dec, torch.zeros(D_SAE, dtype=torch.float64), 3)

    assert torch.equal(pre, x @ W_enc)


def test_of_two_latents_that_mean_the_same_the_weaker_one_is_silenced():
    """Without feedback both fire, and the reconstruction overshoots."""
    W_enc = torch.tensor([[1.0, 0.6]])
    W_dec = torch.tensor([[1.0], [1.0]])
    x = torch.tensor([[1.0]])
    bias = torch.tensor([-0.3, -0.3])

    def decoded(pre):
        return binarize(pre) @ W_dec

    before = x @ W_enc + bias
    after = with_feedback(before, x, W_enc, torch.tensor([0.5, 1.0]), decoded, 1)

    assert decoded(before).item() == 2
    assert decoded(after).item() == 1
    assert after[0, 0] > 0 > after[0, 1]


@pytest.mark.parametrize("gain", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_token_is_explained_worse_than_without_it(gain, steps):
    """Of random weights a large gain would swing, and leave far more than it found."""
    x, W_enc, W_dec, _ = draw(200)

    def left(pre):
        return (x - binarize(pre) @ W_dec).norm(dim=-1)

    with torch.no_grad():
        pre = with_ours(x, W_enc, W_dec, torch.full((D_SAE,), gain, dtype=torch.float64), steps)

        assert (left(pre) <= left(x @ W_enc)).all()
        assert (left(pre) < left(x @ W_enc)).any()


def test_a_row_that_is_not_finite_leaves_the_others_as_they_are():
    x, W_enc, W_dec, gain = draw(N)
    broken = x.clone()
    broken[3] = torch.nan

    expected, pre = (with_ours(rows, W_enc, W_dec, gain, 2) for rows in (x, broken))

    rest = torch.arange(N) != 3
    torch.testing.assert_close(pre[rest], expected[rest])
    assert pre[3].isnan().all()


def test_it_compiles():
    x, W_enc, W_dec, gain = draw(N)
    expected = with_ours(x, W_enc, W_dec, gain, 2)

    compiled = torch.compile(with_ours, backend="aot_eager", fullgraph=True)

    torch.testing.assert_close(compiled(x, W_enc, W_dec, gain, 2), expected)


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_of_the_steps_is_left_in_the_cache_of_autocast(enabled: bool) -> None:
    """What was cast there has no gradient, and some versions of torch would use it again."""
    seen = []

    def reconstruct(pre: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_autocast_cache_enabled(), torch.is_autocast_enabled("cpu")))
        return pre @ W_dec

    W_enc, W_dec = torch.randn(4, 6), torch.randn(6, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        before = torch.is_autocast_cache_enabled()
        with_feedback(torch.randn(3, 6), torch.randn(3, 4), W_enc, torch.ones(6), reconstruct, 2)
        assert torch.is_autocast_cache_enabled() == before
    assert seen == [(False, enabled)] * 3
