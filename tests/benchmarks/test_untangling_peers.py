"""The peer and the control that the benchmark brings: what they compute, and that what is saved is what was
trained."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
peers: Any = importlib.import_module("untangling_peers")

D_IN, D_SAE, K = 8, 16, 3


def step(sae: Any, x: torch.Tensor) -> Any:
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    return sae.training_forward_pass(TrainStepInput(x, {}, mask, 0, False))


def inputs(n: int = 64) -> torch.Tensor:
    x = torch.randn(n, D_IN, generator=torch.Generator().manual_seed(0))
    return x * (D_IN**0.5 / x.norm(dim=1).mean())


def binary() -> Any:
    torch.manual_seed(0)
    return peers.TrainingBinarySAE(peers.TrainingBinarySAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))


def test_bits_are_the_k_largest_margins_that_are_positive():
    margins = torch.tensor([[3.0, -1.0, 2.0, 1.0], [0.5, -1.0, -2.0, -3.0]], requires_grad=True)

    bits = peers._TopBits.apply(margins, 2, 2.0)
    bits.sum().backward()

    assert bits.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0]]
    # The second largest of the second row is off, but chosen: it has the surrogate's gradient.
    soft = torch.sigmoid(margins.detach() / 2)
    chosen = torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 0]])
    torch.testing.assert_close(margins.grad, chosen * soft * (1 - soft) / 2)


def test_a_binary_code_has_unit_rows_one_value_and_learns_its_thresholds():
    sae, x = binary(), inputs()
    with torch.no_grad():
        sae.W_dec.mul_(3)
    output = step(sae, x)
    output.loss.backward()

    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert set(output.feature_acts.unique().tolist()) == {0.0, sae.scale.item()}
    assert int((output.feature_acts != 0).sum(1).max()) <= K
    assert sae.threshold.grad is not None
    assert sae.threshold.grad.abs().sum() > 0
    # The first batch's scale is that of least squares: the residual is orthogonal to what is built.
    built = output.sae_out.detach()
    assert ((x - built) * built).sum().abs() < 1e-3 * x.square().sum()
    fitted = sae.scale.item()
    step(sae, x)
    assert sae.scale.item() == fitted


def feedback(steps: int) -> Any:
    torch.manual_seed(0)
    cfg = peers.FeedbackBatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=float(K), feedback_steps=steps, topk_threshold_lr=1.0
    )
    return peers.FeedbackBatchTopKTrainingSAE(cfg)


def test_feedback_is_what_the_batch_left_encoded_again():
    sae, x = feedback(1), inputs()
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
        sae.feedback_gain.copy_(torch.linspace(0, 1, D_SAE))
    norms = sae.W_dec.norm(dim=1)
    pre = x @ sae.W_enc
    first = sae.activation_fn(pre * norms) / norms
    fed_back = pre + sae.feedback_gain * ((x - first @ sae.W_dec) @ sae.W_enc)
    second = sae.activation_fn(fed_back * norms) / norms
    left = [(x - acts @ sae.W_dec).norm(dim=1, keepdim=True) for acts in (first, second)]
    expected = torch.where(left[1] <= left[0], fed_back, pre) * norms

    acts, hidden_pre = sae.encode_with_hidden_pre(x)

    torch.testing.assert_close(hidden_pre, expected)
    torch.testing.assert_close(acts, sae.activation_fn(expected))
    acts.sum().backward()
    assert sae.feedback_gain.grad is not None
    assert sae.feedback_gain.grad.abs().sum() > 0


def test_without_steps_the_control_is_batchtopk():
    sae, x = feedback(0), inputs()
    plain = super(peers.FeedbackBatchTopKTrainingSAE, sae)

    torch.testing.assert_close(sae.encode(x), plain.encode_with_hidden_pre(x)[0])


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("make", [binary, lambda: feedback(2)])
def test_what_is_saved_encodes_as_what_was_trained(make, factor, tmp_path):
    sae, x = make(), inputs()
    step(sae, x)
    acts = sae.encode(x).detach()
    out = sae.decode(acts).detach()
    # From inputs of the scale that it was trained on to those of the model.
    sae.fold_activation_norm_scaling_factor(factor)
    sae.save_inference_model(tmp_path)
    saved: Any = SAE.load_from_disk(tmp_path)

    own = saved.encode(x / factor)

    # Thresholds of a batch are its smallest values that stay on; at equality, a value is off.
    agree = ((own != 0) == (acts != 0)).float().mean()
    assert agree > 0.97
    same = ((own != 0) == (acts != 0)).all(1)
    assert same.sum() > len(x) / 2
    torch.testing.assert_close(saved.decode(own)[same] * factor, out[same], atol=1e-4, rtol=1e-4)
