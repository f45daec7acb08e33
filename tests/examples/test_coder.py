"""What fires, against each dictionary's own encode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.activation_scaler import ActivationScaler

from bae_lens.concept_ablation import Clusters
from bae_lens.examples import coder as coder_module
from bae_lens.examples.coder import Coder
from tests.helpers import (
    D_IN,
    HOOK,
    N_CODES,
    between,
    make_activations,
    make_bae,
    make_clvq,
    make_training_bae,
    make_training_clvq,
    make_transcoder,
)

LATENTS = {
    "bae": make_bae,
    "training bae": make_training_bae,
    "bae with feedback": lambda: make_bae(feedback_steps=2),
    "bae of levels": lambda: make_bae(n_levels=3, feedback_steps=1),
    "transcoder": make_transcoder,
    "topk": lambda: TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=24, k=3)),
}
CODES = {
    "clvq_vae": lambda: make_clvq(d_out=D_IN),
    "training clvq_vae": lambda: make_training_clvq(d_out=D_IN),
    "vq_vae": lambda: make_clvq(d_out=None),
}


def make_coder(dictionary: Any, **kwargs: Any) -> Coder:
    return Coder(between(dictionary, hook_out=None), **kwargs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("batchtopk", {}), ("matryoshka_batchtopk", {"matryoshka_widths": [8, 24]})],
)
def test_a_code_that_depends_on_the_batch_is_refused(kind, options):
    made, config = get_sae_training_class(kind)
    chosen: dict[str, Any] = {"d_in": D_IN, "d_sae": 24, "k": 3, **options}
    sae = made(config(**chosen))
    with pytest.raises(ValueError, match="Convert it: save_inference_model"):
        make_coder(sae)


@pytest.mark.parametrize("kind", LATENTS)
def test_latents_fire_where_their_code_is_not_zero(kind, monkeypatch):
    monkeypatch.setattr(coder_module, "_MAX_DENSE", 100)  # in parts
    sae, x = LATENTS[kind](), make_activations(33)

    found = make_coder(sae).firings(x).toarray()

    acts = sae.encode(x).detach()
    acts = acts if acts.layout == torch.strided else acts.to_dense()
    is_bit = "bae" in kind and kind != "bae of levels"
    expected = (acts != 0).float() if is_bit else acts
    torch.testing.assert_close(torch.from_numpy(found), expected.float())
    assert (found != 0).any()
    assert make_coder(sae).strength == ("surprise" if is_bit else "activation")


def test_margins_are_those_of_the_pre_activations_that_decide():
    sae, x = make_bae(feedback_steps=2), make_activations(40)
    with torch.no_grad():
        encoded = sae.encoded(sae.process_sae_in(x), sae.b_enc)

    code, margins = make_coder(sae).firings_with_margins(x)

    assert margins is not None
    torch.testing.assert_close(torch.from_numpy(margins), encoded.pre.abs().half())
    assert ((encoded.pre > 0).numpy() == (code.toarray() != 0)).all()


def test_a_code_of_levels_has_strengths_and_no_margins():
    _, margins = make_coder(make_bae(n_levels=3)).firings_with_margins(make_activations(5))

    assert margins is None


@pytest.mark.parametrize("kind", CODES)
def test_a_code_is_as_strong_as_it_is_near(kind):
    sae, x = CODES[kind](), make_activations(33)

    found = make_coder(sae).firings(x)

    assert found.indices.tolist() == sae.code_indices(x).tolist()
    z = sae.encoder(sae.process_sae_in(x))
    nearest = sae.codebook[sae.code_indices(x)]
    assert found.data == pytest.approx(-(z - nearest).square().sum(-1).detach().numpy(), rel=1e-4)
    assert make_coder(sae).n_latents == N_CODES


def test_clusters_at_their_own_centroids():
    centroids = make_activations(6)
    coder = Coder(Clusters(centroids, HOOK))

    found = coder.firings(centroids)

    # A distance of nought is an entry all the same.
    assert found.nnz == 6
    assert found.indices.tolist() == list(range(6))
    assert found.data == pytest.approx(np.zeros(6), abs=1e-4)
    assert (coder.name, coder.strength, coder.hook_name) == ("k-means", "nearness", HOOK)


def test_activations_are_scaled_as_in_training():
    sae, x = make_training_bae(), make_activations(33)

    scaled = make_coder(sae, scaler=ActivationScaler(scaling_factor=3.0)).firings(x)

    assert (scaled != make_coder(sae).firings(3 * x)).nnz == 0
    assert (scaled != make_coder(sae).firings(x)).nnz > 0


def test_errors():
    with pytest.raises(ValueError, match="names no hook point"):
        Coder(make_bae())
    with pytest.raises(ValueError, match=f"width {D_IN}; those at .* have 5"):
        make_coder(make_bae()).firings(torch.zeros(2, 5))
    for make in (make_transcoder, make_bae):
        with pytest.raises(ValueError, match=r"Activations at .* are NaN or infinite at 2 of 2"):
            make_coder(make()).firings(torch.full((2, D_IN), torch.nan))
    sae = make_transcoder()
    with torch.no_grad():
        sae.b_enc[0] = torch.inf
    with pytest.raises(ValueError, match=r"code has NaN or infinite values.*weights"):
        make_coder(sae).firings(torch.zeros(2, D_IN))
