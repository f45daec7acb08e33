"""Which field is a budget, and which values are tried."""

from __future__ import annotations

from typing import Any

import pytest
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)

from bae_lens import TrainingBAEConfig
from bae_lens.budgets import SweepSettings
from bae_lens.budgets.options import budget_field, budgets_of

D: dict[str, Any] = {"d_in": 64, "d_sae": 40}


def test_the_field_and_its_default_values():
    bae = TrainingBAEConfig(**D)
    assert budget_field(bae) == "target_entropy"
    # Not a bit per dimension, which there are fewer latents than.
    assert budgets_of(bae, "target_entropy", None) == (2, 4, 8, 16, 32)
    wide = TrainingBAEConfig(d_in=64, d_sae=64)
    assert budgets_of(wide, "target_entropy", None)[-1] == 64
    for kind in (TopKTrainingSAEConfig, BatchTopKTrainingSAEConfig):
        cfg = kind(**D)
        assert budget_field(cfg) == "k"
        # No more than half of the latents; two at least.
        assert budgets_of(cfg, "k", None) == (4, 8, 16)
    assert budgets_of(TopKTrainingSAEConfig(d_in=4, d_sae=8), "k", None) == (4, 8)


@pytest.mark.parametrize("d_in", [1, 2, 64, 4096])
@pytest.mark.parametrize("d_sae", [1, 2, 3, 4, 5, 7, 8, 9, 100])
def test_the_default_values_of_tiny_dictionaries_are_ones_for_them(d_in, d_sae):
    bae = TrainingBAEConfig(d_in=d_in, d_sae=d_sae)
    bits = budgets_of(bae, "target_entropy", None)
    # They are two at least, apart, and no more than there is room for.
    assert SweepSettings(budgets=bits).budgets == bits
    assert budgets_of(bae, "target_entropy", bits) == bits
    topk = TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=1)
    if d_sae == 1:
        with pytest.raises(ValueError, match=r"d_sae is 1, and of one latent.* Raise d_sae"):
            budgets_of(topk, "k", None)
        return
    ks = budgets_of(topk, "k", None)
    assert SweepSettings(budgets=ks).budgets == ks
    assert budgets_of(topk, "k", ks) == ks


@pytest.mark.parametrize("kind", [StandardTrainingSAEConfig, JumpReLUTrainingSAEConfig])
def test_a_penalty_is_no_budget(kind):
    with pytest.raises(ValueError, match=r"'\w+' has no budget that could be swept.*smollm2-read"):
        budget_field(kind(**D))


@pytest.mark.parametrize("k", [1.5, 41])
def test_a_k_is_a_number_of_latents(k):
    with pytest.raises(ValueError, match=rf"whole numbers.*d_sae = 40 at most; got {k}"):
        budgets_of(TopKTrainingSAEConfig(**D), "k", (1, k))
    # That of BatchTopK is a mean.
    batch = BatchTopKTrainingSAEConfig(**D)
    assert budgets_of(batch, "k", (1, 1.5)) == (1, 1.5)
    with pytest.raises(ValueError, match=r"be numbers of latents, d_sae = 40 at most; got 41"):
        budgets_of(batch, "k", (1, 41))


def test_more_bits_than_all_latents_can_carry():
    bae = TrainingBAEConfig(**D)
    with pytest.raises(ValueError, match=r"target_entropy is 41 bits per token, but 40 bits"):
        budgets_of(bae, "target_entropy", (1, 41))
    assert budgets_of(TrainingBAEConfig(**D, n_levels=3), "target_entropy", (1, 80)) == (1, 80)


def test_budgets_are_sorted_and_each_is_tried_once():
    assert SweepSettings(budgets=[40, 8.5, 40]).budgets == (8.5, 40)


@pytest.mark.parametrize(
    "budgets", [[], [4], [4, 4], [4, 0], [4, -1], [4, float("nan")], [4, "x"], "4,8", 4, [4, True]]
)
def test_what_are_no_budgets(budgets):
    with pytest.raises(ValueError, match="budgets must be"):
        SweepSettings(budgets=budgets)


def test_budgets_that_are_about_the_same():
    with pytest.raises(ValueError, match=r"1.5 times the smallest.*got \[29, 20\]. Try 20 and 40"):
        SweepSettings(budgets=[29, 20])
    assert SweepSettings(budgets=[20, 30]).budgets == (20, 30)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_tokens", 0), ("minutes", 0), ("n_steps", 0), ("n_judged", -1), ("n_judged_tokens", 0)],
)
def test_settings_outside_their_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        SweepSettings(**{name: value})
