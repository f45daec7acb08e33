"""run_evals: SAELens' own groups to the last bit, and what stands beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    ActivationsStore,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.evals import EvalConfig, get_eval_everything_config
from sae_lens.evals import run_evals as sae_lens_run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.util import get_special_token_ids

from bae_lens.evals import CodeSummary, mean_ablation_ce, run, run_evals, summarize_code
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    HOOK_OUT,
    about,
    between,
    make_activations,
    make_bae,
    make_model,
    make_text,
    make_training_bae,
    make_transcoder,
    support_bits,
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
    return with_random_weights(TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5)))


def with_random_weights(sae: SAE[Any]) -> SAE[Any]:
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
        if group not in ("code", "outlier_tokens")
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
    rates = per_latent.pop("firing_rates")
    assert len(rates) == sae.cfg.d_sae
    assert sum(rates) == pytest.approx(metrics["code"]["l0"])
    np.testing.assert_equal(per_latent, expected_per_latent)
    assert set(metrics) == {*expected, "code", "outlier_tokens"}
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

    assert set(metrics) == {"token_stats", "code", "outlier_tokens"}
    assert set(per_latent) == {"firing_rates"}


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


def text_after_saelens(sae: SAE[Any], model: HookedSAETransformer, n: int) -> torch.Tensor:
    """Activations of the text that follows what SAELens' evals read."""
    store = store_of(sae, model)
    sae_lens_run_evals(sae, store, model, ActivationScaler(), everything())
    return torch.cat([store.get_filtered_llm_batch() for _ in range(6)])[:n]


@pytest.mark.parametrize("make_sae", [make_bae, make_topk])
@pytest.mark.parametrize("n_code_tokens", [2, 100, 333])
def test_the_code_is_that_of_the_text_that_follows_special_tokens_left_out(
    model, make_sae, n_code_tokens
):
    sae = describe(make_sae())
    following = text_after_saelens(sae, model, n_code_tokens)

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=everything(),
        n_code_tokens=n_code_tokens,
        pair_counts=True,
    )

    # Shuffled, which only the entropy of minibatches could tell, and here is none whole.
    expected = summarize_code(sae, [following], pair_counts=True, magnitude_bits=4)
    assert len(following) == metrics["code"]["n_tokens"] == n_code_tokens
    assert metrics["code"] == about(
        {
            **expected.code.to_dict(),
            "explained_variance": expected.explained_variance,
            "quantized_explained_variance": expected.quantized_explained_variance,
        },
        1e-4,
    )


def test_the_code_has_every_scalar(model):
    sae = describe(make_topk())

    metrics, _ = run_evals(sae, store_of(sae, model), model, n_code_tokens=1100)

    code = metrics["code"]
    scalars = {field.name for field in dataclasses.fields(CodeSummary)}
    scalars -= {"firing_rates", "l0_counts"}
    assert set(code) == scalars | {"explained_variance", "quantized_explained_variance"}
    assert all(type(value) in (int, float, bool) for value in code.values())
    assert json.loads(json.dumps(code)) == code
    assert code["n_minibatches"] == 1


@pytest.mark.parametrize(
    ("most", "tokens", "asked", "counted"),
    [
        (D_SAE, 20 * D_SAE, None, True),
        (D_SAE, 20 * D_SAE - 1, None, False),
        (D_SAE - 1, 20 * D_SAE, None, False),
        (D_SAE - 1, 64, True, True),
        (D_SAE, 20 * D_SAE, False, False),
    ],
)
def test_pairs_are_counted_where_it_is_sound_and_small_or_as_asked(
    model, monkeypatch, most, tokens, asked, counted
):
    monkeypatch.setattr(run, "_MAX_PAIRED", most)
    sae = describe(make_bae())

    metrics, _ = run_evals(
        sae, store_of(sae, model), model, n_code_tokens=tokens, pair_counts=asked
    )

    code = metrics["code"]
    for name in ("chow_liu_entropy", "plug_in_entropy", "n_distinct_codes"):
        assert (code[name] is not None) == counted
    assert code["description_length"] == support_bits(code)


def test_magnitudes_are_counted_at_the_resolution_asked_for(model):
    sae = describe(make_topk())

    coarse, fine = (
        run_evals(sae, store_of(sae, model), model, n_code_tokens=200, magnitude_bits=bits)[0]
        for bits in (1, 8)
    )

    assert (coarse["code"]["magnitude_bits"], fine["code"]["magnitude_bits"]) == (1, 8)
    assert coarse["code"]["magnitude_entropy"] < fine["code"]["magnitude_entropy"]
    assert coarse["code"]["explained_variance"] == fine["code"]["explained_variance"]
    assert fine["code"]["quantized_explained_variance"] == pytest.approx(
        fine["code"]["explained_variance"], abs=1e-3
    )
    assert coarse["code"]["quantized_explained_variance"] != pytest.approx(
        coarse["code"]["explained_variance"], abs=1e-3
    )


def test_levels_are_counted_as_they_are_whatever_the_resolution(model):
    sae = describe(make_bae(n_levels=3, feedback_steps=1))

    one, other = (
        run_evals(sae, store_of(sae, model), model, n_code_tokens=900, magnitude_bits=bits)[0][
            "code"
        ]
        for bits in (1, None)
    )

    assert one == other
    assert (one["is_one_bit"], one["magnitude_bits"]) == (False, None)
    assert one["quantized_explained_variance"] is None
    assert one["magnitude_entropy"] > 0.1
    assert one["description_length"] == support_bits(one) + one["magnitude_entropy"]


def architectures(folder: Path) -> dict[str, SAE[Any]]:
    """SAELens' own, random, as they are loaded from disk."""
    size: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    made = {
        "standard": StandardSAE(StandardSAEConfig(**size)),
        "gated": GatedSAE(GatedSAEConfig(**size)),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**size)),
        "topk": TopKSAE(TopKSAEConfig(**size, k=5)),
        "batchtopk": BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**size, k=5)),
    }
    loaded = {}
    for name, sae in made.items():
        with_random_weights(sae)
        if isinstance(sae, BatchTopKTrainingSAE):
            sae.topk_threshold.fill_(0.5)
            sae.save_inference_model(folder / name)
        else:
            sae.save_model(folder / name)
        loaded[name] = SAE.load_from_disk(folder / name)
    return loaded


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
def test_codes_of_saelens_architectures(model, tmp_path, name):
    sae = describe(architectures(tmp_path)[name])

    metrics, _ = run_evals(sae, store_of(sae, model), model, n_code_tokens=900, magnitude_bits=8)

    code = metrics["code"]
    assert sae.cfg.architecture() == ("jumprelu" if name == "batchtopk" else name)
    assert 0 < code["l0"] < D_SAE
    assert not code["is_one_bit"]
    assert 0 < code["plug_in_entropy"] <= code["chow_liu_entropy"] <= code["marginal_entropy"]
    assert code["magnitude_entropy"] > 0
    assert code["description_length"] == support_bits(code) + code["magnitude_entropy"]
    assert code["quantized_explained_variance"] == pytest.approx(
        code["explained_variance"], rel=1e-2
    )


def test_no_code_tokens_no_code(model):
    sae = describe(make_bae())

    metrics, _ = run_evals(sae, store_of(sae, model), model, eval_config=ce_only(), n_code_tokens=0)

    assert "code" not in metrics
    assert set(ADDED) <= set(metrics["model_performance_preservation"])


# Mixing


def test_mixing_loses_no_token_and_doubles_none(model, monkeypatch):
    sae = describe(make_topk())
    code, explained_variance, _ = summarize_code(
        sae, [text_after_saelens(sae, model, 333)], pair_counts=True
    )
    monkeypatch.setattr(run, "_MIXED_TOKENS", 100)
    monkeypatch.setattr(run, "_BATCH", 7)

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=everything(),
        n_code_tokens=333,
        pair_counts=True,
    )

    # What is of all tokens, in any order.
    for name in ("n_tokens", "l0", "l0_std", "l0_5th", "l0_95th", "marginal_entropy", "dead_share",
                 "max_density", "chow_liu_entropy", "plug_in_entropy", "n_distinct_codes"):  # fmt: skip
        assert metrics["code"][name] == pytest.approx(getattr(code, name), rel=1e-9)
    assert metrics["code"]["explained_variance"] == pytest.approx(explained_variance, rel=1e-4)


@pytest.mark.parametrize("sizes", [[], [1], [40, 40, 40, 5], [250], [0, 99, 1, 0]])
def test_mixed_rows_are_the_rows_in_another_order(monkeypatch, sizes):
    monkeypatch.setattr(run, "_MIXED_TOKENS", 100)
    monkeypatch.setattr(run, "_BATCH", 16)
    rows = torch.arange(sum(sizes)).unsqueeze(1)

    mixed = [list(run._mixed(iter(rows.split(sizes)))) for _ in range(2)]

    order = [row.item() for batch in mixed[0] for row in batch]
    assert sorted(order) == list(range(len(rows)))
    assert order == [row.item() for batch in mixed[1] for row in batch]
    assert all(len(batch) <= 16 for batch in mixed[0])
    if len(rows) > 1:
        # Each batch has rows from all over its block.
        assert max(mixed[0][0]) - min(mixed[0][0]) > 40


def test_minibatches_are_of_many_texts(model):
    # Consecutive tokens of one text repeated would be alike.
    sae = describe(make_bae())
    text = Dataset.from_dict(
        {"text": [" ".join([f"word{i // 4}"] * CONTEXT_SIZE) for i in range(160)]}
    )
    store = ActivationsStore.from_sae(
        model, sae, text, streaming=False, store_batch_size_prompts=PROMPTS
    )

    metrics, _ = run_evals(sae, store, model, n_code_tokens=2200)

    code = metrics["code"]
    assert code["n_minibatches"] == 2
    assert code["minibatch_entropy"] == pytest.approx(code["marginal_entropy"], rel=0.03)


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
    assert metrics["code"] == about(expected["code"], 1e-4)
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
    assert metrics["code"] == about(expected["code"], 1e-3)


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


def test_an_sae_that_writes_elsewhere_than_it_reads_has_the_same_metrics(model):
    # Its numbers: test_cross_layer.py.
    sae = between(make_transcoder(), HOOK, HOOK_OUT)
    own = describe(make_topk())

    metrics, per_latent = run_evals(
        sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=64
    )

    expected, expected_per_latent = run_evals(
        own, store_of(own, model), model, eval_config=everything(), n_code_tokens=64
    )
    assert list(metrics) == list(expected)
    for group, values in expected.items():
        added = {"kl_div_with_mean_ablation", "kl_div_score_mean_ablation", "reference_norm_out"}
        assert set(metrics[group]) - added == set(values)
    assert set(per_latent) == set(expected_per_latent)


def test_text_that_ends_before_is_counted_once_and_said(model, caplog):
    sae = describe(make_bae())
    store = store_of(sae, model)

    metrics, _ = run_evals(sae, store, model, n_code_tokens=10**6)

    assert 0 < metrics["code"]["n_tokens"] < 10**5
    assert f"ended after {metrics['code']['n_tokens']} of 1000000 tokens" in caplog.text
