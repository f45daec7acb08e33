"""``attached`` leaves attention sinks alone, where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bae_lens.activations.outlier_tokens import METADATA_FIELD, OutlierTokens, reference_norm
from bae_lens.architectures.clvq_vae import only_tokens
from bae_lens.attach import attached
from tests.attach.test_attach import (
    SPECIAL,
    Model,
    crossing,
    hook_of,
    hook_out_of,
    sae_for,
)
from tests.helpers import make_bridge, make_model, make_tokens

SINK = (1, 4)  # text and position


@pytest.fixture(params=["hooked", "bridge"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    return make_model() if request.param == "hooked" else make_bridge(tmp_path)


@pytest.fixture
def tokens() -> Tensor:
    return make_tokens(3, 9)


def lengthen(acts: Tensor, hook: Any) -> Tensor:
    acts = acts.clone()
    acts[SINK] *= 100
    return acts


def into(model: Model) -> str:
    """Where the residual stream enters block 0: what is long there is long after it."""
    return "blocks.0.hook_in" if "hook_out" in hook_of(model) else "blocks.0.hook_resid_pre"


@torch.no_grad()
def norms(model: Model, tokens: Tensor) -> dict[str, float]:
    _, cache = model.run_with_cache(tokens)
    names = (hook_of(model), hook_out_of(model))
    return {name: reference_norm(cache[name][:, 1:].flatten(0, 1)) for name in names}


@torch.no_grad()
def by_hand(model: Model, sae: Any, tokens: Tensor, alone: Tensor) -> Tensor:
    """Logits with a sink in the text, and the SAE at all but some positions."""
    read: dict[str, Tensor] = {}
    names = (hook_of(model), sae.cfg.metadata.hook_name_out or hook_of(model))

    def note(acts: Tensor, hook: Any) -> None:
        read["acts"] = acts

    def write(acts: Tensor, hook: Any) -> Tensor:
        with only_tokens(sae, ~alone):
            return torch.where(alone[..., None], acts, sae(read["acts"]))

    hooks = [(into(model), lengthen), (names[0], note), (names[1], write)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


@pytest.mark.parametrize("kind", ["bae", "transcoder", "transformer"])
@pytest.mark.parametrize("source", ["metadata", "given", "multiple"])
def test_a_sink_passes_by_the_sae(model, tokens, kind, source):
    sae = sae_for(model) if kind == "bae" else crossing(model, kind)
    reference = norms(model, tokens)
    if source == "given":
        exclude: Any = OutlierTokens(reference)
    else:
        sae.cfg.metadata[METADATA_FIELD] = reference
        exclude = True if source == "metadata" else 12.0
    alone = torch.isin(tokens, torch.tensor(SPECIAL))
    without = by_hand(model, sae, tokens, alone)
    alone[SINK] = True
    expected = by_hand(model, sae, tokens, alone)

    with torch.no_grad():
        with attached(model, sae, exclude_outlier_tokens=exclude):
            logits = model.run_with_hooks(tokens, fwd_hooks=[(into(model), lengthen)])
        with attached(model, sae):
            plain = model.run_with_hooks(tokens, fwd_hooks=[(into(model), lengthen)])

    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(plain, without)
    assert (logits - plain).abs().max() > 1e-2


def test_without_special_tokens_outliers_are_still_told(model, tokens):
    sae = sae_for(model)
    alone = torch.zeros_like(tokens, dtype=torch.bool)
    alone[SINK] = True
    expected = by_hand(model, sae, tokens, alone)
    exclude = OutlierTokens(norms(model, tokens))

    with (
        torch.no_grad(),
        attached(model, sae, exclude_special_tokens=False, exclude_outlier_tokens=exclude),
    ):
        logits = model.run_with_hooks(tokens, fwd_hooks=[(into(model), lengthen)])

    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (True, "without reference norms"),
        (5, "without reference norms"),
        (OutlierTokens({"elsewhere": 1.0}), "no reference norm for 'blocks"),
        (0, "exclude_outlier_tokens must be a positive number"),
        (-1.0, "exclude_outlier_tokens must be"),
        ("yes", "exclude_outlier_tokens must be"),
    ],
)
def test_outliers_that_cannot_be_told(model, exclude, message):
    sae = sae_for(model)
    with (
        pytest.raises(ValueError, match=message),
        attached(model, sae, exclude_outlier_tokens=exclude),
    ):
        pytest.fail("the body ran")
