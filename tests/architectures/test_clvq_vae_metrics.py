"""What a CLVQ-VAE logs, and what it finds in data of which the answer is known."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import TrainingCLVQVAE
from bae_lens.architectures.packed_rows import pack_rows
from tests.architectures.clvq_vae_parts import (
    DECODERS,
    SEQUENCES,
    decoder_inputs,
    distances,
    encoded,
    input_of,
    parts,
    planted_rows,
)
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    LENGTH,
    N_CODES,
    batches_of,
    clvq_cfg,
    make_pairs,
    make_rows,
    make_training_clvq,
    metric,
    train_step,
    trainer_cfg,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


# Metrics


def at_codes(sae: Any, indices: Tensor) -> Tensor:
    """Rows whose tokens are encoded to these codes, exactly."""
    lower = input_of(sae, sae.codebook[indices])
    return pack_rows(lower, make_pairs(len(indices))[1])


def test_perplexity_is_the_number_of_codes_where_all_are_used_alike():
    sae = make_training_clvq(decoder="token", ema_decay=0.0)

    uniform = train_step(sae, at_codes(sae, torch.arange(BATCH - BATCH % N_CODES) % N_CODES))
    assert metric(uniform, "perplexity").item() == pytest.approx(N_CODES, rel=1e-4)

    single = train_step(sae, at_codes(sae, torch.full((BATCH,), 3)))
    assert metric(single, "perplexity").item() == pytest.approx(1, rel=1e-4)

    half = train_step(sae, at_codes(sae, torch.arange(BATCH) % 2))
    assert metric(half, "perplexity").item() == pytest.approx(2, rel=1e-4)


def test_perplexity_is_pooled_over_batches_not_averaged():
    sae = make_training_clvq()
    for name in ("nearest_count", "n_updates"):
        getattr(sae.quantizer, name).zero_()
    snapshot = copy.deepcopy(sae)

    perplexity = []
    for k in range(N_CODES):
        output = train_step(sae, at_codes(snapshot, torch.full((BATCH,), k)))
        sae.quantizer.codebook.copy_(snapshot.codebook)
        perplexity.append(metric(output, "perplexity").item())

    assert perplexity == pytest.approx(list(range(1, N_CODES + 1)), rel=1e-4)


def test_perplexity_is_that_of_evaluation_also_where_other_codes_are_drawn():
    sae = make_training_clvq(ema_decay=0.0, top_k=N_CODES, temperature=1e6)

    output = train_step(sae, at_codes(sae, torch.full((BATCH,), 3)))

    assert metric(output, "perplexity").item() == pytest.approx(1, rel=1e-4)
    assert metric(output, "drawn_off_nearest").item() == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize("masked", [True, False])
def test_drawn_off_nearest_is_the_share_of_valid_tokens_with_another_code(masked):
    sae = make_training_clvq(top_k=5, temperature=1.0)
    rows = make_rows(masked=masked)
    lower, _, valid = parts(rows)
    snapshot = sae.codebook.clone()
    nearest = distances(encoded(sae, lower), snapshot).argmin(1)

    with decoder_inputs(sae) as seen:
        output = train_step(sae, rows)

    drawn = distances(seen[0], snapshot).argmin(1)
    expected = (drawn != nearest)[valid].float().mean()
    assert 0 < expected < 1
    torch.testing.assert_close(metric(output, "drawn_off_nearest"), expected)


def test_nothing_is_drawn_off_the_nearest_with_top_k_of_one():
    sae = make_training_clvq(top_k=1, temperature=1e6)

    assert metric(train_step(sae, make_rows()), "drawn_off_nearest") == 0


def test_codes_in_use_are_those_that_were_nearest_not_long_ago():
    # A running mean over about three batches: what was used once is forgotten after a hundred.
    sae = make_training_clvq(ema_decay=0.7, revive_after=2, max_revived=2)
    codes = copy.deepcopy(sae)
    used = []
    for _ in range(120):
        # The codes are put back, so that none of the others is revived into use.
        sae.quantizer.codebook.copy_(codes.codebook)
        output = train_step(sae, at_codes(codes, torch.arange(BATCH) % 4))
        used.append(metric(output, "codes_in_use").item())

    assert used[:50] == [N_CODES] * 50
    assert used[-1] == 4


def test_revived_codes_are_counted():
    sae = make_training_clvq(revive_after=2, max_revived=2)
    codes = copy.deepcopy(sae)
    revived = []
    for _ in range(3):
        output = train_step(sae, at_codes(codes, torch.arange(BATCH) % 4))
        revived.append(metric(output, "revived_codes").item())

    assert revived == [0, 2, 4]


def test_alpha_is_logged():
    sae = make_training_clvq()

    output = train_step(sae, make_rows())

    encoder: Any = sae.encoder
    assert metric(output, "alpha").item() == encoder.alpha.item()


@pytest.mark.parametrize("decoder", DECODERS)
def test_error_and_explained_variance_are_of_valid_tokens_only(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=1)
    rows = make_rows()
    lower, upper, valid = parts(rows)
    with sae.only_tokens(valid.reshape(-1, LENGTH)):
        out = sae(lower.reshape(-1, LENGTH, D_IN)).reshape(-1, D_OUT)
    rows[~valid, :-1] = 1e4
    error = [(out[t] - upper[t]).square().sum() for t in range(BATCH) if valid[t]]
    squares = [upper[t].square().sum() for t in range(BATCH) if valid[t]]
    mean = upper[valid].mean(0)
    variance = [(upper[t] - mean).square().sum() for t in range(BATCH) if valid[t]]

    output = train_step(sae, rows)
    trainer = SAETrainer(trainer_cfg(1), sae, batches_of(rows))
    log = trainer.build_train_step_log_dict(output, n_training_samples=BATCH)

    relative = torch.stack([e / s for e, s in zip(error, squares, strict=True)]).mean()
    torch.testing.assert_close(
        metric(output, "relative_squared_error"), relative, rtol=1e-4, atol=0
    )
    explained = 1 - torch.stack(error).sum() / torch.stack(variance).sum()
    assert log["metrics/explained_variance"] == pytest.approx(explained.item(), rel=1e-3)
    assert log["metrics/l0"] == pytest.approx(valid.float().mean().item())
    assert log["losses/mse_loss"] == pytest.approx(
        (torch.stack(error).mean() / sae.target_scale**2).item(), rel=1e-4
    )


def test_metrics_carry_no_graph():
    output = train_step(make_training_clvq(), make_rows())

    assert not any(metric(output, name).requires_grad for name in output.metrics)
    assert not output.feature_acts.requires_grad


@pytest.mark.parametrize("top_k", [1, 5])
def test_feature_acts_are_the_one_hots_of_the_nearest_codes(top_k):
    sae = make_training_clvq(top_k=top_k, temperature=1e6)
    rows = make_rows()
    lower, _, valid = parts(rows)
    expected = sae.encode(lower) * valid[:, None]

    output = train_step(sae, rows)

    assert output.feature_acts.shape == output.hidden_pre.shape == (BATCH, N_CODES)
    assert torch.equal(output.feature_acts, expected)
    assert torch.equal(output.hidden_pre.argmax(1)[valid], expected[valid].argmax(1))


# Planted data: which of K means a token has is all that both hook points share


def purity(indices: Tensor, latent: Tensor) -> float:
    table = torch.zeros(N_CODES, N_CODES)
    table.index_put_((indices, latent), torch.ones(()), accumulate=True)
    return (table.amax(1).sum() / table.sum()).item()


def explained_variance(out: Tensor, target: Tensor) -> float:
    error = (out - target).square().sum()
    return 1 - (error / (target - target.mean(0)).square().sum()).item()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("top_k", [1, 5])
def test_training_recovers_a_planted_mixture(decoder, top_k):
    torch.manual_seed(0)
    sae = TrainingCLVQVAE(clvq_cfg(decoder=decoder, top_k=top_k, decoder_layers=1))
    rows, _ = planted_rows(50 * BATCH)
    sae.calibrate(rows, batch_size=BATCH)

    SAETrainer(trainer_cfg(300, lr=5e-3, lr_decay_steps=60), sae, batches_of(rows)).fit()

    held_out, latent = planted_rows(1024, seed=1)
    lower, upper, _ = parts(held_out)
    with torch.no_grad():
        out = sae(lower.reshape(-1, LENGTH, D_IN)).reshape(-1, D_OUT)
    assert purity(sae.code_indices(lower), latent) > 0.99
    assert explained_variance(out, upper) > 0.98


def test_a_bad_start_is_mended_by_revival():
    def codes_used(**settings):
        torch.manual_seed(0)
        sae = TrainingCLVQVAE(clvq_cfg(decoder="token", decoder_layers=0, **settings))
        rows, _ = planted_rows(20 * BATCH)
        sae.calibrate(rows)
        start = 50 + sae.codebook
        start[0] = 0
        sae.quantizer.set_codebook(start, torch.ones(N_CODES))
        SAETrainer(trainer_cfg(120), sae, batches_of(rows)).fit()
        return len(sae.code_indices(parts(rows)[0]).unique())

    assert codes_used(revive_after=None) < N_CODES / 2
    assert codes_used(revive_after=5) == N_CODES


def test_the_transformer_uses_the_codes_before_which_no_token_decoder_can():
    fixed = torch.Generator().manual_seed(3)
    means = [2 * torch.randn(4, d, generator=fixed) for d in (D_IN, D_OUT, D_OUT)]

    def sequences(n, seed):
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randint(4, (n, LENGTH), generator=generator)
        lower = means[0][latent] + 0.1 * torch.randn(n, LENGTH, D_IN, generator=generator)
        before = means[2][latent].roll(1, dims=1)
        before[:, 0] = 0
        return lower, means[1][latent] + before

    scores = {}
    for decoder in DECODERS:
        torch.manual_seed(0)
        settings = {"d_sae": 4, "decoder_layers": 1, "top_k": 1}
        sae = TrainingCLVQVAE(clvq_cfg(decoder=decoder, **settings))
        rows = pack_rows(*sequences(50 * SEQUENCES, 0))
        SAETrainer(trainer_cfg(400, lr=5e-3, lr_decay_steps=80), sae, batches_of(rows)).fit()
        lower, upper = sequences(100, 1)
        with torch.no_grad():
            scores[decoder] = explained_variance(
                sae(lower).reshape(-1, D_OUT), upper.reshape(-1, D_OUT)
            )

    assert scores["token"] < 0.75
    assert scores["transformer"] > 0.9


def test_a_single_layer_vq_vae_reconstructs_a_mixture():
    torch.manual_seed(0)
    sae = TrainingCLVQVAE(clvq_cfg(decoder="token", d_out=None, decoder_layers=1))
    x = parts(planted_rows(50 * BATCH)[0])[0]
    sae.calibrate(x, batch_size=BATCH)

    SAETrainer(trainer_cfg(300, lr=5e-3, lr_decay_steps=60), sae, batches_of(x)).fit()

    held_out = parts(planted_rows(1024, seed=1)[0])[0]
    best = 1 - 0.3**2 * D_IN / (held_out - held_out.mean(0)).square().sum(1).mean().item()
    with torch.no_grad():
        assert explained_variance(sae(held_out), held_out) > best - 0.02
