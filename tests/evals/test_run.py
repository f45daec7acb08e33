"""run_evals: SAELens' own groups to the last bit, and what stands beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE, ActivationsStore, HookedSAETransformer, TopKSAE, TopKSAEConfig
from sae_lens.evals import EvalConfig, get_eval_everything_config
from sae_lens.evals import run_evals as sae_lens_run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.util import get_special_token_ids

from bae_lens.evals import mean_ablation_ce, run_evals, summarise_code
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    make_activations,
    make_bae,
    make_model,
    make_text,
    make_training_bae,
)

HOOK_Z = "blocks.0.attn.hook_z"
N_BATCHES, PROMPTS = 2, 4
ADDED = ("ce_loss_with_mean_ablation", "ce_loss_score_mean_ablation")


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return make_model()


def describe(sae: SAE[Any], hook: str = HOOK) -> SAE[Any]:
    metadata = sae.cfg.metadata
    metadata.hook_name, metadata.context_size, metadata.prepend_bos = hook, CONTEXT_SIZE, True
    return sae


def make_topk() -> SAE[Any]:
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def store_of(sae: SAE[Any], model: HookedSAETransformer, n_rows: int = 160) -> ActivationsStore:
    """The same text from its beginning, each time it is called."""
    store = ActivationsStore.from_sae(
        model, sae, make_text(n_rows), streaming=False, store_batch_size_prompts=PROMPTS
    )
    store.exclude_special_tokens = torch.tensor(get_special_token_ids(model.tokenizer))  # pyright: ignore[reportArgumentType]
    return store


def everything() -> EvalConfig:
    return get_eval_everything_config(
        batch_size_prompts=PROMPTS,
        n_eval_reconstruction_batches=N_BATCHES,
        n_eval_sparsity_variance_batches=N_BATCHES,
    )


def ce_only() -> EvalConfig:
    return EvalConfig(
        batch_size_prompts=PROMPTS, n_eval_reconstruction_batches=N_BATCHES, compute_ce_loss=True
    )


def without_additions(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        group: {name: value for name, value in values.items() if name not in ADDED}
        for group, values in metrics.items()
        if group != "code"
    }


# SAELens' own groups


@pytest.mark.parametrize("make_sae", [make_bae, make_topk, make_training_bae])
@pytest.mark.parametrize("exclude", [True, False, [0, 7]])
def test_saelens_groups_are_what_saelens_returns(model, make_sae, exclude):
    sae = describe(make_sae())
    scaler = ActivationScaler(0.7)
    expected, expected_per_latent = sae_lens_run_evals(
        sae, store_of(sae, model), model, scaler, everything(), exclude_special_tokens=exclude
    )

    metrics, per_latent = run_evals(
        sae,
        store_of(sae, model),
        model,
        scaler,
        everything(),
        exclude_special_tokens=exclude,
        n_code_tokens=100,
    )

    # Exactly, and NaN where SAELens says NaN.
    np.testing.assert_equal(without_additions(metrics), expected)
    np.testing.assert_equal(per_latent, expected_per_latent)
    assert set(metrics) == {*expected, "code"}
    assert set(metrics["model_performance_preservation"]) == {
        *expected["model_performance_preservation"],
        *ADDED,
    }


def test_its_arguments_are_those_of_saelens_in_the_same_order(model):
    sae = describe(make_bae())
    args = (model, ActivationScaler(), ce_only(), {}, False, False)

    metrics, _ = run_evals(sae, store_of(sae, model), *args, n_code_tokens=0)

    expected, _ = sae_lens_run_evals(sae, store_of(sae, model), *args)
    assert without_additions(metrics) == expected


def test_nothing_is_asked_of_saelens_by_default(model):
    sae = describe(make_bae())

    metrics, per_latent = run_evals(sae, store_of(sae, model), model, n_code_tokens=64)

    assert set(metrics) == {"token_stats", "code"}
    assert per_latent == {}


# What is added


def test_mean_ablation_is_on_the_tokens_of_saelens_own_score(model):
    sae = describe(make_bae())
    store = store_of(sae, model)
    batches = [store.get_batch_tokens(PROMPTS) for _ in range(N_BATCHES)]
    special = get_special_token_ids(model.tokenizer)  # pyright: ignore[reportArgumentType]

    metrics, _ = run_evals(
        sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=0
    )

    group = metrics["model_performance_preservation"]
    ablated = mean_ablation_ce(model, HOOK, batches, special)
    assert group["ce_loss_with_mean_ablation"] == ablated
    assert group["ce_loss_score_mean_ablation"] == pytest.approx(
        (ablated - group["ce_loss_with_sae"]) / (ablated - group["ce_loss_without_sae"])
    )
    assert ablated != pytest.approx(group["ce_loss_with_ablation"], rel=1e-3)


def test_special_tokens_may_be_an_iterator(model):
    sae = describe(make_bae())

    from_list, from_iterator = (
        run_evals(
            sae,
            store_of(sae, model),
            model,
            eval_config=ce_only(),
            exclude_special_tokens=ids,
            n_code_tokens=0,
        )
        for ids in ([0, 7, 11], iter([0, 7, 11]))
    )

    assert from_iterator == from_list


@pytest.mark.parametrize("compute_ce_loss", [True, False])
def test_mean_ablation_only_where_ce_is_asked_for(model, compute_ce_loss):
    sae = describe(make_bae())
    config = everything()
    config.compute_ce_loss = compute_ce_loss

    metrics, _ = run_evals(sae, store_of(sae, model), model, eval_config=config, n_code_tokens=64)

    group = metrics.get("model_performance_preservation", {})
    assert all((name in group) == compute_ce_loss for name in ADDED)


@pytest.mark.parametrize("n_code_tokens", [1, 100, 333])
def test_the_code_is_that_of_the_text_that_follows_special_tokens_left_out(model, n_code_tokens):
    sae = describe(make_bae())
    store = store_of(sae, model)
    sae_lens_run_evals(sae, store, model, ActivationScaler(), everything())
    following = torch.cat([store.get_filtered_llm_batch() for _ in range(6)])[:n_code_tokens]

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=everything(),
        n_code_tokens=n_code_tokens,
    )

    code, explained_variance = summarise_code(sae, [following])
    assert len(following) == metrics["code"]["n_tokens"] == n_code_tokens
    assert metrics["code"].pop("explained_variance") == pytest.approx(explained_variance, rel=1e-4)
    assert metrics["code"] == code.to_dict()


def test_no_code_tokens_no_code(model):
    sae = describe(make_bae())

    metrics, _ = run_evals(sae, store_of(sae, model), model, eval_config=ce_only(), n_code_tokens=0)

    assert "code" not in metrics
    assert set(ADDED) <= set(metrics["model_performance_preservation"])


# Scaled inputs and reshaped heads


def test_a_scaling_factor_that_is_not_folded_in_yet(model):
    sae, folded = describe(make_bae()), describe(make_bae())
    folded.fold_activation_norm_scaling_factor(1.7)

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        ActivationScaler(1.7),
        ce_only(),
        n_code_tokens=200,
    )

    expected, _ = run_evals(
        folded, store_of(folded, model), model, eval_config=ce_only(), n_code_tokens=200
    )
    unscaled, _ = run_evals(
        sae, store_of(sae, model), model, eval_config=ce_only(), n_code_tokens=200
    )
    assert metrics["code"] == pytest.approx(expected["code"], rel=1e-4)
    assert metrics["code"]["l0"] != pytest.approx(unscaled["code"]["l0"], rel=1e-3)
    assert metrics["model_performance_preservation"] == pytest.approx(
        expected["model_performance_preservation"], rel=1e-4
    )


def test_a_whitening_that_is_not_folded_in_yet(model):
    # The variance explained is that of the activations, not of the whitened ones.
    sae, folded = describe(make_bae()), describe(make_bae())
    scaler = ActivationScaler()
    uneven = make_activations(500) * torch.linspace(0.2, 3.0, D_IN)
    scaler.estimate_whitening(D_IN, iter([uneven]), n_batches_for_norm_estimate=1)
    whitening = scaler.whitening
    assert whitening is not None
    folded.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)

    metrics, _ = run_evals(sae, store_of(sae, model), model, scaler, n_code_tokens=200)

    expected, _ = run_evals(folded, store_of(folded, model), model, n_code_tokens=200)
    assert metrics["code"] == pytest.approx(expected["code"], rel=1e-3)


def test_a_sae_that_reshapes_heads(model):
    plain = describe(make_bae(), HOOK_Z)
    reshaping = describe(make_bae(reshape_activations="hook_z"), HOOK_Z)
    reshaping.turn_on_forward_pass_hook_z_reshaping()

    metrics, _ = run_evals(
        reshaping, store_of(reshaping, model), model, eval_config=everything(), n_code_tokens=200
    )

    expected, _ = run_evals(
        plain, store_of(plain, model), model, eval_config=everything(), n_code_tokens=200
    )
    np.testing.assert_equal(metrics, expected)
    assert reshaping.hook_z_reshaping_mode
    assert not plain.hook_z_reshaping_mode


def test_one_head(model):
    sae = describe(make_bae(d_in=D_IN // 2), HOOK_Z)
    sae.cfg.metadata.hook_head_index = 1
    store = store_of(sae, model)
    batches = [store.get_batch_tokens(PROMPTS) for _ in range(N_BATCHES)]

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=ce_only(),
        exclude_special_tokens=[0],
        n_code_tokens=64,
    )

    assert metrics["model_performance_preservation"][ADDED[0]] == mean_ablation_ce(
        model, HOOK_Z, batches, [0], hook_head_index=1
    )


def test_an_sae_that_writes_elsewhere_than_it_reads_is_refused(model):
    sae = make_bae()
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.cfg.metadata.hook_name_out = "blocks.1.hook_resid_post"

    with pytest.raises(ValueError, match=r"reads 'blocks.0.* writes 'blocks.1"):
        run_evals(sae, None, model)  # pyright: ignore[reportArgumentType]


def test_text_that_ends_before_is_counted_once_and_said(model, caplog):
    sae = describe(make_bae())
    store = store_of(sae, model)

    metrics, _ = run_evals(sae, store, model, n_code_tokens=10**6)

    assert 0 < metrics["code"]["n_tokens"] < 10**5
    assert f"ended after {metrics['code']['n_tokens']} of 1000000 tokens" in caplog.text
