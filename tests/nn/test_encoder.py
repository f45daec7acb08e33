from __future__ import annotations

import pytest
import torch
from torch import nn

from bae_lens.nn import AdaptiveResidualEncoder, PredictiveEncoder
from tests.helpers import grad_of

D = 6


def make_encoder(seed: int = 0) -> AdaptiveResidualEncoder:
    torch.manual_seed(seed)
    encoder = AdaptiveResidualEncoder(D)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    return encoder


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_equals_its_definition(shape):
    encoder, x = make_encoder(), 3 + torch.randn(*shape, D)

    z = encoder(x)

    hidden = x @ encoder.linear.weight.T + encoder.linear.bias
    centered = hidden - hidden.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * encoder.norm.weight + encoder.norm.bias
    alpha = 0.5 / (1 + (-encoder.a).exp())
    torch.testing.assert_close(z, (1 - alpha) * x + alpha * normed)


def test_alpha_starts_where_the_paper_starts_it():
    assert AdaptiveResidualEncoder(D).alpha.item() == pytest.approx(0.27492, abs=1e-5)


@pytest.mark.parametrize("a", [-50.0, -1.0, 0.0, 50.0])
def test_alpha_stays_between_0_and_a_half(a):
    encoder = AdaptiveResidualEncoder(D)
    nn.init.constant_(encoder.a, a)

    assert 0 <= encoder.alpha <= 0.5


def test_starts_as_the_identity_and_its_norm():
    x = torch.randn(7, D)
    encoder = AdaptiveResidualEncoder(D)
    alpha = encoder.alpha

    expected = (1 - alpha) * x + alpha * nn.functional.layer_norm(x, (D,))

    torch.testing.assert_close(encoder(x), expected)


def test_all_parameters_are_trained():
    encoder = make_encoder()

    encoder(torch.randn(7, D)).square().sum().backward()

    assert all(p.grad is not None and grad_of(p).abs().sum() > 0 for p in encoder.parameters())


def test_on_the_meta_device_and_in_bf16():
    encoder = AdaptiveResidualEncoder(D, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in encoder.parameters()} == {("meta", torch.bfloat16)}

    source = make_encoder().to(torch.bfloat16)
    encoder.load_state_dict(source.state_dict(), assign=True)

    x = torch.randn(3, D, dtype=torch.bfloat16)
    assert torch.equal(encoder(x), source(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_encoder()(x.float()).isfinite().all()


# The encoder that predicts


def layer(d_in: int, d_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=generator)
    return weight, torch.randn(d_out, generator=generator)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_a_prediction_is_its_one_layer_or_two_with_a_relu_between(shape):
    x = torch.randn(*shape, D)
    (u, c), (v, b) = layer(D, 9, 0), layer(9, 4, 1)
    w, a = layer(D, 4, 2)

    one, two = PredictiveEncoder.of_layers([(w, a)]), PredictiveEncoder.of_layers([(u, c), (v, b)])

    torch.testing.assert_close(one(x), x @ w.T + a)
    torch.testing.assert_close(two(x), (x @ u.T + c).clamp(min=0) @ v.T + b)
    assert (one.d_hidden, two.d_hidden) == (None, 9)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [layer(D, 9, 0), layer(9, 9, 1), layer(9, 4, 2)],
        [layer(D, 9, 0), layer(8, 4, 1)],
        [(torch.zeros(4, D), torch.zeros(5))],
        [(torch.zeros(4), torch.zeros(4))],
    ],
)
def test_layers_that_do_not_fit_are_refused(layers):
    with pytest.raises(ValueError, match="one layer, or two with a ReLU between"):
        PredictiveEncoder.of_layers(layers)


@pytest.mark.parametrize("d_hidden", [None, 9])
def test_it_starts_at_the_regression_and_all_of_it_learns(d_hidden):
    torch.manual_seed(0)
    x, (w, b) = 3 + torch.randn(5000, D), layer(D, 4, 2)
    y = x @ w.T + b
    encoder = PredictiveEncoder(D, 4, d_hidden)

    encoder.fit_linear(x, y)

    torch.testing.assert_close(encoder(x), y, rtol=1e-2, atol=2e-2)
    for _ in range(2):  # The hidden layer's first weights learn once its last are off zero.
        (encoder(x) - y.square()).square().mean().backward()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.sub_(1e-3 * grad_of(parameter))
    assert all(grad_of(p).abs().sum() > 0 for p in encoder.parameters())
