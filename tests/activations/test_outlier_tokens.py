"""Which tokens are outliers, and by what reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bae_lens import offline as demo
from bae_lens.activations.outlier_tokens import (
    DEFAULT_MULTIPLE,
    OutlierTokens,
    multiple_of,
    reference_norm,
    saved_outlier_tokens,
)
from tests.helpers import HOOK, HOOK_OUT, make_bae

E = torch.eye(4)


def test_a_token_is_an_outlier_above_the_multiple_and_not_at_it():
    outliers = OutlierTokens({HOOK: 2.0}, multiple=10)
    activations = torch.stack([E[0] * x for x in (1.0, 20.0, 20.1, -500.0)])
    assert outliers.mask(activations, HOOK).tolist() == [False, False, True, True]
    assert outliers.mask(activations.reshape(2, 2, 4), HOOK).shape == (2, 2)
    assert outliers.with_multiple(300).mask(activations, HOOK).tolist() == [False] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_of_float32_in_any_dtype(dtype):
    """A norm of 26,000 has a square that float16 cannot hold."""
    activations = torch.full((1, 4), 13_000.0, dtype=dtype)
    assert OutlierTokens({HOOK: 168.0}).mask(activations, HOOK).tolist() == [True]
    assert math.isclose(reference_norm(activations), 26_000, rel_tol=1e-2)


def test_what_is_not_finite_is_a_fault_and_no_outlier():
    activations = torch.tensor([[math.inf, 0], [math.nan, 0], [1e4, 0]])
    assert OutlierTokens({HOOK: 1.0}).mask(activations, HOOK).tolist() == [False, False, True]


def test_of_two_hook_points_one_is_enough():
    outliers = OutlierTokens({HOOK: 1.0, HOOK_OUT: 100.0})
    lower, upper = torch.tensor([[1.0], [50.0], [1.0]]), torch.tensor([[100.0], [100.0], [2000.0]])
    assert outliers.any_mask((HOOK, lower), (HOOK_OUT, upper)).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="no reference norm for 'elsewhere'"):
        outliers.mask(lower, "elsewhere")


def test_the_reference_is_the_median_which_sinks_do_not_move():
    activations = torch.ones(100, 4)
    activations[:10] *= 1e4
    assert reference_norm(activations) == 2
    with pytest.raises(ValueError, match="0 finite ones"):
        reference_norm(torch.empty(0, 4))
    with pytest.raises(ValueError, match="a median of 0"):
        reference_norm(torch.zeros(9, 4))


def test_the_reference_in_the_metadata():
    sae = make_bae()
    assert saved_outlier_tokens(sae, [HOOK]) is None
    sae.cfg.metadata.outlier_reference_norms = {HOOK: 3}
    assert saved_outlier_tokens(sae, [HOOK], 5) == OutlierTokens({HOOK: 3.0}, 5)
    assert saved_outlier_tokens(sae, [HOOK, HOOK_OUT]) is None
    for wrong in ({HOOK: "3"}, {HOOK: math.nan}, [3], {HOOK: True}):
        sae.cfg.metadata.outlier_reference_norms = wrong
        with pytest.raises(ValueError, match="outlier_reference_norms must have a positive number"):
            saved_outlier_tokens(sae, [HOOK])


def test_the_option():
    assert multiple_of(True) == DEFAULT_MULTIPLE
    assert multiple_of(False) is None
    assert multiple_of(7) == 7
    assert multiple_of(OutlierTokens({}, 3)) == 3
    for wrong in (0, -1, math.nan, math.inf, "ten", None):
        with pytest.raises(ValueError, match="exclude_outlier_tokens must be"):
            multiple_of(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="multiple must be a positive number; got 0"):
        OutlierTokens({}, 0)
    with pytest.raises(ValueError, match="reference norm at"):
        OutlierTokens({HOOK: math.inf})


@pytest.mark.real_model
def test_that_a_first_word_of_a_real_model_is_a_sink_and_no_other_is():
    """SmolLM2 makes a sink of the first word of news, which the bundled reviews never begin with."""
    model: Any = demo.load_model(demo.MODEL_NAME)
    text = "Microsoft said on Monday that its new system would be cheaper than the old one."
    hook = "blocks.15.hook_resid_post"
    with torch.no_grad():
        _, cache = model.run_with_cache(model.to_tokens(text), names_filter=hook)
    activations = cache[hook][0, 1:]  # without BOS
    outliers = OutlierTokens({hook: reference_norm(activations)})
    assert outliers.mask(activations, hook).nonzero().flatten().tolist() == [0]
    norms = activations.norm(dim=-1)
    assert norms[0] > 80 * norms.median()
    assert norms[1:].max() < 2 * norms.median()
