"""The CLVQ-VAE's maths: quantizer, losses, mask, bottleneck, calibration, metrics.

What both classes inherit from clvq_vae_base.py is tested here, on the two of them. What SAELens asks
of an architecture is in tests/conformance; the parts alone are in nn/test_quantize.py,
nn/test_decoders.py and test_codebook_init.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import TrainingCLVQVAE
from bae_lens.architectures.clvq_vae import only_tokens
from bae_lens.architectures.codebook_init import CODEBOOK_INITS, initial_codebook
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    LENGTH,
    N_CODES,
    batches_of,
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
    trainer_cfg,
)

DECODERS = ["token", "transformer"]
JUNK = [float("nan"), float("inf"), 1e6, 0.0]
SEQUENCES = BATCH // LENGTH


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def state(sae: TrainingCLVQVAE) -> dict[str, Tensor]:
    return copy.deepcopy(dict(sae.state_dict()))


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def parts(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return unpack_rows(rows, D_IN, D_OUT)


@contextmanager
def decoder_inputs(sae: Any) -> Iterator[list[Tensor]]:
    """The vectors that the decoder is given, one entry a call, tokens flat."""
    seen: list[Tensor] = []
    handle = sae.decoder.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def encoded(sae: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return sae.encoder(sae.process_sae_in(x))


def input_of(sae: Any, z: Tensor) -> Tensor:
    """The input that the encoder turns into ``z``, by fixed-point iteration."""
    with torch.no_grad():
        x = z.clone()
        for _ in range(300):
            x = x + 0.7 * (z - sae.encoder(x)) / (1 - sae.encoder.alpha)
        x = x / sae.input_scale + sae.input_mean
    torch.testing.assert_close(encoded(sae, x), z, rtol=0, atol=1e-4)
    return x


def distances(z: Tensor, codebook: Tensor) -> Tensor:
    return (z[:, None] - codebook).norm(dim=-1)


def one_hot(indices: Tensor, n: int = N_CODES) -> Tensor:
    return torch.eye(n)[indices]


# The decoder


def test_a_decoder_of_another_shape():
    cfg = {"decoder_width": 20, "decoder_heads": 4, "decoder_mlp_width": 9, "decoder_layers": 1}
    sae = make_training_clvq(decoder="transformer", **cfg)

    shapes = {name: tuple(p.shape) for name, p in sae.decoder.named_parameters()}
    assert shapes["embed.weight"] == (20, D_IN)
    assert shapes["head.weight"] == (D_OUT, 20)
    assert (9, 20) in shapes.values()
    assert {name.split(".")[1] for name in shapes if name.startswith("blocks")} == {"0"}
    assert sae(torch.randn(2, 3, D_IN)).shape == (2, 3, D_OUT)


# The quantizer inside a step


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("top_k", [1, 5])
def test_quantized_rows_equal_the_snapshots_rows(decoder, top_k):
    sae = make_training_clvq(decoder=decoder, top_k=top_k, temperature=2.0)
    rows, snapshot = make_rows(), sae.codebook.clone()
    z = encoded(sae, parts(rows)[0])

    with decoder_inputs(sae) as seen:
        train_step(sae, rows)

    valid = parts(rows)[2]
    assert (sae.codebook != snapshot).any(1).all()
    is_row = (seen[0][:, None] == snapshot).all(-1)[valid]
    assert (is_row.sum(1) == 1).all()
    nearest = distances(z, snapshot)[valid].argmin(1)
    assert torch.equal(is_row.int().argmax(1), nearest) == (top_k == 1)


@pytest.mark.parametrize("decoder", DECODERS)
def test_straight_through_gradient_is_the_identity(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=4)
    tensors = []
    sae.encoder.register_forward_hook(lambda module, inputs, out: tensors.append(out))
    sae.decoder.register_forward_pre_hook(lambda module, inputs: tensors.append(inputs[0]))

    output = train_step(sae, make_rows(), commitment=0.0)
    z, codes = tensors
    for tensor in tensors:
        tensor.retain_grad()
    output.loss.backward()

    assert not torch.equal(z, codes.reshape(z.shape))
    assert torch.equal(grad_of(z), grad_of(codes).reshape(z.shape))
    assert grad_of(z).abs().sum() > 0
    assert all(grad_of(p).abs().sum() > 0 for p in sae.encoder.parameters())


def test_the_commitment_pulls_z_to_its_code_and_reaches_no_decoder():
    sae = make_training_clvq(top_k=1)
    rows, snapshot = make_rows(), sae.codebook.clone()
    valid, seen = parts(rows)[2], []
    sae.encoder.register_forward_hook(lambda module, inputs, out: seen.append(out))

    output = train_step(sae, rows, commitment=0.7)
    (z,) = seen
    z.retain_grad()
    output.losses["commitment_loss"].backward()

    away = z.detach() - snapshot[distances(z.detach(), snapshot).argmin(1)]
    expected = torch.where(valid[:, None], 2 * 0.7 * away / valid.sum(), 0)
    torch.testing.assert_close(grad_of(z), expected)
    assert all(p.grad is None for p in sae.decoder.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
def test_eval_never_changes_the_codebook(decoder):
    sae = make_training_clvq(decoder=decoder, revive_after=1).eval()
    x, rows, before = make_pairs(BATCH)[0], make_rows(), state(sae)

    sae.decode(sae.encode(x))
    sae(x)
    sae.code_indices(x)
    with torch.no_grad():
        train_step(sae, rows)
    output = train_step(sae, rows)
    output.loss.backward()

    assert_same_state(state(sae), before)
    assert metric(output, "drawn_off_nearest") == 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_outside_a_training_step_nothing_is_drawn_or_updated(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=5, temperature=100.0).train()
    x, before = make_pairs(BATCH)[0], state(sae)

    outs = [sae(x) for _ in range(2)]

    assert torch.equal(*outs)
    assert torch.equal(outs[0], sae.eval()(x))
    assert torch.equal(sae.decode(sae.encode(x)), outs[0])
    assert_same_state(state(sae), before)


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
@pytest.mark.parametrize("shape", [(BATCH,), (4, 16)])
def test_brute_force_nearest_equals_code_indices_and_one_hots(make, shape):
    sae = make()
    x = make_pairs(BATCH)[0].reshape(*shape, D_IN)
    z = encoded(sae, x).double()
    nearest = torch.stack([(z - e.double()).square().sum(-1) for e in sae.codebook], -1).argmin(-1)

    acts = sae.encode(x)

    assert len(nearest.unique()) > N_CODES / 2
    assert torch.equal(sae.code_indices(x), nearest)
    assert torch.equal(acts, one_hot(nearest) * sae.scale)


def test_equal_codes_are_the_same_code_everywhere():
    sae = make_training_clvq(top_k=1)
    sae.codebook.copy_(sae.codebook[torch.arange(N_CODES) % 4])
    x, rows = make_pairs(BATCH)[0], make_rows(masked=False)

    indices = sae.code_indices(x)

    assert torch.equal(sae.encode(x).argmax(-1), indices)
    assert torch.equal(train_step(sae, rows).feature_acts.argmax(-1), indices)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("n_codes", [1, 3])
def test_one_code_and_top_k_above_the_number_of_codes(decoder, n_codes):
    sae = make_training_clvq(decoder=decoder, d_sae=n_codes, top_k=50, temperature=1e6)
    rows = make_rows()
    snapshot, valid = sae.codebook.clone(), parts(rows)[2]

    with decoder_inputs(sae) as seen:
        output = train_step(sae, rows)
    output.loss.backward()

    drawn = distances(seen[0], snapshot).argmin(1)[valid]
    assert set(drawn.tolist()) == set(range(n_codes))
    assert output.loss.isfinite()
    assert output.feature_acts.shape == (BATCH, n_codes)
    assert metric(output, "perplexity") <= n_codes + 1e-4
    assert metric(output, "drawn_off_nearest") == 0 or n_codes > 1
    if n_codes == 1:
        assert metric(output, "perplexity") == pytest.approx(1)
        assert torch.equal(sae.encode(make_pairs(5)[0]), torch.ones(5, 1))


@pytest.mark.parametrize("decoder", DECODERS)
def test_ema_decay_0_gives_batch_means(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=1, ema_decay=0.0, revive_after=None)
    rows, before = make_rows(), sae.codebook.clone()
    lower, _, valid = parts(rows)
    z = encoded(sae, lower)[valid]
    nearest = distances(z, before).argmin(1)

    train_step(sae, rows)

    used = nearest.unique()
    unused = [k for k in range(N_CODES) if k not in used]
    means = torch.stack([z[nearest == k].mean(0) for k in used])
    torch.testing.assert_close(sae.codebook[used], means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.codebook[unused], before[unused])


def test_what_was_drawn_moves_codes_and_what_is_nearest_keeps_them_alive():
    sae = make_training_clvq(top_k=N_CODES, temperature=1e6, ema_decay=0.0, max_revived=0)
    rows = make_rows()
    snapshot, valid = sae.codebook.clone(), parts(rows)[2]
    z = encoded(sae, parts(rows)[0])[valid]
    sae.quantizer.steps_unused.fill_(3)

    with decoder_inputs(sae) as seen:
        train_step(sae, rows)

    drawn = distances(seen[0], snapshot).argmin(1)[valid]
    nearest = torch.bincount(distances(z, snapshot).argmin(1), minlength=N_CODES)
    assert not torch.equal(torch.bincount(drawn, minlength=N_CODES), nearest)
    means = torch.stack([z[drawn == k].mean(0) for k in range(N_CODES)])
    torch.testing.assert_close(sae.codebook, means, rtol=1e-3, atol=1e-3)
    assert torch.equal(sae.quantizer.steps_unused == 0, nearest > 0)
    torch.testing.assert_close(sae.quantizer.nearest_count, nearest.float())


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


# The bottleneck is one


def moved_inside_cells(sae: Any, z: Tensor, how: str) -> Tensor:
    """Vectors far from ``z`` that still have the same nearest codes."""
    codebook = sae.codebook
    distance = distances(z, codebook)
    own = codebook[distance.argmin(1)]
    if how == "towards_the_code":
        return z + 0.8 * (own - z)
    # Nine tenths of the way to the wall, in any direction; not farther than the code is.
    direction = torch.nn.functional.normalize(torch.randn_like(z))
    excess = distance.square() - distance.square().amin(1, keepdim=True)
    closing = ((codebook - own[:, None]) @ direction[..., None]).squeeze(-1)
    wall = torch.where(closing > 1e-6, excess / (2 * closing), math.inf).amin(1)
    return z + 0.9 * wall.minimum(distance.amin(1))[:, None] * direction


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("how", ["towards_the_code", "anywhere"])
def test_inputs_moved_inside_their_voronoi_cells_give_equal_outputs(decoder, how):
    sae = make_training_clvq(decoder=decoder)
    x = make_pairs(BATCH)[0]
    z = encoded(sae, x)

    moved = input_of(sae, moved_inside_cells(sae, z, how))

    distance = distances(z, sae.codebook).amin(1).mean()
    assert (encoded(sae, moved) - z).norm(dim=1).mean() > 0.2 * distance
    shape = (SEQUENCES, LENGTH, D_IN)
    assert torch.equal(sae.code_indices(moved), sae.code_indices(x))
    assert torch.equal(sae(moved.reshape(shape)), sae(x.reshape(shape)))
    assert torch.equal(sae(moved), sae(x))


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_gradient_passes_the_bottleneck(decoder):
    sae = make_training_clvq(decoder=decoder)
    x = make_pairs(BATCH)[0].requires_grad_()

    (grad,) = torch.autograd.grad(sae(x).sum(), x)

    assert not grad.any()


def with_another_code(x: Tensor, sae: Any, at: int) -> Tensor:
    """The inputs with each sequence's token ``at`` replaced by one of another code."""
    indices = sae.code_indices(x)
    changed = x.clone()
    for i, row in enumerate(indices):
        other = (indices != row[at]).nonzero()[0]
        changed[i, at] = x[other[0], other[1]]
    return changed


@pytest.mark.parametrize("through", ["forward", "decode"])
def test_the_transformer_hears_a_changed_code_from_there_on_and_not_before(through):
    sae = make_training_clvq(decoder="transformer")
    x = make_pairs(BATCH)[0].reshape(SEQUENCES, LENGTH, D_IN)

    def run(x):
        return sae(x) if through == "forward" else sae.decode(sae.encode(x))

    out = run(x)

    for t in range(LENGTH):
        difference = (run(with_another_code(x, sae, t)) - out).abs().amax(-1)
        assert difference[:, :t].sum() < 1e-4
        assert difference[:, t:].min() > 1e-6


def test_the_token_decoder_hears_a_changed_code_there_and_nowhere_else():
    sae = make_training_clvq(decoder="token")
    x = make_pairs(BATCH)[0].reshape(SEQUENCES, LENGTH, D_IN)
    out = sae(x)

    for t in range(LENGTH):
        difference = (sae(with_another_code(x, sae, t)) - out).abs().amax(-1)
        assert difference[:, t].min() > 1e-3
        assert difference[:, torch.arange(LENGTH) != t].max() < 1e-6


@pytest.mark.parametrize("decoder", DECODERS)
def test_in_a_training_step_the_output_is_a_function_of_the_drawn_codes(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=4, temperature=1.0)
    rows = make_rows()
    valid, snapshot = parts(rows)[2], sae.codebook.clone()
    other = copy.deepcopy(sae)

    with decoder_inputs(sae) as seen:
        output = train_step(sae, rows)

    drawn = one_hot(distances(seen[0], snapshot).argmin(1)) * valid[:, None]
    out = other.decode(drawn.reshape(-1, LENGTH, N_CODES)).reshape(-1, D_OUT)
    torch.testing.assert_close(output.sae_out[valid], out[valid], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
def test_the_releases_decoder_leaks_what_is_inside_a_cell(make):
    sae = make(decoder_memory="encoder")
    x = make_pairs(BATCH)[0]
    moved = input_of(sae, moved_inside_cells(sae, encoded(sae, x), "towards_the_code"))

    assert torch.equal(sae.code_indices(moved), sae.code_indices(x))
    assert (sae(moved) - sae(x)).abs().amax(1).min() > 1e-3
    with pytest.raises(ValueError, match="not a function of the codes"):
        sae.decode(sae.encode(x))


def test_the_releases_decoder_trains_and_its_leak_is_causal():
    sae = make_training_clvq(decoder_memory="encoder")
    output = train_step(sae, make_rows())
    output.loss.backward()
    assert all(grad_of(p).abs().sum() > 0 for p in sae.parameters())

    x = make_pairs(BATCH)[0].reshape(SEQUENCES, LENGTH, D_IN)
    changed = x.clone()
    changed[:, 5] += 0.01
    difference = (sae(changed) - sae(x)).abs().amax((0, 2))
    assert difference[:5].max() < 1e-6
    assert difference[5] > 1e-4


# W_dec, b_dec, W_enc, b_enc


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
@pytest.mark.parametrize("decoder", DECODERS)
def test_W_dec_is_what_each_code_decodes_to_alone(make, decoder):
    sae = make(decoder=decoder)
    scaled = torch.diag(sae.scale)

    assert sae.W_dec.shape == (N_CODES, D_OUT)
    torch.testing.assert_close(sae.scale[:, None] * sae.W_dec, sae.decode(scaled))
    torch.testing.assert_close(sae.decode(scaled[:, None])[:, 0], sae.decode(scaled))


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
def test_codes_times_W_dec_are_the_token_decoders_output(make):
    sae = make(decoder="token")
    acts = sae.encode(make_pairs(BATCH)[0].reshape(4, 16, D_IN))

    assert torch.equal(sae.b_dec, torch.zeros(D_OUT))
    torch.testing.assert_close(acts @ sae.W_dec + sae.b_dec, sae.decode(acts))


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
def test_the_largest_of_W_enc_and_b_enc_is_the_nearest_code(make):
    sae = make()
    x = make_pairs(300)[0]

    scores = encoded(sae, x) @ sae.W_enc + sae.b_enc

    assert sae.W_enc.shape == (D_IN, N_CODES)
    assert torch.equal(scores.argmax(1), sae.code_indices(x))


@pytest.mark.parametrize("make", [make_training_clvq, make_clvq])
@pytest.mark.parametrize("decoder", DECODERS)
def test_tokens_without_a_code_decode_to_zero_and_are_not_attended_to(make, decoder):
    sae = make(decoder=decoder)
    acts = sae.encode(make_pairs(BATCH)[0].reshape(SEQUENCES, LENGTH, D_IN))
    acts[:, [0, 3]] = 0
    kept = [1, 2, 4, 5, 6, 7]

    out = sae.decode(acts)

    assert not sae.decode(torch.zeros(5, N_CODES)).any()
    assert not sae.decode(torch.zeros(2, 3, N_CODES)).any()
    assert not out[:, [0, 3]].any()
    torch.testing.assert_close(out[:, kept], sae.decode(acts[:, kept]), rtol=1e-4, atol=1e-5)


def test_sparse_codes_decode_as_dense_ones():
    sae = make_training_clvq()
    acts = sae.encode(make_pairs(BATCH)[0].reshape(SEQUENCES, LENGTH, D_IN))

    assert torch.equal(sae.decode(acts.to_sparse()), sae.decode(acts))


# Calibration


@pytest.mark.parametrize("d_out", [D_OUT, D_IN, 3])
def test_calibration_centers_and_scales_both_hook_points(d_out):
    sae = TrainingCLVQVAE(clvq_cfg(d_out=d_out))
    lower, upper = make_pairs(BATCH, d_out=d_out, offset=5.0)
    lower, valid = 40 * lower, make_valid(BATCH)

    sae.calibrate(pack_rows(lower, upper, valid))

    x = sae.process_sae_in(lower[valid])
    torch.testing.assert_close(x.mean(0), torch.zeros(D_IN), rtol=0, atol=1e-4)
    assert x.norm(dim=1).mean().item() == pytest.approx(math.sqrt(D_IN), rel=1e-4)
    target = (upper[valid] - sae.target_mean) / sae.target_scale
    torch.testing.assert_close(target.mean(0), torch.zeros(d_out), rtol=0, atol=1e-4)
    assert target.square().mean().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_calibration_takes_the_codebook_from_activations(method):
    sae = TrainingCLVQVAE(clvq_cfg(codebook_init=method, codebook_init_seed=5))
    rows = make_rows()
    lower, _, valid = parts(rows)

    sae.calibrate(rows)

    z = encoded(sae, lower[valid])
    codebook, counts = initial_codebook(z, N_CODES, method, seed=5)
    torch.testing.assert_close(sae.codebook, codebook)
    torch.testing.assert_close(sae.quantizer.ema_count, counts)
    torch.testing.assert_close(sae.quantizer.ema_sum, codebook * counts[:, None])
    distance = distances(z, codebook).amin(1).square().mean()
    torch.testing.assert_close(sae.quantizer.nearest_distance, distance, rtol=1e-4, atol=0)
    if method == "random":
        assert distances(sae.codebook, z).amin(1).max() < 1e-5


@pytest.mark.parametrize("method", ["kmeans++", "scaled_spherical_kmeans++"])
def test_kmeans_begins_nearer_to_the_activations_than_random(method):
    def first_commitment(method, seed):
        cfg = clvq_cfg(codebook_init=method, codebook_init_seed=seed, top_k=1)
        sae = TrainingCLVQVAE(cfg)
        return train_step(sae, planted_rows(1024, seed=seed)[0]).losses["commitment_loss"].item()

    for seed in range(3):
        assert first_commitment(method, seed) < 0.8 * first_commitment("random", seed)


@pytest.mark.parametrize("batch_size", [None, 8, 4 * BATCH])
def test_counts_are_those_of_a_training_batch(batch_size):
    sae = TrainingCLVQVAE(clvq_cfg())
    rows = make_rows()
    share = parts(rows)[2].float().mean().item()

    sae.calibrate(rows, batch_size)

    expected = share * (batch_size or BATCH)
    assert sae.quantizer.ema_count.sum().item() == pytest.approx(expected, rel=1e-4)


def test_calibration_is_done_once_by_the_first_step_unless_it_was_before():
    rows = make_rows()
    sae = TrainingCLVQVAE(clvq_cfg())
    by_hand = copy.deepcopy(sae)
    by_hand.calibrate(rows)
    units = [by_hand.input_mean.clone(), by_hand.target_scale.clone()]

    torch.manual_seed(1)
    train_step(sae, rows)
    torch.manual_seed(1)
    train_step(by_hand, rows)

    assert_same_state(state(sae), state(by_hand))
    train_step(sae, make_rows(seed=5))
    assert torch.equal(sae.input_mean, units[0])
    assert torch.equal(sae.target_scale, units[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, D_IN])
def test_calibration_refuses_values_that_are_not_finite(bad, column):
    rows = make_rows(masked=False)
    rows[7, column] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        train_step(TrainingCLVQVAE(clvq_cfg()), rows)


def test_calibration_refuses_fewer_distinct_tokens_than_codes():
    rows = make_rows(N_CODES - 1, masked=False).repeat(8, 1)

    with pytest.raises(ValueError, match=r"10 codes need .* have 9"):
        train_step(TrainingCLVQVAE(clvq_cfg()), rows)


def test_a_calibration_that_failed_is_done_by_the_next_step():
    sae = TrainingCLVQVAE(clvq_cfg(top_k=1))
    fresh = copy.deepcopy(sae)
    with pytest.raises(ValueError, match="10 codes need"):
        train_step(sae, make_rows(N_CODES - 2, masked=False).repeat(4, 1))

    for each in (sae, fresh):
        torch.manual_seed(0)
        train_step(each, make_rows())

    assert_same_state(state(sae), state(fresh))


@pytest.mark.parametrize("n_valid", [0, 1])
def test_calibration_refuses_fewer_than_two_tokens(n_valid):
    rows = make_rows()
    rows[:, -1] = torch.arange(BATCH) < n_valid

    with pytest.raises(ValueError, match="at least two"):
        train_step(TrainingCLVQVAE(clvq_cfg(d_sae=1)), rows)


def test_hook_points_that_are_constant_are_left_at_their_scale():
    sae = TrainingCLVQVAE(clvq_cfg(d_sae=1, codebook_init="kmeans++"))

    output = train_step(sae, pack_rows(torch.full((16, D_IN), 3.0), torch.full((16, D_OUT), 2.0)))
    output.loss.backward()

    assert sae.input_scale == sae.target_scale == 1
    assert output.loss.isfinite()
    assert all(buffer.isfinite().all() for buffer in sae.buffers())


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


# Planted data: which of K means a token has is all that both hook points share


def planted_rows(
    n: int, seed: int = 0, noise: float = 0.3, d_out: int = D_OUT
) -> tuple[Tensor, Tensor]:
    """Rows and the latent of each token, in unequal shares; the higher layer is its mean exactly."""
    fixed = torch.Generator().manual_seed(11)
    means = [2 * torch.randn(N_CODES, d, generator=fixed) for d in (D_IN, d_out)]
    generator = torch.Generator().manual_seed(seed)
    share = torch.arange(2.0, N_CODES + 2)
    latent = torch.multinomial(share, n, replacement=True, generator=generator)
    lower = means[0][latent] + noise * torch.randn(n, D_IN, generator=generator)
    return pack_rows(lower, means[1][latent]), latent


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
