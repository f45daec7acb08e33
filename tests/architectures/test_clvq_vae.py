"""The CLVQ-VAE's maths: quantizer, decoder, bottleneck, and the matrices that it shows.

What both classes inherit from clvq_vae_base.py is tested here and in test_clvq_vae_*.py, on the two of them. What SAELens asks
of an architecture is in tests/conformance; the parts alone are in nn/test_quantize.py,
nn/test_decoders.py and test_codebook_init.py.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.architectures.clvq_vae_parts import (
    DECODERS,
    SEQUENCES,
    assert_same_state,
    decoder_inputs,
    distances,
    encoded,
    input_of,
    one_hot,
    parts,
    state,
)
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    LENGTH,
    N_CODES,
    grad_of,
    make_clvq,
    make_pairs,
    make_rows,
    make_training_clvq,
    metric,
    train_step,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


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
