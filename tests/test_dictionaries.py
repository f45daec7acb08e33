"""One adapter for every kind of dictionary, against what each of them does by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.transcoder import SkipTranscoder
from sae_lens.training.activation_scaler import ActivationScaler

from bae_lens.architectures.code_kind import ONE_BIT, ONE_HOT, REAL_VALUED, CodeKind
from bae_lens.attach import attached
from bae_lens.dictionaries import Clusters, Dictionary, is_one_bit, is_one_hot
from bae_lens.evals import run_evals, summarize_code
from bae_lens.examples.coder import Coder
from bae_lens.export import write_saebench
from bae_lens.fingerprint import weights_sha256
from bae_lens.steering import ablate_latents, logit_effects, steer
from tests.helpers import (
    D_IN,
    D_OUT,
    D_SAE,
    HOOK,
    HOOK_OUT,
    N_CODES,
    between,
    make_activations,
    make_bae,
    make_clvq,
    make_model,
    make_temporal,
    make_training_bae,
    make_training_clvq,
    make_transcoder,
)

N_TOPK = 24
LEVELS = CodeKind(n_values=3)
SAES: dict[str, tuple[Any, CodeKind, int]] = {
    "bae": (make_bae, ONE_BIT, D_SAE),
    "training bae": (make_training_bae, ONE_BIT, D_SAE),
    "bae of levels": (lambda: make_bae(n_levels=3), LEVELS, D_SAE),
    "training bae of levels": (lambda: make_training_bae(n_levels=3), LEVELS, D_SAE),
    "clvq_vae": (lambda: make_clvq(d_out=D_OUT), ONE_HOT, N_CODES),
    "training clvq_vae": (lambda: make_training_clvq(d_out=D_OUT), ONE_HOT, N_CODES),
    "topk": (lambda: make_topk(), REAL_VALUED, N_TOPK),
    "transcoder": (lambda: make_transcoder(d_out=D_OUT), REAL_VALUED, D_SAE),
}
PLACES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])


def make_topk() -> TopKSAE:
    torch.manual_seed(0)
    return TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=N_TOPK, k=3))


def dictionary_of(name: str, **kwargs: Any) -> Dictionary:
    return Dictionary(between(SAES[name][0]()), **kwargs)


@pytest.mark.parametrize("name", SAES)
def test_what_an_sae_is(name):
    dictionary = dictionary_of(name)
    _, kind, n_latents = SAES[name]

    assert (dictionary.kind, dictionary.n_latents) == (kind, n_latents)
    assert dictionary.hook_names == (HOOK, HOOK_OUT)
    if kind != LEVELS:
        assert dictionary.level_values is None
    assert dictionary.writes_elsewhere
    assert dictionary.d_in == D_IN
    assert dictionary.d_out == (D_OUT if "vq" in name or name == "transcoder" else D_IN)
    sae: Any = dictionary.source
    assert dictionary.name == sae.cfg.architecture()
    assert dictionary.weights_sha256 == weights_sha256(sae)
    assert is_one_bit(sae) == (kind.n_values == 1)
    assert is_one_hot(sae) == (kind is ONE_HOT)
    assert (dictionary.flipped is None) == (name not in ("bae", "bae of levels"))


@pytest.mark.parametrize("name", SAES)
def test_it_encodes_and_decodes_as_the_sae_does(name):
    x, dictionary = make_activations(33), dictionary_of(name)
    sae: Any = dictionary.source

    acts = dictionary.encode(x)

    own = sae.encode(x)
    own = own if own.layout == torch.strided else own.to_dense()
    assert torch.equal(acts, own)
    assert not acts.requires_grad
    torch.testing.assert_close(dictionary.decode(acts), sae.decode(own))
    torch.testing.assert_close(dictionary.decoder_vectors, sae.W_dec)


@pytest.mark.parametrize("name", ["bae", "topk", "transcoder"])
def test_inputs_are_scaled_and_outputs_are_scaled_back(name):
    x, plain = make_activations(33), dictionary_of(name)
    dictionary = dictionary_of(name, scaler=ActivationScaler(scaling_factor=3.0))

    acts = dictionary.encode(x)

    assert torch.equal(acts, plain.encode(3 * x))
    torch.testing.assert_close(dictionary.decode(acts), plain.decode(acts) / 3)


@pytest.mark.parametrize("name", ["clvq_vae", "training clvq_vae"])
def test_the_nearest_code_is_the_one_that_fires(name):
    x, dictionary = make_activations(33), dictionary_of(name)

    distances = dictionary.code_distances(x)

    sae: Any = dictionary.source
    assert torch.equal(distances.argmin(-1), sae.code_indices(x))
    assert torch.equal(distances.argmin(-1), dictionary.encode(x).argmax(-1))
    assert dictionary.codebook.shape == (N_CODES, D_IN)
    some = torch.tensor([7, 2])
    among = dictionary.code_distances(x, some)
    torch.testing.assert_close(among, distances[:, some], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", [*SAES, "clusters"])
def test_activations_that_are_no_numbers_have_no_code(name, bad):
    """A comparison with NaN is False: a BAE's code of it is 0, and the nearest of all codes the first one."""
    dictionary = Dictionary(Clusters(PLACES, HOOK)) if name == "clusters" else dictionary_of(name)
    x = torch.ones(2, 3, dictionary.d_in)
    x[1, 2, 0] = bad
    match = f"Activations at '{HOOK}' are NaN or infinite at 1 of 6 tokens, in float32"
    with pytest.raises(ValueError, match=match):
        dictionary.encode(x)
    with pytest.raises(ValueError, match=match):
        dictionary.reconstruct(x)
    if dictionary.kind.is_one_hot:
        with pytest.raises(ValueError, match=match):
            dictionary.code_distances(x)
    valid = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=match):
        dictionary.reconstruct(x, valid)
    # What stands at a token that does not count is nobody's concern.
    valid[1, 2] = False
    acts, outputs = dictionary.reconstruct(x, valid)
    assert acts[valid].isfinite().all()
    assert outputs[valid].isfinite().all()


@pytest.mark.parametrize("name", SAES)
def test_activations_that_its_type_does_not_hold_have_no_code(name):
    sae = between(SAES[name][0]()).to(torch.float16)
    sae.cfg.dtype = "float16"
    x = torch.ones(3, Dictionary(sae).d_in)
    x[1, 0] = 1e5
    with pytest.raises(ValueError, match=r"at 1 of 3 tokens, in float16.* ends at 65,504"):
        Dictionary(sae).encode(x)


@pytest.mark.parametrize("name", [name for name in SAES if "bae" in name or "clvq" in name])
def test_an_sae_by_itself_does_not_hide_what_is_no_number(name):
    """As one whose activations are products: in the place of an activation, the model's loss has to show it."""
    sae = SAES[name][0]()
    x = make_activations(6).reshape(2, 3, D_IN)
    expected = sae(x)
    assert expected.isfinite().all()
    x[1, 2, 3] = torch.nan
    found = sae(x)
    assert found[1, 2].isnan().all()
    assert torch.equal(found[0], expected[0])
    # Nor what its type does not hold.
    x[1, 2, 3] = 1e5
    sae = sae.to(torch.float16)
    sae.cfg.dtype = "float16"
    assert sae(x)[1, 2].isnan().all()


def test_nor_of_one_head():
    sae = make_bae(reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae.turn_on_forward_pass_hook_z_reshaping()
    x = torch.ones(2, 3, 2, D_IN // 2)
    x[1, 2, 0, 1] = torch.nan
    found = sae(x)
    assert found.shape == x.shape
    assert found[1, 2].isnan().all()
    assert found[0].isfinite().all()


def test_tokens_that_do_not_count_have_no_share_of_a_batchs_k():
    """In training BatchTopK keeps the strongest of a batch, of which a long BOS would be all."""
    kind, config = get_sae_training_class("batchtopk")
    sae = between(kind(config(d_in=D_IN, d_sae=D_SAE, k=5)))  # pyright: ignore[reportCallIssue]
    x = make_activations(24).reshape(4, 6, D_IN)
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:, 0] = False
    expected, outputs = Dictionary(sae).reconstruct(x, valid)
    x[:, 0] *= 300
    acts, again = Dictionary(sae).reconstruct(x, valid)
    assert torch.equal(acts, expected)
    assert torch.equal(again, outputs)
    assert (acts[valid] != 0).sum() == 5 * valid.sum()
    assert (acts[:, 0] == 0).all()
    torch.testing.assert_close(acts[valid], sae.encode(x[valid]).detach())


def test_latents_have_no_codes_to_be_near_to():
    with pytest.raises(ValueError, match="A topk has latents and no codes"):
        dictionary_of("topk").code_distances(make_activations(3))


def test_clusters_are_a_one_hot_code():
    dictionary = Dictionary(Clusters(PLACES, HOOK))
    x = torch.tensor([[9.0, 1.0], [1.0, 2.0]])

    assert dictionary.encode(x).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert dictionary.decode(dictionary.encode(x)).tolist() == [[10, 0], [0, 0]]
    assert dictionary.code_distances(x)[0].tolist() == pytest.approx([82, 2, 162], rel=1e-4)
    assert dictionary.kind is ONE_HOT
    assert (dictionary.name, dictionary.hook_names) == ("k-means", (HOOK, HOOK))
    assert (dictionary.n_latents, dictionary.d_in, dictionary.d_out) == (3, 2, 2)
    assert dictionary.head_indices == (None, None)
    assert dictionary.weights_sha256 == weights_sha256({"centroids": PLACES})
    assert dictionary.output_is_decoded_code


@pytest.mark.parametrize(("hook_out", "written"), [(None, 1), (HOOK_OUT, None)])
def test_one_head_is_written_where_it_is_read(hook_out, written):
    sae = between(make_bae(), hook_out=hook_out)
    sae.cfg.metadata.hook_head_index = 1

    assert Dictionary(sae).head_indices == (1, written)


@pytest.mark.parametrize(
    ("make", "is_all", "has_skip"),
    [
        (lambda: make_transcoder(d_out=D_OUT), True, False),
        (lambda: make_transcoder(SkipTranscoder), False, True),
        (lambda: make_clvq(decoder="transformer"), True, False),
        (lambda: make_clvq(decoder="transformer", decoder_memory="encoder"), False, False),
    ],
    ids=["transcoder", "skip transcoder", "codes", "leak"],
)
def test_whether_the_decoded_code_is_all_of_the_output(make, is_all, has_skip):
    dictionary = Dictionary(between(make()))

    assert dictionary.output_is_decoded_code == is_all
    assert dictionary.has_skip == has_skip


@pytest.mark.parametrize("decoder", ["token", "transformer"])
def test_whether_sequences_are_decoded_together(decoder):
    assert Dictionary(between(make_clvq(decoder=decoder))).decodes_sequences == (
        decoder == "transformer"
    )
    assert not dictionary_of("bae").decodes_sequences


def test_decoder_norms_that_are_in_the_activations_are_not_counted_again():
    sae = TopKSAE(TopKSAEConfig(d_in=3, d_sae=3, k=2, rescale_acts_by_decoder_norm=True))
    with torch.no_grad():
        sae.W_dec.copy_(torch.diag(torch.tensor([1.0, 1.0, 4.0])))

    assert torch.equal(Dictionary(between(sae)).decoder_vectors, torch.eye(3))


def test_encoder_vectors_are_columns_where_there_are_any():
    sae = between(StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)))
    dictionary = Dictionary(sae)

    vectors = dictionary.encoder_vectors
    assert vectors is not None
    assert torch.equal(vectors[3], sae.W_enc[:, 3])
    assert Dictionary(Clusters(PLACES, HOOK)).encoder_vectors is None


@pytest.mark.parametrize(("name", "depends"), [("batchtopk", True), ("topk", False)])
def test_whether_what_fires_depends_on_the_batch(name, depends):
    kind, config = get_sae_training_class(name)
    sae = between(kind(config(d_in=D_IN, d_sae=D_SAE, k=3)))  # pyright: ignore[reportCallIssue]

    assert Dictionary(sae).depends_on_batch == depends


def test_a_code_of_levels_is_neither_of_bits_nor_real_valued():
    class Levels(StandardSAE):
        code_kind = CodeKind(n_values=7)

    sae = between(Levels(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE)))

    kind = Dictionary(sae).kind
    assert (kind.is_one_bit, kind.is_one_hot, kind.is_real_valued) == (False, False, False)


def test_a_hook_point_has_to_be_named():
    with pytest.raises(ValueError, match="names no hook point"):
        _ = Dictionary(make_bae()).hook_names


@pytest.mark.parametrize("name", ["bae of levels", "training bae of levels"])
def test_values_of_levels_are_those_of_the_code(name):
    dictionary = dictionary_of(name)

    values = dictionary.level_values

    assert values is not None
    assert not values.requires_grad
    for column, own in zip(dictionary.encode(make_activations(500)).T, values, strict=True):
        assert {*column.unique().tolist()} <= {0.0, *own.tolist()}


def collect(sae: Any) -> None:
    """Its ``Coder`` has a check of its own."""
    Coder(sae)


@pytest.mark.parametrize(
    "use",
    [
        Dictionary,
        collect,
        lambda sae: attached(make_model(), sae).__enter__(),
        lambda sae: steer(make_model(), sae, {0: 1.0}, raw=True).__enter__(),
        lambda sae: ablate_latents(make_model(), sae, [0]).__enter__(),
        lambda sae: logit_effects(make_model(), sae),
        lambda sae: run_evals(sae, None, make_model()),  # pyright: ignore[reportArgumentType]
        lambda sae: summarize_code(sae, [make_activations(8)]),
        lambda sae: write_saebench("nowhere", sae),
    ],
)
def test_one_that_cannot_be_read_token_by_token_is_refused_whatever_it_is_for(use):
    with pytest.raises(ValueError, match="What a temporal SAE fires at a token"):
        use(make_temporal())
