"""SAEs that scale each token by itself, of which SAELens can decode a code once only, against plain references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.registry import get_sae_class
from torch import Tensor

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.dictionaries import Dictionary
from bae_lens.evals import MagnitudeQuantizer, summarize_code
from bae_lens.evals.outliers import OutlierScores
from bae_lens.evals.summarize import Reconstructed
from tests.helpers import D_IN, D_SAE, HOOK, known, make_activations, make_bae

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "topk": {"k": 5},
    "jumprelu": {},
    "gated": {},
    "matching_pursuit": {},
    "abstopk": {"k": 5},
    "transcoder": {"d_out": D_IN, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D_IN, "apply_b_dec_to_input": False},
}
SCALES = ["none", "layer_norm", "constant_norm_rescale"]
N_BITS = 3


def make(name: str, normalize_activations: str) -> SAE[Any]:
    kind, config = get_sae_class(name)
    fields = {"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": normalize_activations}
    sae = kind(config(**fields, **ARCHITECTURES[name]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def activations(n: int = 101) -> Tensor:
    """Of very different lengths and means."""
    return make_activations(n) * torch.linspace(0.2, 5, n)[:, None]


def explained(x: Tensor, outputs: Tensor) -> float:
    return 1 - ((x - outputs).square().sum() / (x - x.mean(0)).square().sum()).item()


def decoded(sae: SAE[Any], x: Tensor, code: Tensor) -> Tensor:
    """Right after an encode of the same tokens, as SAELens has it."""
    sae.encode(x)
    return sae.decode(code)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantized_magnitudes_are_decoded_as_the_own_ones(name, scale):
    sae, x = make(name, scale), activations()

    given = name == "skip_transcoder"
    batches = [Reconstructed(x, x, sae(x).detach())] if given else [x]
    _, variance, quantized = summarize_code(sae, batches, magnitude_bits=N_BITS)

    with torch.no_grad():
        code, output = sae.encode(x), sae(x)
        quantizer = MagnitudeQuantizer.fit(code, sae.W_dec, N_BITS)
        loss = decoded(sae, x, quantizer.quantize(code)) - decoded(sae, x, code)
    assert variance == pytest.approx(explained(x, output), rel=1e-5)
    assert known(quantized) == pytest.approx(explained(x, output + loss), rel=1e-5)
    assert known(quantized) != variance


@pytest.mark.parametrize("scale", SCALES)
def test_where_outliers_are_left_out_the_others_keep_their_own_scales(scale):
    sae, x = make("topk", scale), activations()
    outliers = OutlierTokens({HOOK: x.norm(dim=1).median().item()}, multiple=1.5)
    is_kept = ~outliers.mask_between((HOOK, HOOK), x, x)
    assert 10 < is_kept.sum() < 90

    found = summarize_code(
        sae, [x], magnitude_bits=N_BITS, outlier_scores=OutlierScores(outliers, (HOOK, HOOK))
    )

    expected = summarize_code(sae, [x[is_kept]], magnitude_bits=N_BITS)
    assert found[1:] == pytest.approx(expected[1:])
    assert found.code.n_tokens == is_kept.sum()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["standard", "transcoder", "bae"])
def test_a_dictionary_decodes_any_code_of_some_tokens_and_more_than_once(name, scale):
    sae = make_bae(normalize_activations=scale) if name == "bae" else make(name, scale)
    x, dictionary = activations(), Dictionary(sae)

    acts, scales = dictionary.encode_with_scales(x)
    dictionary.encode(x.flip(0))

    some = torch.arange(len(x)) % 3 == 0
    for code in (acts, 0.5 * acts):
        assert torch.equal(dictionary.decode(code, scales), decoded(sae, x, code))
        expected = decoded(sae, x[some], code[some])
        assert torch.equal(dictionary.decode(code[some], scales[some]), expected)
    dictionary.encode(x)
    assert not {"ln_mu", "ln_std", "x_norm_coeff"} & set(vars(sae))


@pytest.mark.parametrize("scale", SCALES[1:])
def test_without_the_scales_of_its_tokens_a_code_is_not_decoded(scale):
    dictionary = Dictionary(make("standard", scale))
    with pytest.raises(ValueError, match=f"'{scale}'.* Give decode the scales"):
        dictionary.decode(dictionary.encode(activations()))


@pytest.mark.parametrize("scale", SCALES)
def test_tokens_that_do_not_count_have_no_share_of_a_batch(scale):
    torch.manual_seed(0)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, normalize_activations=scale)
    )
    x = activations(40).reshape(4, 10, D_IN)
    valid = torch.arange(10).repeat(4, 1) > 0

    acts, outputs = Dictionary(sae).reconstruct(x, valid)

    with torch.no_grad():
        own = sae.encode(x[valid])
        expected = sae.decode(own)
    assert torch.equal(acts[valid], own if own.layout == torch.strided else own.to_dense())
    torch.testing.assert_close(outputs[valid], expected)
    assert not acts[~valid].any()
