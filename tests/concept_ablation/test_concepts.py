"""Codes and latents as directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from bae_lens.concept_ablation import concepts as module
from bae_lens.concept_ablation.concepts import TokenSample, describe
from bae_lens.dictionaries import Clusters
from bae_lens.nn import squared_distances
from tests.concept_ablation.helpers import LOWER_HOOK, UPPER_HOOK, noise
from tests.helpers import (
    D_IN,
    D_OUT,
    D_SAE,
    N_CODES,
    between,
    fit_codes,
    make_bae,
    make_clvq,
    make_pairs,
    make_transcoder,
)

N = 300
PLACES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [500.0, 500.0]])


def sample_of(lower: Tensor, upper: Tensor | None = None, hook_out: str = UPPER_HOOK) -> Any:
    upper = lower if upper is None else upper
    return TokenSample((LOWER_HOOK, hook_out), lower, upper, lower.mean(0), upper.mean(0))


def pairs(d_out: int = D_OUT) -> TokenSample:
    return sample_of(*make_pairs(N, d_out=d_out))


def ids_of(*ids: int) -> Tensor:
    return torch.tensor([[i] for i in ids])


def cross_layer(sae: Any, hook_out: str | None = UPPER_HOOK) -> Any:
    return between(sae, LOWER_HOOK, hook_out)


def clvq(hook_out: str | None = UPPER_HOOK, d_out: int = D_OUT) -> Any:
    return fit_codes(cross_layer(make_clvq(d_out=d_out), hook_out), make_pairs(N)[0][:40])


# Codes


def test_a_cluster_is_its_centroid_and_above_it_the_mean_of_its_tokens():
    lower = torch.tensor([[1.0, 0], [-1, 2], [9, 1], [0, 9], [1, 12], [12, 0]])
    upper = torch.arange(18.0).reshape(6, 3)

    codes = describe(Clusters(PLACES, LOWER_HOOK), sample_of(lower, upper))

    assert codes.in_use.tolist() == [0, 1, 2]
    assert codes.active(lower, 1)[:, 0].tolist() == [0, 0, 1, 2, 2, 1]
    means = torch.stack([upper[[0, 1]].mean(0), upper[[2, 5]].mean(0), upper[[3, 4]].mean(0)])
    for at_upper, places, mean in (
        (False, PLACES[:3], lower.mean(0)),
        (True, means, upper.mean(0)),
    ):
        plain = codes.directions(ids_of(0, 1, 2), at_upper, center=None)
        centered = codes.directions(ids_of(0, 1, 2), at_upper, mean)
        torch.testing.assert_close(plain, places[:, None])
        torch.testing.assert_close(centered, (places - mean)[:, None])


def test_a_code_is_the_mean_of_its_tokens_below():
    sample, sae = pairs(), clvq()

    codes = describe(sae, sample)

    nearest = codes.active(sample.lower, 1)[:, 0]
    for code in codes.in_use[:3]:
        mean = sample.lower[nearest == code].mean(0)
        found = codes.directions(ids_of(int(code)), False, center=None)
        assert found is not None
        torch.testing.assert_close(found[0, 0], mean)


def test_a_code_without_tokens_is_never_chosen():
    codes = describe(Clusters(PLACES, LOWER_HOOK), sample_of(PLACES[:3] + 0.1))

    # The last place has no token, however near these are.
    assert codes.active(PLACES[3:] + 1, 1).item() != 3
    assert codes.active(PLACES, 9).shape == (4, 3)
    assert 3 not in codes.active(PLACES, 9)


def test_the_nearest_codes_come_in_order():
    codes = describe(Clusters(PLACES, LOWER_HOOK), sample_of(PLACES))

    assert codes.active(torch.tensor([[4.0, 1.0], [1.0, 8.0]]), 3).tolist() == [
        [0, 1, 2],
        [2, 0, 1],
    ]


def test_codes_are_found_a_part_at_a_time(monkeypatch):
    sample = pairs()
    whole = describe(clvq(), sample).active(sample.lower, 2)
    monkeypatch.setattr(module, "_CHUNK", 7)

    assert torch.equal(describe(clvq(), sample).active(sample.lower, 2), whole)


def test_a_tokens_code_is_the_clvq_vaes_own():
    sample, sae = pairs(), clvq()

    codes = describe(sae, sample)

    own = sae.encode(sample.lower)
    own = own.to_dense() if own.layout != torch.strided else own
    assert torch.equal(codes.active(sample.lower, 1)[:, 0], own.argmax(1))
    assert codes.in_use.tolist() == (own != 0).any(0).nonzero()[:, 0].tolist()
    z = sae.encoder(sae.process_sae_in(sample.lower))
    second = squared_distances(z, sae.codebook).topk(2, largest=False).indices[:, 1]
    assert (codes.active(sample.lower, 2)[:, 1] == second).float().mean() > 0.99
    assert codes.name == "clvq_vae"


def test_at_the_upper_hook_a_clvq_vaes_code_is_what_it_decodes_to():
    sample, sae = pairs(), clvq()

    codes = describe(sae, sample)
    ids = codes.in_use[:, None]

    upper = codes.directions(ids, at_upper=True, center=None)
    torch.testing.assert_close(upper, sae.W_dec.detach()[ids])
    centered = codes.directions(ids, True, sample.upper_mean)
    torch.testing.assert_close(centered, sae.W_dec.detach()[ids] - sample.upper_mean)
    lower = codes.directions(ids, at_upper=False, center=None)
    assert lower is not None
    is_first = codes.active(sample.lower, 1)[:, 0] == ids[0, 0]
    torch.testing.assert_close(lower[0, 0], sample.lower[is_first].mean(0))


@pytest.mark.parametrize(
    "sae",
    [
        pytest.param(lambda: clvq(None, D_IN), id="one hook"),
        pytest.param(lambda: clvq("blocks.5.hook_resid_post"), id="another hook"),
        pytest.param(lambda: Clusters.fit(make_pairs(N)[0], N_CODES, LOWER_HOOK), id="clusters"),
    ],
)
def test_otherwise_it_is_the_mean_of_its_tokens_there(sae):
    sample = pairs()

    codes = describe(sae(), sample)

    own = codes.active(sample.lower, 1)[:, 0]
    upper = codes.directions(codes.in_use[:, None], at_upper=True, center=None)
    assert upper is not None
    for i, code in enumerate(codes.in_use):
        torch.testing.assert_close(upper[i, 0], sample.upper[own == code].mean(0))


def test_clusters_that_were_planted_are_found():
    places = 20 * noise(6, D_IN)
    x = places.repeat(30, 1) + 0.1 * noise(180, D_IN, seed=1)

    clusters = Clusters.fit(x, 6, LOWER_HOOK, seed=2)

    distances = torch.cdist(clusters.centroids, places)
    assert sorted(distances.argmin(1).tolist()) == [*range(6)]
    assert distances.amin(1).max() < 0.3
    assert clusters.centroids.dtype == torch.float32
    assert torch.equal(clusters.centroids, Clusters.fit(x, 6, LOWER_HOOK, seed=2).centroids)
    assert Clusters.fit(x.bfloat16(), 6, LOWER_HOOK).centroids.shape == (6, D_IN)


# Latents


def sae_of(**weights: Tensor) -> Any:
    d_in, d_sae = weights["W_enc"].shape
    sae = between(StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae)), LOWER_HOOK, None)
    with torch.no_grad():
        for name, weight in weights.items():
            getattr(sae, name).copy_(weight)
    return sae


def test_the_most_active_latent_writes_most():
    # Latent 2 is on by half as much as latent 0, but writes four times as far.
    decoder = torch.diag(torch.tensor([1.0, 1.0, 4.0]))
    sae = sae_of(W_enc=torch.eye(3), W_dec=decoder)
    x = torch.tensor([[2.0, 0.0, 1.0], [9.0, 0.0, 1.0], [-1.0, 3.0, -1.0], [-1.0, -1.0, -1.0]])

    latents = describe(sae, sample_of(x))

    assert latents.active(x, 2).tolist() == [[2, 0], [0, 2], [1, -1], [-1, -1]]
    assert latents.active(x, 9).shape == (4, 3)
    assert latents.in_use.tolist() == [0, 1, 2]
    assert latents.name == "standard"
    assert describe(sae, sample_of(x), name="mine").name == "mine"


def test_decoder_norms_that_are_in_the_activations_count_once():
    sae = TopKSAE(TopKSAEConfig(d_in=3, d_sae=3, k=2, rescale_acts_by_decoder_norm=True))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
        sae.W_dec.copy_(torch.diag(torch.tensor([1.0, 1.0, 4.0])))
    # Activations are 3, 0 and 4 × 0.5 = 2.
    x = torch.tensor([[3.0, 0.0, 0.5]])

    latents = describe(between(sae, LOWER_HOOK, None), sample_of(x))

    assert latents.active(x, 1).item() == 0
    directions = latents.directions(ids_of(2), False, None)
    torch.testing.assert_close(directions, torch.tensor([[[0.0, 0.0, 1.0]]]))


def test_of_two_bits_that_are_on_the_rarer_comes_first():
    sae = between(make_bae(), LOWER_HOOK, None)
    sample = pairs(D_IN)

    latents = describe(sae, sample)

    on = sae.encode(sample.lower) != 0
    rates = on.float().mean(0)
    assert torch.equal(latents.in_use, rates.nonzero()[:, 0])
    for token, ids in zip(on, latents.active(sample.lower, D_SAE), strict=True):
        ids = ids[ids >= 0]
        assert token[ids].all()
        # A bit that is always on says nothing.
        assert len(ids) == (token & (rates < 1)).sum()
        assert rates[ids].diff().min() >= 0
    assert latents.active(sample.lower, 1).unique().numel() > 1


def test_of_latents_of_levels_the_one_that_writes_most_comes_first():
    sae = between(make_bae(n_levels=3), LOWER_HOOK, None)
    sample = pairs(D_IN)

    latents = describe(sae, sample)

    with torch.no_grad():
        acts, norms = sae.encode(sample.lower), sae.W_dec.norm(dim=1)
    for own, ids in zip(acts * norms, latents.active(sample.lower, 5), strict=True):
        ids = ids[ids >= 0]
        torch.testing.assert_close(own[ids], own.topk(len(ids)).values)
        assert (own[ids] > 0).all()


def test_a_latent_is_a_row_of_the_decoder_or_a_column_of_the_encoder():
    encoder, decoder = noise(D_IN, 20), noise(20, D_IN, seed=1)
    sae, sample, ids = sae_of(W_enc=encoder, W_dec=decoder), pairs(), torch.tensor([[3, -1]])

    rows, columns = (describe(sae, sample, vectors=v) for v in ("decoder", "encoder"))

    for latents, expected in ((rows, decoder[3]), (columns, encoder[:, 3])):
        for center in (None, noise(1, D_IN)[0]):
            own = latents.directions(ids, at_upper=False, center=center)
            assert own is not None
            torch.testing.assert_close(own[0, 0], expected)
            assert (own[0, 1] == 0).all()
        # It says nothing of a hook point that it does not write to.
        assert latents.directions(ids, at_upper=True, center=None) is None


def test_where_both_hooks_are_one_a_latent_points_there_too():
    sae = sae_of(W_enc=noise(D_IN, 20), W_dec=noise(20, D_IN, seed=1))
    lower = make_pairs(N)[0]

    latents = describe(sae, sample_of(lower, hook_out=LOWER_HOOK))

    own = latents.directions(ids_of(3), at_upper=True, center=None)
    torch.testing.assert_close(own, sae.W_dec.detach()[[3]][None])


@pytest.mark.parametrize("vectors", ["decoder", "encoder"])
def test_a_transcoders_latent_reads_with_its_encoder_and_writes_with_its_decoder(vectors):
    sae = cross_layer(make_transcoder(d_out=D_OUT))

    latents = describe(sae, pairs(), vectors=vectors)

    lower = latents.directions(ids_of(5), at_upper=False, center=noise(1, D_IN)[0])
    upper = latents.directions(ids_of(5), at_upper=True, center=noise(1, D_OUT)[0])
    torch.testing.assert_close(lower, sae.W_enc.detach()[:, 5][None, None])
    torch.testing.assert_close(upper, sae.W_dec.detach()[5][None, None])


def test_latents_that_never_fire_are_not_in_use():
    encoder = noise(D_IN, 20)
    sae = sae_of(W_enc=encoder, W_dec=noise(20, D_IN, seed=1))
    with torch.no_grad():
        sae.b_enc[[4, 9]] = -1e4

    latents = describe(sae, pairs())

    assert set(range(20)) - set(latents.in_use.tolist()) == {4, 9}


# Refused


def test_activations_of_another_width_are_refused():
    for dictionary in (Clusters(noise(4, 3), LOWER_HOOK), between(make_bae(d_in=3), LOWER_HOOK)):
        with pytest.raises(ValueError, match=f"of width 3; those at its hook point have {D_IN}"):
            describe(dictionary, pairs())


def test_encoder_vectors_have_to_be_there():
    sae = sae_of(W_enc=noise(D_IN, 20), W_dec=noise(20, D_IN, seed=1))
    del sae.W_enc
    with pytest.raises(ValueError, match=r"standard has no encoder vectors .* vectors='decoder'"):
        describe(sae, pairs(), vectors="encoder")


def test_clusters_need_as_many_activations():
    with pytest.raises(ValueError, match="5 clusters need at least 5 activations; got 4"):
        Clusters.fit(noise(4, 2), 5, LOWER_HOOK)
