"""Attention sinks other than BOS in what is scored: left out, counted, and their effect said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from sae_lens import ActivationsStore, HookedSAETransformer
from sae_lens.evals import get_eval_everything_config
from sae_lens.evals import run_evals as sae_lens_run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.util import get_special_token_ids
from torch import Tensor

from bae_lens.activations.outlier_tokens import OutlierTokens, reference_norm
from bae_lens.activations.reference_norms import first_reference_norms, outlier_tokens_of
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.evals import run_evals, summarize_code
from tests.helpers import (
    CONTEXT_SIZE,
    HOOK,
    HOOK_OUT,
    SINK,
    between,
    make_bae,
    make_clvq,
    make_model,
    make_sinking_model,
    make_text,
    make_transcoder,
)

N = 300


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return make_sinking_model()


def store_of(sae: Any, model: HookedSAETransformer) -> ActivationsStore:
    sae.cfg.metadata.context_size, sae.cfg.metadata.prepend_bos = CONTEXT_SIZE, True
    store = ActivationsStore.from_sae(
        model, sae, make_text(), streaming=False, store_batch_size_prompts=4
    )
    store.exclude_special_tokens = torch.tensor(get_special_token_ids(model.tokenizer))  # pyright: ignore[reportArgumentType]
    return store


def tokens_of(sae: Any, model: HookedSAETransformer, n: int) -> tuple[Tensor, Tensor]:
    """Ids and activations of the first tokens that count, from a plain pass."""
    tokens = torch.cat([store_of(sae, model).get_batch_tokens(30)])
    _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
    counts = tokens > 3
    return tokens[counts][:n], cache[HOOK][counts][:n]


def everything() -> Any:
    return get_eval_everything_config(4, 2, 2)


def test_the_code_is_scored_without_sinks_and_what_they_do_is_said(model):
    sae = between(make_bae(), HOOK, None)
    ids, x = tokens_of(sae, model, N)
    is_sink = ids == SINK
    assert is_sink.sum() >= 3

    metrics, _ = run_evals(sae, store_of(sae, model), model, n_code_tokens=N)

    expected, with_them = (summarize_code(sae, [rows]) for rows in (x[~is_sink], x))
    code, said = metrics["code"], metrics["outlier_tokens"]
    assert code["n_tokens"] == N - is_sink.sum()
    assert code["explained_variance"] == pytest.approx(expected.explained_variance, rel=1e-4)
    assert code["l0_raw"] == pytest.approx(expected.code.l0_raw)
    assert (said["n_tokens"], said["n_outlier_tokens"]) == (N, is_sink.sum())
    assert said["explained_variance_with_outliers"] == pytest.approx(
        with_them.explained_variance, rel=1e-4
    )
    assert said["l0_with_outliers"] == pytest.approx((sae.encode(x) != 0).sum(1).float().mean())
    assert said["multiple"] == 10
    # Over the first 4,096 tokens of the text, all that it has.
    assert said["reference_norm"] == pytest.approx(
        reference_norm(tokens_of(sae, model, 10**6)[1]), rel=0.1
    )
    assert abs(code["explained_variance"] - said["explained_variance_with_outliers"]) > 0.1


def test_saelens_groups_are_without_sinks_and_its_own_stand_beside_them(model):
    sae = between(make_bae(), HOOK, None)
    own, own_per_latent = sae_lens_run_evals(
        *(sae, store_of(sae, model), model, ActivationScaler()),
        eval_config=everything(),
        exclude_special_tokens=True,
    )

    metrics, per_latent = run_evals(
        sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=0
    )
    # As a special token: the very same thing.
    as_special, per_latent_as_special = run_evals(
        *(sae, store_of(sae, model), model),
        eval_config=everything(),
        exclude_special_tokens=[*get_special_token_ids(model.tokenizer), SINK],  # pyright: ignore[reportArgumentType]
        n_code_tokens=0,
    )
    off, _ = run_evals(
        *(sae, store_of(sae, model), model),
        eval_config=everything(),
        exclude_outlier_tokens=False,
        n_code_tokens=0,
    )

    for group, values in own.items():
        beside = metrics.get(f"{group}_with_outliers", metrics[group])
        assert beside == pytest.approx({**beside, **values}, nan_ok=True)
        assert off[group] == pytest.approx({**off[group], **values}, nan_ok=True)
        assert metrics[group] == pytest.approx(
            {name: as_special[group].get(name, x) for name, x in metrics[group].items()}, rel=1e-3
        )
    assert not any(group.endswith("_with_outliers") for group in off)
    quality = "reconstruction_quality"
    assert metrics[quality]["mse"] < 0.5 * metrics[f"{quality}_with_outliers"]["mse"]
    assert per_latent["feature_density"] == pytest.approx(per_latent_as_special["feature_density"])
    assert per_latent["feature_density"] != pytest.approx(own_per_latent["feature_density"])


@pytest.mark.parametrize("make", [make_transcoder, lambda: make_clvq(decoder="transformer")])
def test_across_layers_a_sink_at_either_hook_point_is_left_out(model, make):
    sae = between(make(), HOOK, HOOK_OUT)
    if sae.cfg.architecture() == "clvq_vae":
        sae = between(make_clvq(d_out=16, decoder="transformer"), HOOK, HOOK_OUT)
    # At the lower one none is an outlier.
    outliers = OutlierTokens({HOOK: 1e6, HOOK_OUT: 5.0})
    options = {"eval_config": everything(), "n_code_tokens": N}
    metrics, _ = run_evals(
        sae, store_of(sae, model), model, exclude_outlier_tokens=outliers, **options
    )

    special = [*get_special_token_ids(model.tokenizer), SINK]  # pyright: ignore[reportArgumentType]
    store = store_of(sae, model)
    expected, _ = run_evals(
        sae, store, model, exclude_special_tokens=special, exclude_outlier_tokens=False, **options
    )
    assert metrics["outlier_tokens"]["n_outlier_tokens"] > 0
    for group in ("reconstruction_quality", "sparsity", "model_performance_preservation"):
        assert metrics[group] == pytest.approx(expected[group], rel=1e-3)
        assert metrics[f"{group}_with_outliers"] != pytest.approx(expected[group], rel=1e-3)
    assert metrics["outlier_tokens"]["reference_norm_out"] == 5


def test_the_reference_is_saved_or_of_the_first_tokens_and_the_text_stays_where_it_was(
    model, caplog
):
    sae = between(make_bae(), HOOK, None)
    store = store_of(sae, model)
    first = store.get_batch_tokens(2)
    with caplog.at_level(logging.INFO):
        outliers = outlier_tokens_of(True, sae, store, model, [0, 1, 2, 3])
    assert "no reference norm in metadata" in caplog.text
    assert outliers is not None
    following = store.get_batch_tokens(2)
    again = store_of(sae, model)
    assert torch.equal(torch.cat([first, following]), again.get_batch_tokens(4))
    norms = first_reference_norms(again, model, {HOOK: None}, [0, 1, 2, 3], n_tokens=50)
    assert norms == {HOOK: pytest.approx(reference_norm(tokens_of(sae, model, 50)[1]))}

    sae.cfg.metadata.outlier_reference_norms = {HOOK: 7.0}
    assert outlier_tokens_of(3, sae, store, model, []) == OutlierTokens({HOOK: 7.0}, 3)
    assert outlier_tokens_of(outliers, sae, store, model, []) is outliers
    assert outlier_tokens_of(False, sae, store, model, []) is None


def test_a_store_of_sentences_goes_on_where_it_was():
    model = make_model()
    sae = between(make_bae(), HOOK, None)
    texts = [f"word{i} word{i + 1} word2" for i in range(9)]
    store = SentenceStore(model, texts, [HOOK], context_size=8, store_batch_size_prompts=2)
    store.get_batch()
    assert outlier_tokens_of(True, sae, store, model, [0]) is not None
    assert store.get_batch().tokens[0].tolist() == model.to_tokens(texts[2])[0].tolist()


def test_where_many_are_left_out_that_is_said(model, caplog):
    sae = between(make_bae(), HOOK, None)
    sae.cfg.metadata.outlier_reference_norms = {HOOK: 1e-3}
    metrics, _ = run_evals(
        sae, store_of(sae, model), model, n_code_tokens=100, exclude_outlier_tokens=4000
    )
    left_out = metrics["outlier_tokens"]["n_outlier_tokens"]
    assert left_out > 2
    assert f"{left_out} of 100 tokens" in caplog.text
    assert "4000 times the reference (0.001 at" in caplog.text
