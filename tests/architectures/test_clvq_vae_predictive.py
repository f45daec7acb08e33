"""The predictive encoder of a CLVQ-VAE: codes of the target's space, each token's nearest to its prediction.

What it shares with the paper's encoder is tested in test_clvq_vae.py, what SAELens asks in tests/conformance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.training.sae_trainer import SAETrainer
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from torch import Tensor

from bae_lens import CLVQVAE, TrainingCLVQVAE
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from bae_lens.dictionaries import Dictionary
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    N_CODES,
    batches_of,
    clvq_cfg,
    grad_of,
    make_clvq,
    make_pairs,
    make_rows,
    make_training_clvq,
    metric,
    train_step,
    trainer_cfg,
)

PREDICTIVE: dict[str, Any] = {"encoder": "predictive", "decoder": "token"}
WIDTHS = pytest.mark.parametrize("predictor_hidden", [None, 20])
BOTH_CLASSES = pytest.mark.parametrize("make", [make_training_clvq, make_clvq])


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def standardized(sae: Any, upper: Tensor) -> Tensor:
    return (upper - sae.target_mean) / sae.target_scale


def predicted(sae: Any, x: Tensor) -> Tensor:
    """In the model's units, in plain algebra."""
    w = dict(sae.named_parameters())
    x = (x - sae.input_mean) * sae.input_scale
    z = x @ w["encoder.linear.weight"].T + w["encoder.linear.bias"]
    if "encoder.up.weight" in w:
        hidden = (x @ w["encoder.up.weight"].T + w["encoder.up.bias"]).clamp(min=0)
        z = z + hidden @ w["encoder.down.weight"].T
    return z


@BOTH_CLASSES
@WIDTHS
def test_a_token_is_rebuilt_as_the_code_nearest_to_its_prediction(make, predictor_hidden):
    sae = make(**PREDICTIVE, predictor_hidden=predictor_hidden)
    x, _ = make_pairs(BATCH)
    outputs = sae.target_mean + sae.target_scale * sae.codebook
    nearest = torch.cdist(predicted(sae, x), sae.codebook).argmin(1)

    assert sae.codebook.shape == (N_CODES, D_OUT)
    assert len(nearest.unique()) > N_CODES / 2
    assert torch.equal(sae.code_indices(x), nearest)
    torch.testing.assert_close(sae.W_dec * sae.scale[:, None], outputs)
    torch.testing.assert_close(sae(x), outputs[nearest])
    # What SAELens calls the encoder's weights says the same of its output.
    scores = predicted(sae, x) @ sae.W_enc + sae.b_enc
    assert torch.equal(scores.argmax(1), nearest)


@WIDTHS
def test_a_step_is_that_of_a_regression_whatever_the_codes(predictor_hidden):
    sae = make_training_clvq(**PREDICTIVE, predictor_hidden=predictor_hidden, top_k=1)
    rows, codebook = make_rows(), sae.codebook.clone()
    lower, upper, valid = unpack_rows(rows, D_IN, D_OUT)
    z, y = predicted(sae, lower)[valid], standardized(sae, upper)[valid]
    expected = (z - y).square().sum() / valid.sum()
    expected.backward()
    gradients = {name: grad_of(p).clone() for name, p in sae.named_parameters()}
    sae.zero_grad()

    output = train_step(sae, rows)
    output.loss.backward()

    nearest = codebook[torch.cdist(z, codebook).argmin(1)]
    torch.testing.assert_close(output.losses["prediction_loss"], expected)
    torch.testing.assert_close(
        output.losses["mse_loss"], (nearest - y).square().sum() / valid.sum()
    )
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grad_of(parameter), gradients[name], rtol=1e-4, atol=1e-6)
    told = metric(output, "prediction_explained_variance")
    torch.testing.assert_close(told, 1 - (z - y).square().sum() / y.square().sum())
    assert "alpha" not in output.metrics


def test_codes_are_running_means_of_what_they_are_to_rebuild():
    sae = make_training_clvq(**PREDICTIVE, top_k=1, ema_decay=0.0, revive_after=None)
    rows, before = make_rows(), sae.codebook.clone()
    lower, upper, valid = unpack_rows(rows, D_IN, D_OUT)
    y = standardized(sae, upper)
    nearest = torch.cdist(predicted(sae, lower), before).argmin(1)

    train_step(sae, rows)

    for k in nearest[valid].unique():
        mine = y[valid & (nearest == k)].mean(0)
        torch.testing.assert_close(sae.codebook[k], mine, rtol=1e-3, atol=1e-3)


def test_it_starts_at_the_regression_of_its_first_tokens():
    lower, upper = make_pairs(2000)
    sae = TrainingCLVQVAE(clvq_cfg(**PREDICTIVE, predictor_hidden=20))

    sae.calibrate(pack_rows(lower, upper))

    ridge = Ridge(1e-3).fit(lower.numpy(), upper.numpy())
    expected = torch.from_numpy(ridge.predict(lower.numpy())).float()
    found = sae.to_target(sae.encoder(sae.process_sae_in(lower)))
    assert (found - expected).norm() < 0.05 * (expected - expected.mean(0)).norm()


def kmeans(x: np.ndarray, n: int) -> Any:
    return KMeans(n, n_init=5, random_state=0).fit(x)  # pyright: ignore[reportArgumentType]


def explained_variance(out: Tensor, target: Tensor) -> float:
    error = (out - target).square().sum()
    return 1 - (error / (target - target.mean(0)).square().sum()).item()


def hidden_signal(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The higher layer is a function of what varies least at the lower one."""
    generator = torch.Generator().manual_seed(seed)
    lower = 5 * torch.randn(n, D_IN, generator=generator)
    kind = torch.randint(8, (n,), generator=generator)
    signal = torch.stack([(kind >> bit & 1) * 2.0 - 1 for bit in range(3)], 1)
    lower[:, :3] = signal + 0.05 * lower[:, :3]
    mix = torch.randn(3, D_OUT, generator=torch.Generator().manual_seed(5))
    return lower, signal @ mix


def trained(lower: Tensor, upper: Tensor, **settings) -> TrainingCLVQVAE:
    torch.manual_seed(0)
    sae = TrainingCLVQVAE(clvq_cfg(sequence_length=None, **settings))
    rows = pack_rows(lower, upper)
    sae.calibrate(rows, batch_size=BATCH)
    SAETrainer(trainer_cfg(200, lr=3e-3, lr_decay_steps=40), sae, batches_of(rows)).fit()
    return sae.eval()


def test_codes_tell_what_the_higher_layer_makes_of_a_token_and_not_what_varies_most():
    data, held_out = hidden_signal(50 * BATCH), hidden_signal(1000, seed=1)

    paper = trained(*data, decoder="token", decoder_layers=1)
    ours = trained(*data, **PREDICTIVE)

    with torch.no_grad():
        assert explained_variance(paper(held_out[0]), held_out[1]) < 0.5
        assert explained_variance(ours(held_out[0]), held_out[1]) > 0.9


# Of weights that are known


def fitted(hidden: bool) -> tuple[Tensor, Tensor, list[Any], Any, Any]:
    lower, upper = make_pairs(600)
    if hidden:
        regression = MLPRegressor(hidden_layer_sizes=(20,), max_iter=30, random_state=0).fit(
            lower, upper
        )
        layers = [
            (weight.T, bias)
            for weight, bias in zip(regression.coefs_, regression.intercepts_, strict=True)
        ]
    else:
        regression = Ridge().fit(lower, upper)
        layers = [(regression.coef_, regression.intercept_)]
    said = np.asarray(regression.predict(lower), "float32")
    return lower, upper, layers, regression, kmeans(said, 7)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("hidden", [False, True])
def test_a_regression_and_its_clusters_are_a_clvq_vae(tmp_path, hidden):
    lower, _, layers, regression, clusters = fitted(hidden)

    sae = CLVQVAE.from_prediction(layers, clusters.cluster_centers_)
    sae.save_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)

    labels = torch.from_numpy(clusters.predict(np.asarray(regression.predict(lower), "float32")))
    centers = torch.from_numpy(clusters.cluster_centers_)
    for each in (sae, loaded):
        assert isinstance(each, CLVQVAE)
        assert each.cfg.predictor_hidden == (20 if hidden else None)
        assert (each.code_indices(lower) == labels).float().mean() > 0.995
        torch.testing.assert_close(each.W_dec, centers)
        assert Dictionary(each).kind.is_one_hot


def test_it_can_be_trained_on(tmp_path):
    lower, upper, layers, _, clusters = fitted(hidden=True)
    sae = CLVQVAE.from_prediction(layers, clusters.cluster_centers_)
    sae.save_model(tmp_path)

    further = TrainingCLVQVAE.load_from_disk(tmp_path)

    assert isinstance(further, TrainingCLVQVAE)
    before = explained_variance(sae(lower), upper)
    SAETrainer(trainer_cfg(60), further, batches_of(pack_rows(lower, upper))).fit()
    with torch.no_grad():
        assert explained_variance(further(lower), upper) > before


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(5, 3), r"codes must be \[K, 2\].*got shape \(5, 3\)"),
        (torch.zeros(2), r"codes must be \[K, 2\].*got shape \(2,\)"),
        (torch.zeros(0, 2), r"codes must be \[K, 2\].*got shape \(0, 2\)"),
        (torch.tensor([[1.0, float("nan")]]), "codebook"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        CLVQVAE.from_prediction([(torch.eye(2), torch.zeros(2))], codes)
