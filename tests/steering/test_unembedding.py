"""A latent's row through the final norm and the unembedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bae_lens.steering import LogitEffects, TokenEffect, logit_effects
from bae_lens.steering.unembedding import _final_norm
from tests.attach.test_attach import hook_out_of
from tests.helpers import D_IN, D_SAE, between, make_bae, make_bridge, make_model, make_transcoder


def matrix(model, sae, vocab: int = 44) -> Tensor:
    effects = logit_effects(model, sae, k=vocab)
    found = torch.empty(len(effects), vocab)
    for row, effect in zip(found, effects, strict=True):
        for token, _, value in effect.top:
            row[token] = value
    return found


def random_norm(model) -> None:
    with torch.no_grad():
        norm = model.ln_final
        norm = getattr(norm, "original_component", norm)
        for name, parameter in norm.named_parameters():
            if name in ("w", "weight"):
                parameter.copy_(torch.linspace(0.5, 2, D_IN))


@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_are_the_gradient_of_centered_logits_at_a_normalized_activation(kind, tmp_path: Path):
    model = make_model() if kind == "hooked" else make_bridge(tmp_path)
    random_norm(model)
    sae = make_bae()
    sae.cfg.metadata.hook_name = hook_out_of(model)
    rows = (sae.scale[:, None] * sae.W_dec).detach()

    def logits(resid: Tensor) -> Tensor:
        normal = model.ln_final(resid[None, None])[0, 0] @ model.W_U
        return normal - normal.mean()

    # Of two activations of length √d, ± a row's part that has mean 0 and is orthogonal to it, the
    # difference is linear in the row.
    expected = []
    base = torch.ones(D_IN)
    base[1::2] = -1
    for row in rows:
        jacobian = torch.autograd.functional.jacobian(logits, base)
        assert isinstance(jacobian, Tensor)
        # The norm's length changes along the base only.
        radial = (row @ base) / D_IN * (logits(base) - logits(torch.zeros(D_IN)))
        expected.append((jacobian @ row + radial).detach())

    torch.testing.assert_close(matrix(model, sae), torch.stack(expected), atol=1e-3, rtol=1e-3)


def test_the_same_of_a_model_whose_norm_is_folded():
    model, folded = make_model(), make_model()
    random_norm(model)
    random_norm(folded)
    folded.load_and_process_state_dict(
        folded.state_dict(), fold_ln=True, center_writing_weights=False, center_unembed=False
    )
    sae = between(make_bae(), hook_out=None)
    torch.testing.assert_close(matrix(model, sae), matrix(folded, sae), atol=1e-4, rtol=1e-4)


def test_top_and_bottom_have_their_tokens_and_are_in_order():
    model, sae = make_model(), between(make_bae(), hook_out=None)
    [effects] = logit_effects(model, sae, [5], k=4)
    row = matrix(model, sae)[5]
    assert effects.latent == 5
    assert [t.token for t in effects.top] == row.topk(4).indices.tolist()
    assert [t.token for t in effects.bottom] == row.topk(4, largest=False).indices.tolist()
    assert model.tokenizer is not None
    assert effects.top[0].string.strip() == model.tokenizer.decode([effects.top[0].token])
    assert row.mean().abs() < 1e-4


@pytest.mark.parametrize("d", [4, 7])
def test_the_final_norm_as_it_behaves(d: int):
    weight = torch.linspace(0.5, 2, d)
    layer, rms = torch.nn.LayerNorm(d), torch.nn.RMSNorm(d)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(3)
        rms.weight.copy_(weight)
        for norm, centers in ((layer, True), (rms, False), (torch.nn.Identity(), False)):
            found, found_centers = _final_norm(norm, torch.empty(d, 5))
            assert found_centers == centers
            if not isinstance(norm, torch.nn.Identity):
                torch.testing.assert_close(found, weight, atol=1e-4, rtol=1e-4)


def test_what_has_none_is_said():
    model, sae = make_model(), between(make_bae(), hook_out=None)
    with pytest.raises(ValueError, match=f"no latent {D_SAE}"):
        logit_effects(model, sae, [D_SAE])
    for latents in (torch.tensor([[1, 2]]), np.array([[1, 2]]), [torch.tensor([1, 2])]):
        with pytest.raises(ValueError, match=r"no latent .*\[1, 2\]"):
            logit_effects(model, sae, latents)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"by their indices, as \[3, 17\]; got 1"):
        logit_effects(model, sae, torch.tensor(1))  # pyright: ignore[reportArgumentType]
    of_array = logit_effects(model, sae, torch.tensor([3, 5]))  # pyright: ignore[reportArgumentType]
    assert [effects.latent for effects in of_array] == [3, 5]
    with pytest.raises(ValueError, match="width 12"):
        logit_effects(model, between(make_transcoder(d_out=12)))
    with pytest.raises(ValueError, match="not of the residual stream"):
        logit_effects(model, between(make_bae(), "blocks.0.attn.hook_z", None))
    with pytest.raises(ValueError, match="k must be"):
        logit_effects(model, sae, k=0)


def test_what_is_taken_away_does_the_opposite():
    a, b, c = (TokenEffect(k, f"w{k}", value) for k, value in enumerate((3.0, 1.0, -2.0)))
    own = LogitEffects(7, (a, b), (c, b))
    assert own.opposite == LogitEffects(
        7,
        (c._replace(value=2.0), b._replace(value=-1.0)),
        (a._replace(value=-3.0), b._replace(value=-1.0)),
    )
    assert own.opposite.opposite == own
    model, sae = make_model(), make_bae()
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    [effects] = logit_effects(model, sae, [5], k=4)
    with torch.no_grad():
        sae.W_dec[5] *= -1
    [negated] = logit_effects(model, sae, [5], k=4)
    assert [t.token for t in negated.top] == [t.token for t in effects.opposite.top]
    assert [t.value for t in negated.bottom] == pytest.approx(
        [t.value for t in effects.opposite.bottom]
    )
