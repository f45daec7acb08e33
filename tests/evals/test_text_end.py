"""``run_evals`` on a text that is shorter than what its groups ask for, and at hook points with heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, get_eval_everything_config
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from bae_lens.activations.text_batch import READ_AGAIN
from bae_lens.evals import run_evals, summarize_code
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    between,
    fit_codes,
    make_bae,
    make_bridge,
    make_clvq,
    make_model,
    make_text,
    make_tokens,
)

PROMPTS, N_BATCHES, N_WORDS = 4, 2, 24


def of_kind(kind: str, model: Any) -> SAE[Any]:
    if kind == "bae":
        return between(make_bae(), HOOK, None)
    sae = between(make_clvq(d_out=D_IN))
    return fit_codes(sae, model.run_with_cache(make_tokens(4, seed=9)[:, 1:])[1][HOOK])


def store_of(sae: SAE[Any], model: Any, n_texts: int) -> ActivationsStore:
    store = ActivationsStore.from_sae(
        model, sae, make_text(n_texts), streaming=False, store_batch_size_prompts=PROMPTS
    )
    store.exclude_special_tokens = torch.tensor([0, 1, 2])
    return store


def everything() -> EvalConfig:
    return get_eval_everything_config(PROMPTS, N_BATCHES, N_BATCHES)


def sequences_of(sae: SAE[Any], model: Any, n_texts: int) -> Tensor:
    """Every context of the text, the last one included."""
    store, sequences = store_of(sae, model, n_texts), []
    while True:
        try:
            sequences.append(store.get_batch_tokens(1, raise_at_epoch_end=True))
        except StopIteration:
            return torch.cat(sequences)


# With a batch's worth of contexts more or less, and none left by the other groups (at 10 texts).
@pytest.mark.parametrize("n_texts", [1, 7, 8, 10, 11, 20])
@pytest.mark.parametrize("kind", ["bae", "clvq_vae"])
def test_a_text_that_is_too_short_counts_whole(kind, n_texts, caplog):
    model = make_model()
    sae = of_kind(kind, model)
    tokens = sequences_of(sae, model, n_texts)
    n_words = int((tokens > 2).sum())
    assert n_words < 512

    metrics, _ = run_evals(
        sae, store_of(sae, model, n_texts), model, eval_config=everything(), n_code_tokens=512
    )

    assert metrics["code"]["n_tokens"] == n_words
    assert f"The text ended after {n_words} of 512 tokens." in caplog.text
    assert {"model_performance_preservation", "reconstruction_quality", "sparsity"} <= set(metrics)
    n_contexts = len(tokens)
    assert (READ_AGAIN in caplog.text) == (n_contexts < 2 * N_BATCHES * PROMPTS)
    if kind == "bae":
        acts = model.run_with_cache(tokens)[1][HOOK][tokens > 2]
        expected = summarize_code(sae, [acts])
        assert metrics["code"]["l0"] == pytest.approx(expected.code.l0)
        explained = pytest.approx(expected.explained_variance, abs=1e-5)
        assert metrics["code"]["explained_variance"] == explained


@pytest.mark.parametrize("kind", ["bae", "clvq_vae"])
def test_what_the_other_groups_left_of_the_text_is_enough(kind, caplog):
    # Goes on where they ended, as long as there is enough.
    model = make_model()
    sae = of_kind(kind, model)
    store = store_of(sae, model, 40)

    metrics, _ = run_evals(sae, store, model, eval_config=everything(), n_code_tokens=100)

    assert metrics["code"]["n_tokens"] == 100
    assert "The text" not in caplog.text


@pytest.mark.parametrize("kind", ["bae", "clvq_vae"])
def test_where_no_token_counts_the_other_groups_are_there(kind, caplog):
    model = make_model()
    sae = of_kind(kind, model)
    store = store_of(sae, model, 20)
    words = [i for i in range(44) if i != 3]  # all but the unknown one, which never comes
    store.exclude_special_tokens = torch.tensor(words)
    metrics, _ = run_evals(
        sae,
        store,
        model,
        eval_config=EvalConfig(
            batch_size_prompts=PROMPTS,
            n_eval_sparsity_variance_batches=1,
            compute_sparsity_metrics=True,
        ),
        # Of two hook points it is this that says which tokens count.
        exclude_special_tokens=True if kind == "bae" else words,
        n_code_tokens=64,
    )

    assert metrics["code"] == {"n_tokens": 0}
    assert "sparsity" in metrics
    assert "There is no group 'code'" in caplog.text


@pytest.mark.parametrize("kind", ["bae", "clvq_vae"])
def test_a_text_without_one_context(kind):
    model = make_model()
    sae = of_kind(kind, model)
    text = make_text(1, 3)
    store = ActivationsStore.from_sae(model, sae, text, streaming=False, store_batch_size_prompts=1)

    with pytest.raises(ValueError, match=f"no sequence of context_size = {CONTEXT_SIZE} tokens"):
        run_evals(sae, store, model, eval_config=everything(), n_code_tokens=64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_code_tokens", -1),
        ("n_code_tokens", 2.5),
        ("n_code_tokens", "all"),
        ("magnitude_bits", -1),
    ],
)
def test_numbers_are_checked_before_anything_is_measured(name, value):
    model = make_model()
    sae = of_kind("bae", model)
    store = store_of(sae, model, 20)
    first = store_of(sae, model, 20).get_batch_tokens(2)

    with pytest.raises(ValueError, match=f"{name} must be"):
        run_evals(sae, store, model, eval_config=everything(), **{name: value})

    assert torch.equal(store.get_batch_tokens(2), first)


# Heads, at names that SAELens' run_evals does not know


@pytest.mark.parametrize("head", [None, 1])
def test_heads_of_a_bridge_are_scored_as_those_of_saelens_names(tmp_path: Path, head):
    bridge: Any = make_bridge(tmp_path)
    name = "blocks.0.attn.o.hook_in"
    width = D_IN // 2 if head is not None else D_IN
    sae = between(make_bae(d_in=width), name, None)
    sae.cfg.metadata.hook_head_index = head
    tokens = store_of(sae, bridge, 20).get_batch_tokens(PROMPTS)
    keep = (tokens > 2)[..., None]
    heads = slice(None) if head is None else slice(head, head + 1)

    def replace(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        old = z[:, :, heads].flatten(2)
        z[:, :, heads] = torch.where(keep, sae(old), old).reshape(z[:, :, heads].shape)
        return z

    with torch.no_grad():
        logits: Any = bridge.run_with_hooks(tokens, fwd_hooks=[(name, replace)])
        z = bridge.run_with_cache(tokens)[1][name][:, :, heads].flatten(2)[tokens > 2]
    loss = -logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    config = EvalConfig(
        batch_size_prompts=PROMPTS,
        n_eval_reconstruction_batches=1,
        compute_ce_loss=True,
        n_eval_sparsity_variance_batches=1,
        compute_variance_metrics=True,
    )

    metrics, _ = run_evals(
        sae, store_of(sae, bridge, 20), bridge, ActivationScaler(), config, n_code_tokens=64
    )

    scored = (tokens > 2)[:, :-1]
    with_sae = metrics["model_performance_preservation"]["ce_loss_with_sae"]
    assert with_sae == pytest.approx(loss[scored].mean().item(), abs=1e-4)
    assert metrics["code"]["n_tokens"] == 64
    assert z.shape[-1] == width


def test_a_hook_point_that_the_model_knows_by_another_name_only(tmp_path: Path):
    # Hooks by an alias do nothing on a Bridge, and the SAE would seem to lose nothing.
    bridge: Any = make_bridge(tmp_path)
    sae = between(make_bae(), "blocks.0.hook_resid_post", None)
    config = EvalConfig(n_eval_reconstruction_batches=1, compute_ce_loss=True)

    with pytest.raises(ValueError, match=r"no hook 'blocks\.0\.hook_resid_post'"):
        run_evals(sae, store_of(sae, bridge, 20), bridge, eval_config=config, n_code_tokens=0)
