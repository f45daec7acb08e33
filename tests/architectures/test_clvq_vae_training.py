"""A CLVQ-VAE's training step: equal to plain loops, its losses' units, its mask, its batches."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor

from bae_lens import TrainingCLVQVAE
from bae_lens.architectures.clvq_vae import only_tokens
from bae_lens.architectures.packed_rows import pack_rows
from tests.architectures.clvq_vae_parts import (
    DECODERS,
    JUNK,
    SEQUENCES,
    assert_same_state,
    distances,
    encoded,
    parts,
    state,
)
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    LENGTH,
    N_CODES,
    clvq_cfg,
    grad_of,
    make_bae,
    make_clvq,
    make_pairs,
    make_rows,
    make_training_clvq,
    make_valid,
    metric,
    train_step,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


# A whole step, in plain loops

Weights = dict[str, Tensor]


def plain_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    x = x - x.mean()
    x = x / (x.square().mean() + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def plain_linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def plain_mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    h = plain_linear(w, f"{name}.1", plain_norm(w, f"{name}.0", x))
    return plain_linear(w, f"{name}.3", h * (1 + torch.erf(h / math.sqrt(2))) / 2)


def plain_encoder(w: Weights, x: Tensor) -> Tensor:
    alpha = 0.5 / (1 + (-w["encoder.a"]).exp())
    normed = plain_norm(w, "encoder.norm", plain_linear(w, "encoder.linear", x))
    return (1 - alpha) * x + alpha * normed


def plain_token_decoder(w: Weights, codes: list[Tensor], n_blocks: int) -> list[Tensor]:
    outs = []
    for h in codes:
        for i in range(n_blocks):
            h = h + plain_mlp(w, f"decoder.blocks.{i}", h)
        outs.append(plain_linear(w, "decoder.head", h))
    return outs


def plain_transformer(w: Weights, codes: list[Tensor], n_blocks: int) -> list[Tensor]:
    """The tokens of one sequence that are there, in order; 8 heads of width 2."""
    hidden = []
    for t, code in enumerate(codes):
        angles = [t * 10_000 ** (-i / (D_IN / 2)) for i in range(D_IN // 2)]
        where = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        hidden.append(plain_linear(w, "decoder.embed", code) + torch.tensor(where).to(code))
    for i in range(n_blocks):
        name = f"decoder.blocks.{i}"
        normed = [plain_norm(w, f"{name}.norm", h) for h in hidden]
        queries = [plain_linear(w, f"{name}.attention.query", h) for h in normed]
        both = [plain_linear(w, f"{name}.attention.key_value", h) for h in normed]
        new = []
        for t, h in enumerate(hidden):
            mixed = []
            for head in range(8):
                part = slice(2 * head, 2 * head + 2)
                scores = [queries[t][part] @ both[s][:D_IN][part] for s in range(t + 1)]
                weights = (torch.stack(scores) / math.sqrt(2)).softmax(0)
                values = torch.stack([both[s][D_IN:][part] for s in range(t + 1)])
                mixed.append(weights @ values)
            h = h + plain_linear(w, f"{name}.attention.out", torch.cat(mixed))
            new.append(h + plain_mlp(w, f"{name}.mlp", h))
        hidden = new
    return [plain_linear(w, "decoder.head", h) for h in hidden]


def plain_step(sae: TrainingCLVQVAE, w: Weights, rows: Tensor, beta: float) -> dict[str, Tensor]:
    """Losses of a step with the nearest codes, and the codebook after it."""
    cfg, length = sae.cfg, sae.cfg.sequence_length
    assert length is not None
    units = {name: buffer.to(rows) for name, buffer in sae.named_buffers()}
    codebook = sae.codebook.to(rows)
    squared_error = squared_distance = torch.zeros(()).to(rows)
    n_valid = 0
    members: list[list[Tensor]] = [[] for _ in codebook]
    for start in range(0, len(rows), length):
        codes, targets = [], []
        for row in rows[start : start + length]:
            if row[-1] == 0:
                continue
            n_valid += 1
            x = (row[:D_IN] - units["input_mean"]) * units["input_scale"]
            z = plain_encoder(w, x)
            k = min(range(len(codebook)), key=lambda k: float((z - codebook[k]).norm()))
            squared_distance = squared_distance + (z - codebook[k]).square().sum()
            members[k].append(z.detach())
            codes.append(z + (codebook[k] - z).detach())
            targets.append((row[D_IN:-1] - units["target_mean"]) / units["target_scale"])
        decode = plain_token_decoder if cfg.decoder == "token" else plain_transformer
        for out, target in zip(decode(w, codes, cfg.decoder_layers), targets, strict=True):
            squared_error = squared_error + (out - target).square().sum()

    gamma, epsilon = cfg.ema_decay, cfg.laplace_epsilon
    counts, sums = [], []
    for k, mine in enumerate(members):
        n, s = len(mine), sum(mine, torch.zeros(D_IN).to(rows))
        count = gamma * units["quantizer.ema_count"][k] + (1 - gamma) * n
        counts.append(count + epsilon)
        sums.append(gamma * units["quantizer.ema_sum"][k] + (1 - gamma) * s + epsilon * codebook[k])
    after = torch.stack([s / n for s, n in zip(sums, counts, strict=True)])
    losses = {
        "mse_loss": squared_error / n_valid,
        "commitment_loss": beta * squared_distance / n_valid,
    }
    return {**losses, "codebook": after}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_step_equals_a_plain_reference_in_losses_gradients_and_codebook(decoder):
    settings = {"top_k": 1, "ema_decay": 0.6, "laplace_epsilon": 0.2, "revive_after": None}
    sae = make_training_clvq(decoder=decoder, dtype="float64", **settings)
    rows = make_rows(4 * LENGTH).double()
    weights = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    expected = plain_step(sae, weights, rows, beta=0.3)
    total = expected["mse_loss"] + expected["commitment_loss"]
    total.backward()

    output = train_step(sae, rows, commitment=0.3)
    output.loss.backward()

    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    assert set(output.losses) == {"mse_loss", "commitment_loss"}
    for name, loss in output.losses.items():
        torch.testing.assert_close(loss, expected[name], msg=name, **close)
    torch.testing.assert_close(output.loss, total, **close)
    torch.testing.assert_close(sae.codebook, expected["codebook"], **close)
    for name, parameter in sae.named_parameters():
        assert grad_of(parameter).abs().sum() > 0, name
        torch.testing.assert_close(grad_of(parameter), grad_of(weights[name]), **close)


# Losses' units


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("d_out", [D_OUT, 5])
def test_who_always_answers_the_mean_loses_d_out(decoder, d_out):
    sae = TrainingCLVQVAE(clvq_cfg(decoder=decoder, d_out=d_out))
    with torch.no_grad():
        own: Any = sae.decoder
        own.head.weight.zero_()
        own.head.bias.zero_()

    output = train_step(sae, make_rows(d_out=d_out))

    assert output.losses["mse_loss"].item() == pytest.approx(d_out, rel=1e-4)


def test_the_commitment_is_a_squared_distance_summed_over_d_in_and_averaged_over_tokens():
    sae = make_training_clvq(top_k=1)
    rows = make_rows()
    lower, _, valid = parts(rows)
    nearest = distances(encoded(sae, lower), sae.codebook).amin(1)[valid]

    output = train_step(sae, rows, commitment=0.25)

    expected = 0.25 * nearest.square().mean()
    torch.testing.assert_close(output.losses["commitment_loss"], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("decoder", DECODERS)
def test_losses_and_codes_do_not_depend_on_scale_and_offset_of_either_hook_point(decoder):
    lower, upper = make_pairs(BATCH)
    valid, outputs = make_valid(BATCH), []
    for a, b, c, d in ((1.0, 0.0, 1.0, 0.0), (30.0, 7.0, 0.01, -4.0)):
        torch.manual_seed(0)
        sae = TrainingCLVQVAE(clvq_cfg(decoder=decoder, top_k=1, codebook_init="kmeans++"))
        outputs.append(train_step(sae, pack_rows(a * lower + b, c * upper + d, valid)))

    plain, moved = outputs
    for name, loss in plain.losses.items():
        torch.testing.assert_close(moved.losses[name], loss, rtol=1e-3, atol=0)
    assert torch.equal(moved.feature_acts, plain.feature_acts)


# The mask


def assert_same_step(
    actual: TrainStepOutput, expected: TrainStepOutput, valid: Tensor, saes: list[TrainingCLVQVAE]
) -> None:
    for output in (actual, expected):
        output.loss.backward()
    assert actual.loss.isfinite()
    assert torch.equal(actual.loss, expected.loss)
    for name, loss in expected.losses.items():
        assert torch.equal(actual.losses[name], loss), name
    for name in expected.metrics:
        assert torch.equal(metric(actual, name), metric(expected, name)), name
    assert torch.equal(actual.feature_acts, expected.feature_acts)
    assert torch.equal(actual.sae_in, expected.sae_in)
    assert torch.equal(actual.sae_out, expected.sae_out)
    assert torch.equal(actual.hidden_pre[valid], expected.hidden_pre[valid])
    assert_same_state(state(saes[0]), state(saes[1]))
    parameters = zip(saes[0].parameters(), saes[1].parameters(), strict=True)
    assert all(torch.equal(grad_of(a), grad_of(b)) for a, b in parameters)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(
    "decoder",
    [{"decoder": "token"}, {"decoder": "transformer"}, {"decoder_memory": "encoder"}],
    ids=lambda d: "_".join(d.values()),
)
@pytest.mark.parametrize("is_first_step", [True, False])
def test_masked_positions_contribute_nothing(junk, decoder, is_first_step):
    rows = make_rows()
    valid = parts(rows)[2]
    filled = rows.clone()
    filled[~valid, :-1] = junk
    cfg = clvq_cfg(**decoder, top_k=3, temperature=1.0, revive_after=1)
    first = TrainingCLVQVAE(cfg) if is_first_step else make_training_clvq(**vars(cfg))
    saes = [first, copy.deepcopy(first)]

    outputs = []
    for sae, batch in zip(saes, (filled, rows), strict=True):
        torch.manual_seed(1)
        outputs.append(train_step(sae, batch))

    assert 0 < valid.sum() < BATCH
    assert_same_step(outputs[0], outputs[1], valid, saes)


def test_masked_positions_have_no_code_and_no_gradient():
    sae = make_training_clvq(decoder="transformer")
    rows = make_rows()
    valid = parts(rows)[2]
    seen = []
    sae.encoder.register_forward_hook(lambda module, inputs, out: seen.append(out))

    output = train_step(sae, rows)
    seen[0].retain_grad()
    output.loss.backward()

    assert not output.feature_acts[~valid].any()
    assert not grad_of(seen[0])[~valid].any()
    assert grad_of(seen[0])[valid].abs().amax(1).min() > 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_without_a_valid_token_changes_nothing(decoder):
    sae = make_training_clvq(decoder=decoder)
    before = state(sae)
    rows = make_rows()
    rows[:, -1] = 0

    output = train_step(sae, rows)
    output.loss.backward()

    assert output.loss == 0
    assert not output.feature_acts.any()
    assert not any(grad_of(p).any() for p in sae.parameters())
    assert_same_state(state(sae), before)


def pad(x: Tensor, before: int, after: int, value: float) -> Tensor:
    """[n, length, d] with junk on both sides."""
    sides = [x.new_full((len(x), k, *x.shape[2:]), value) for k in (before, after)]
    return torch.cat([sides[0], x, sides[1]], 1)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (1, 2)])
def test_padding_at_either_end_changes_no_valid_token_of_a_step(decoder, before, after):
    lower, upper = (x.reshape(SEQUENCES, LENGTH, -1) for x in make_pairs(BATCH))
    real = torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)
    settings = {"decoder": decoder, "top_k": 1, "revive_after": None}
    plain = make_training_clvq(**settings)
    padded = make_training_clvq(**settings, sequence_length=before + LENGTH + after)

    expected = train_step(plain, pack_rows(lower, upper, real))
    mask = pad(real.float(), before, after, 0).bool()
    junk = float("nan")
    rows = pack_rows(pad(lower, before, after, junk), pad(upper, before, after, junk), mask)
    output = train_step(padded, rows)
    expected.loss.backward()
    output.loss.backward()

    valid = mask.reshape(-1)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(output.sae_out[valid], expected.sae_out, **close)
    assert torch.equal(output.feature_acts[valid], expected.feature_acts)
    for name, loss in expected.losses.items():
        torch.testing.assert_close(output.losses[name], loss, **close)
    for name in expected.metrics:
        torch.testing.assert_close(metric(output, name), metric(expected, name), **close)
    for a, b in zip(padded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(grad_of(a), grad_of(b), **close)
    torch.testing.assert_close(padded.codebook, plain.codebook)


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (1, 2)])
def test_padding_at_either_end_changes_no_valid_token_in_evaluation(make, decoder, before, after):
    sae = make(decoder=decoder)
    x = make_pairs(BATCH)[0].reshape(SEQUENCES, LENGTH, D_IN)
    mask = pad(torch.ones(SEQUENCES, LENGTH), before, after, 0).bool()

    with sae.only_tokens(mask):
        out = sae(pad(x, before, after, 3.0))

    torch.testing.assert_close(out[:, before : before + LENGTH], sae(x), rtol=1e-4, atol=1e-5)
    assert not out[~mask].any()


def test_a_gap_in_a_sequence_is_as_if_the_token_were_not_there():
    sae = make_training_clvq(decoder="transformer")
    x = make_pairs(LENGTH)[0]
    kept = torch.tensor([True, True, False, True, False, False, True, True])

    with sae.only_tokens(kept[None]):
        out = sae(x[None])

    torch.testing.assert_close(out[0, kept], sae(x[None, kept])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_evaluation_sees_what_training_saw(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=1)
    rows = make_rows()
    lower, upper, valid = parts(rows)
    other = copy.deepcopy(sae)

    output = train_step(sae, rows)
    with other.only_tokens(valid.reshape(-1, LENGTH)):
        acts = other.encode(lower.reshape(-1, LENGTH, D_IN))
        out = other.decode(acts).reshape(-1, D_OUT)

    torch.testing.assert_close(output.sae_out[valid], out[valid], rtol=1e-4, atol=1e-4)
    assert torch.equal(output.feature_acts, acts.reshape(-1, N_CODES))
    torch.testing.assert_close(output.sae_in[valid], upper[valid])


def test_only_tokens_is_over_when_it_is_over():
    sae = make_training_clvq()
    x = make_pairs(LENGTH)[0]
    mask, other = torch.arange(LENGTH) < 3, torch.arange(LENGTH) < 5

    with sae.only_tokens(mask):
        assert sae.encode(x).sum() == 3
        with only_tokens(sae, other):
            assert sae.encode(x).sum() == 5
        with only_tokens(sae, None):
            assert sae.encode(x).sum() == LENGTH
        assert sae.encode(x).sum() == 3
    with pytest.raises(ValueError, match="d_in"), sae.only_tokens(mask):
        sae.encode(x[:, 1:])

    assert sae.encode(x).sum() == LENGTH


def test_only_tokens_leaves_sparse_autoencoders_alone():
    sae, x = make_bae(), make_pairs(LENGTH)[0]

    with only_tokens(sae, torch.zeros(LENGTH, dtype=torch.bool)):
        inside = sae.encode(x)

    assert torch.equal(inside, sae.encode(x))


def test_a_mask_of_another_shape_is_refused():
    sae = make_training_clvq()
    x = make_pairs(LENGTH)[0]

    with (
        sae.only_tokens(torch.ones(3, dtype=torch.bool)),
        pytest.raises(ValueError, match=r"one entry per token, \(8,\); got \(3,\)"),
    ):
        sae.encode(x)


# What a training batch may be


def test_a_batch_must_be_whole_sequences_for_the_transformer():
    rows = make_rows(BATCH)[:-1]

    with pytest.raises(ValueError, match=r"sequence_length = 8 tokens; got 63 tokens.*of 8"):
        train_step(make_training_clvq(decoder="transformer"), rows)
    assert train_step(make_training_clvq(decoder="token"), rows).loss.isfinite()


def test_without_a_sequence_length_every_token_is_on_its_own():
    sae = make_training_clvq(decoder="transformer", sequence_length=None, top_k=1)
    rows, other = make_rows(masked=False), copy.deepcopy(sae)
    order = torch.randperm(BATCH)

    output, shuffled = train_step(sae, rows), train_step(other, rows[order])

    torch.testing.assert_close(output.sae_out[order], shuffled.sae_out, rtol=1e-4, atol=1e-5)


def test_sequences_of_a_batch_do_not_see_each_other():
    sae = make_training_clvq(decoder="transformer", top_k=1)
    rows, other = make_rows(), copy.deepcopy(sae)
    order = torch.arange(BATCH).reshape(-1, LENGTH)[torch.randperm(SEQUENCES)].reshape(-1)

    output, shuffled = train_step(sae, rows), train_step(other, rows[order])

    torch.testing.assert_close(output.sae_out[order], shuffled.sae_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.loss, shuffled.loss)


@pytest.mark.parametrize("width", [D_IN, D_IN + D_OUT, D_IN + D_OUT + 2])
def test_rows_of_another_width_are_refused(width):
    with pytest.raises(ValueError, match=rf"d_in \+ d_out \+ 1 = 29\].*shape \(64, {width}\)"):
        train_step(make_training_clvq(), torch.randn(BATCH, width))
    with pytest.raises(ValueError, match=r"must be rows \[n"):
        TrainingCLVQVAE(clvq_cfg()).calibrate(torch.randn(BATCH, width))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("is_first_step", [True, False])
def test_one_hook_point_is_both_of_them(decoder, is_first_step):
    cfg = clvq_cfg(decoder=decoder, d_out=None)
    sae = TrainingCLVQVAE(cfg) if is_first_step else make_training_clvq(**vars(cfg))
    saes, x = [sae, copy.deepcopy(sae)], make_pairs(BATCH)[0]

    outputs = []
    for each, rows in zip(saes, (x, pack_rows(x, x)), strict=True):
        torch.manual_seed(1)
        outputs.append(train_step(each, rows))

    assert_same_step(outputs[0], outputs[1], torch.ones(BATCH, dtype=torch.bool), saes)
    assert torch.equal(outputs[0].sae_in, x)


def test_inputs_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"d_in = 16\]; got shape \(3, 12\)"):
        make_training_clvq().encode(torch.zeros(3, D_OUT))
