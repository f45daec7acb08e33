"""run_evals where an SAE writes to another hook point than it reads, against plain references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore, HookedSAETransformer, TopKSAE, TopKSAEConfig
from sae_lens.evals import EvalConfig, get_eval_everything_config
from sae_lens.evals import run_evals as sae_lens_run_evals
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUTranscoder,
    SkipTranscoder,
    Transcoder,
)
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.util import get_special_token_ids
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from bae_lens import TrainingTopKTranscoder, TrainingTopKTranscoderConfig
from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.architectures.clvq_vae import CLVQVAE, only_tokens
from bae_lens.evals import CodebookUse, run_evals
from bae_lens.evals.cross_layer import CrossLayerEvaluation
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    HOOK_OUT,
    N_CODES,
    between,
    fit_codes,
    make_bae,
    make_bridge,
    make_clvq,
    make_headless_encoder,
    make_model,
    make_text,
    make_tokenizer,
    make_training_clvq,
    make_transcoder,
)

MLP = "blocks.1.mlp.hook_post"
D_MLP = 2 * D_IN
N_BATCHES, PROMPTS = 2, 4
ABLATED = ("with_sae", "with_ablation", "with_mean_ablation")
SENTENCES = [
    "word1 word7 word3 word8 word9",
    "word2",
    "word5 word5 word6 word30 word12 word1 word2",
]


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return make_model()


def store_of(sae: SAE[Any], model: Any, **overrides: Any) -> ActivationsStore:
    """The same text from its beginning, each time it is called; BOS stands between texts too."""
    options = {"streaming": False, "store_batch_size_prompts": PROMPTS}
    return ActivationsStore.from_sae(model, sae, make_text(), **{**options, **overrides})


def everything() -> EvalConfig:
    return get_eval_everything_config(PROMPTS, N_BATCHES, N_BATCHES)


def downstream_only() -> EvalConfig:
    return EvalConfig(PROMPTS, N_BATCHES, compute_kl=True, compute_ce_loss=True)


def quality_only(**flags: bool) -> EvalConfig:
    names = ("compute_l2_norms", "compute_sparsity_metrics", "compute_variance_metrics")
    asked: dict[str, Any] = {**dict.fromkeys(names, True), **flags}
    return EvalConfig(PROMPTS, n_eval_sparsity_variance_batches=N_BATCHES, **asked)


def special_ids(model: Any, exclude: bool | Sequence[int] = True) -> list[int]:
    if exclude is True:
        return get_special_token_ids(model.tokenizer)
    return list(exclude or ())


def is_special(tokens: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.isin(tokens, torch.tensor(ids, dtype=tokens.dtype))


def clvq(model: HookedSAETransformer, hook_out: str = HOOK_OUT, **overrides: Any) -> CLVQVAE:
    """A CLVQ-VAE between two hook points of the model, whose tokens use many of its codes."""
    sae = between(make_clvq(**{"d_out": D_IN, "decoder": "token"} | overrides), HOOK, hook_out)
    tokens = store_of(sae, model).get_batch_tokens(4)
    return fit_codes(sae, model.run_with_cache(tokens[:, 1:])[1][HOOK])


def transformer(model: HookedSAETransformer, **overrides: Any) -> CLVQVAE:
    return clvq(model, decoder="transformer", **overrides)


# By hand


def by_hand(
    model: Any, sae: SAE[Any], batches: list[Tensor], ids: Sequence[int]
) -> tuple[dict[str, float], Tensor, Tensor]:
    """CE and KL of the model's second half run on from other activations, token by token; with the
    targets and outputs of all tokens that count."""
    hook_in, hook_out = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out
    caches = [model.run_with_cache(tokens)[1] for tokens in batches]
    keep = [~is_special(tokens, ids) for tokens in batches]
    outputs = [sae(cache[hook_in]) for cache in caches]
    targets = torch.cat([c[hook_out][k] for c, k in zip(caches, keep, strict=True)])
    values: dict[str, list[Tensor]] = {}
    for tokens, cache, kept, output in zip(batches, caches, keep, outputs, strict=True):
        clean = cache[hook_out]
        replaced = {
            "without_sae": clean,
            "with_sae": torch.where(kept[..., None], output, clean),
            "with_ablation": torch.zeros_like(clean),
            "with_mean_ablation": torch.where(kept[..., None], targets.mean(0), clean),
        }
        own = model(tokens).log_softmax(-1)
        for name, acts in replaced.items():
            put = [(hook_out, lambda old, hook, new=acts: new)]
            log_probs = model.run_with_hooks(tokens, fwd_hooks=put).log_softmax(-1)
            for b, i in kept.nonzero().tolist():
                kl = (own[b, i].exp() * (own[b, i] - log_probs[b, i])).sum()
                values.setdefault(f"kl_div_{name}", []).append(kl)
                if i + 1 < tokens.shape[1]:
                    ce = -log_probs[b, i, tokens[b, i + 1]]
                    values.setdefault(f"ce_loss_{name}", []).append(ce)
    mean = {name: torch.stack(v).mean().item() for name, v in values.items()}
    return mean, targets, torch.cat([o[k] for o, k in zip(outputs, keep, strict=True)])


@pytest.mark.parametrize("exclude", [True, False, [0, 7]])
@pytest.mark.parametrize(
    ("make_sae", "hook_out", "d_out"),
    [
        (make_transcoder, HOOK_OUT, D_IN),
        (make_transcoder, MLP, D_MLP),
        (lambda **kwargs: make_transcoder(JumpReLUTranscoder, **kwargs), MLP, D_MLP),
        # What it writes is more than what it decodes.
        (lambda **kwargs: make_transcoder(SkipTranscoder, **kwargs), HOOK_OUT, D_IN),
        (lambda **kwargs: make_transcoder(JumpReLUSkipTranscoder, **kwargs), MLP, D_MLP),
        (lambda **kwargs: make_clvq(decoder="token", **kwargs), MLP, D_MLP),
    ],
)
@torch.no_grad()
def test_it_equals_a_plain_reference(model, make_sae, hook_out, d_out, exclude):
    sae = between(make_sae(d_out=d_out), HOOK, hook_out)
    store = store_of(sae, model)
    batches = [store.get_batch_tokens(PROMPTS) for _ in range(N_BATCHES)]

    metrics: dict[str, Any] = {}
    for config in (downstream_only(), quality_only()):
        # Of the same text: after the one SAELens' store goes on with the next for the other.
        groups, _ = run_evals(
            sae, store_of(sae, model), model, None, config, {}, exclude, n_code_tokens=0
        )
        metrics |= groups

    expected, x, y = by_hand(model, sae, batches, special_ids(model, exclude))
    ce, kl = metrics["model_performance_preservation"], metrics["model_behavior_preservation"]
    for name in ABLATED:
        assert ce[f"ce_loss_{name}"] == pytest.approx(expected[f"ce_loss_{name}"], rel=1e-5)
        assert kl[f"kl_div_{name}"] == pytest.approx(expected[f"kl_div_{name}"], rel=1e-4)
    assert ce["ce_loss_without_sae"] == pytest.approx(expected["ce_loss_without_sae"], rel=1e-5)
    for suffix in ("", "_mean_ablation"):
        ablated = f"with{suffix or '_ablation'}"
        lost = ce[f"ce_loss_{ablated}"] - ce["ce_loss_without_sae"]
        assert ce[f"ce_loss_score{suffix}"] == pytest.approx(
            (ce[f"ce_loss_{ablated}"] - ce["ce_loss_with_sae"]) / lost
        )
        assert kl[f"kl_div_score{suffix}"] == pytest.approx(
            1 - kl["kl_div_with_sae"] / kl[f"kl_div_{ablated}"]
        )

    residual = (x - y).square().sum(-1)
    assert metrics["reconstruction_quality"] == pytest.approx(
        {
            "explained_variance": 1 - (residual.sum() / (x - x.mean(0)).square().sum()).item(),
            # SAELens averages over tokens, each batch about its own mean: below.
            "explained_variance_legacy": metrics["reconstruction_quality"][
                "explained_variance_legacy"
            ],
            "mse": residual.mean().item(),
            "cossim": torch.cosine_similarity(x, y).mean().item(),
        },
        rel=1e-4,
    )
    assert metrics["shrinkage"]["l2_norm_in"] == pytest.approx(x.norm(dim=-1).mean().item())
    assert metrics["shrinkage"]["l2_norm_out"] == pytest.approx(y.norm(dim=-1).mean().item())
    assert metrics["shrinkage"]["l2_ratio"] == pytest.approx(
        (y.norm(dim=-1) / x.norm(dim=-1)).mean().item(), rel=1e-4
    )


@torch.no_grad()
def test_per_latent_metrics_and_sparsity(model):
    sae = between(make_transcoder(d_out=D_MLP), HOOK, MLP)
    store = store_of(sae, model)
    batches = [store.get_batch_tokens(PROMPTS) for _ in range(N_BATCHES)]

    metrics, per_latent = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=quality_only(
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
        ),
        n_code_tokens=0,
    )

    tokens = torch.cat(batches)
    keep = ~is_special(tokens, special_ids(model))
    acts = sae.encode(model.run_with_cache(tokens)[1][HOOK]) * keep[..., None]
    fired = acts != 0
    assert metrics["sparsity"]["l0"] == pytest.approx(fired[keep].sum(-1).float().mean().item())
    assert metrics["sparsity"]["l1"] == pytest.approx(acts[keep].sum(-1).mean().item())
    assert per_latent["feature_density"] == pytest.approx(fired[keep].float().mean(0).tolist())
    within = fired.sum((0, 1)) / fired.any(1).sum(0)
    np.testing.assert_allclose(per_latent["consistent_activation_heuristic"], within, rtol=1e-6)
    assert per_latent["encoder_norm"] == pytest.approx(sae.W_enc.norm(dim=0).tolist())
    assert per_latent["encoder_bias"] == pytest.approx(sae.b_enc.tolist())
    # Directions at two hook points of different width have no angle.
    assert "encoder_decoder_cosine_sim" not in per_latent
    assert metrics["token_stats"] == {
        "total_tokens_eval_reconstruction": 0,
        "total_tokens_eval_sparsity_variance": N_BATCHES * PROMPTS * CONTEXT_SIZE,
    }


def test_the_true_upper_activation_is_a_perfect_score(model):
    # The residual after block 0 is what block 1 reads; relu(x) − relu(−x) gives it back.
    sae = between(make_transcoder(), HOOK, "blocks.1.hook_resid_pre")
    with torch.no_grad():
        eye = torch.eye(D_IN)
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc[:, : 2 * D_IN] = torch.cat([eye, -eye], 1)
        sae.W_dec[: 2 * D_IN] = torch.cat([eye, -eye], 0)

    metrics, _ = run_evals(
        sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=100
    )

    ce, kl = metrics["model_performance_preservation"], metrics["model_behavior_preservation"]
    assert ce["ce_loss_with_sae"] == pytest.approx(ce["ce_loss_without_sae"], rel=1e-6)
    for group, name in ((ce, "ce_loss_score"), (kl, "kl_div_score")):
        assert group[name] == pytest.approx(1, abs=1e-5)
        assert group[f"{name}_mean_ablation"] == pytest.approx(1, abs=1e-5)
    quality = metrics["reconstruction_quality"]
    assert quality["explained_variance"] == pytest.approx(1)
    assert quality["cossim"] == pytest.approx(1)
    assert quality["mse"] == pytest.approx(0, abs=1e-8)
    assert metrics["shrinkage"]["l2_ratio"] == pytest.approx(1)
    assert metrics["code"]["explained_variance"] == pytest.approx(1)


def test_the_mean_is_no_score(model):
    # What zero-ablation would still reward.
    sae = between(make_transcoder(), HOOK, HOOK_OUT)
    store = store_of(sae, model)
    tokens = torch.cat([store.get_batch_tokens(PROMPTS) for _ in range(N_BATCHES)])
    keep = ~is_special(tokens, special_ids(model))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.b_dec.copy_(model.run_with_cache(tokens)[1][HOOK_OUT][keep].mean(0))

    metrics, _ = run_evals(
        sae, store_of(sae, model), model, eval_config=downstream_only(), n_code_tokens=0
    )

    ce, kl = metrics["model_performance_preservation"], metrics["model_behavior_preservation"]
    assert ce["ce_loss_score_mean_ablation"] == pytest.approx(0, abs=1e-5)
    assert kl["kl_div_score_mean_ablation"] == pytest.approx(0, abs=1e-5)
    assert abs(ce["ce_loss_score"]) > 0.05


# Where both hooks are the same


def topk() -> SAE[Any]:
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


HOOK_Z = "blocks.0.attn.hook_z"


@pytest.mark.parametrize("exclude", [True, False, [0, 7]])
@pytest.mark.parametrize(
    ("make_sae", "hook", "head", "d_in"),
    [
        (topk, HOOK, None, D_IN),
        (make_bae, HOOK, None, D_IN),
        (make_bae, HOOK_Z, None, D_IN),
        (lambda: make_bae(reshape_activations="hook_z"), HOOK_Z, None, D_IN),
        (lambda: make_bae(d_in=D_IN // 2), HOOK_Z, 1, D_IN // 2),
        (lambda: make_clvq(d_out=D_IN, decoder="token"), HOOK, None, D_IN),
        (make_transcoder, HOOK, None, D_IN),
    ],
)
def test_of_one_hook_the_numbers_are_saelens(model, make_sae, hook, head, d_in, exclude):
    sae = between(make_sae(), hook, hook)
    sae.cfg.metadata.hook_head_index = head
    scaler = ActivationScaler(0.7)
    expected, expected_per_latent = sae_lens_run_evals(
        sae, store_of(sae, model), model, scaler, everything(), {}, exclude
    )

    metrics, per_latent = CrossLayerEvaluation(
        sae, store_of(sae, model), model, scaler, {}, special_ids(model, exclude)
    ).run(everything())

    assert list(metrics) == list(expected)
    for group, values in expected.items():
        added = [name for name in metrics[group] if name not in values]
        assert all(name.endswith("mean_ablation") for name in added), added
        for name, value in values.items():
            assert metrics[group][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert set(per_latent) == set(expected_per_latent)
    for name, value in expected_per_latent.items():
        np.testing.assert_allclose(per_latent[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hook_out", [None, HOOK])
@pytest.mark.parametrize("make_sae", [make_clvq, make_training_clvq])
@pytest.mark.parametrize("decoder", ["token", "transformer"])
def test_a_single_layer_clvq_vae(model, hook_out, make_sae, decoder):
    sae = between(make_sae(d_out=D_IN, decoder=decoder), HOOK, hook_out)

    metrics, per_latent = run_evals(
        sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=200
    )

    assert metrics["sparsity"]["l0"] == 1
    assert metrics["code"]["n_tokens"] == 200
    assert sum(per_latent["feature_density"]) == pytest.approx(1)
    assert len(per_latent["encoder_decoder_cosine_sim"]) == N_CODES


# What is hidden from the SAE


@pytest.mark.parametrize("ids", [[0], [0, 9, 17]])
def test_a_decoder_over_sequences_sees_no_special_token(model, ids):
    sae = transformer(model)
    store = store_of(sae, model)
    tokens = store.get_batch_tokens(PROMPTS)
    keep = ~is_special(tokens, ids)
    assert not keep.all()
    x = model.run_with_cache(tokens)[1][HOOK]
    # Each sequence without them, by itself.
    alone = torch.cat([sae(row[k][None])[0] for row, k in zip(x, keep, strict=True)])
    assert not torch.allclose(alone, sae(x)[keep], rtol=1e-3)
    config = EvalConfig(batch_size_prompts=PROMPTS, compute_variance_metrics=True)

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=config,
        exclude_special_tokens=ids,
        n_code_tokens=0,
    )

    target = model.run_with_cache(tokens)[1][HOOK_OUT][keep]
    assert metrics["reconstruction_quality"]["mse"] == pytest.approx(
        (target - alone).square().sum(-1).mean().item(), rel=1e-5
    )


def disturbed(sae: SAE[Any], rows: Callable[[Tensor], Tensor], value: float) -> None:
    """Put something else in front of the SAE at some positions of each batch."""
    encode = sae.encode

    def encode_disturbed(x: Tensor) -> Tensor:
        return encode(torch.where(rows(x)[..., None], value, x) if x.ndim == 3 else x)

    sae.encode = encode_disturbed  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("value", [1e3, math.nan])
@pytest.mark.parametrize("make_sae", [clvq, transformer, lambda model: between(make_transcoder())])
def test_what_stands_at_special_positions_makes_no_difference(model, make_sae, value):
    def evaluate(position: int | None) -> Any:
        sae = make_sae(model)
        if position is not None:

            def first(x: Tensor) -> Tensor:
                return (torch.arange(x.shape[1]) == position).expand(x.shape[:2])

            disturbed(sae, first, value)
        store = store_of(sae, model, disable_concat_sequences=True)
        config = everything()
        return run_evals(
            sae, store, model, eval_config=config, exclude_special_tokens=[0], n_code_tokens=150
        )

    expected = evaluate(None)

    # BOS is at position 0 of each sequence, and nowhere else.
    np.testing.assert_equal(evaluate(0), expected)
    if not math.isnan(value):
        assert evaluate(1)[0]["reconstruction_quality"] != expected[0]["reconstruction_quality"]


def test_special_positions_keep_their_activations_where_the_model_goes_on(model):
    sae = transformer(model)
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda acts, hook: seen.__setitem__(name, acts.clone())

    tokens = store_of(sae, model).get_batch_tokens(PROMPTS)
    config = EvalConfig(
        batch_size_prompts=PROMPTS, n_eval_reconstruction_batches=1, compute_ce_loss=True
    )
    runs: list[Tensor] = []
    with model.hooks(fwd_hooks=[("ln_final.hook_scale", lambda a, hook: runs.append(a.clone()))]):
        run_evals(sae, store_of(sae, model), model, eval_config=config, n_code_tokens=0)

    keep = ~is_special(tokens, special_ids(model))
    # The last four passes: the model's own, with the SAE, zeros, the mean.
    own, with_sae, zeros, mean = runs[-4:]
    assert torch.equal(own[~keep], with_sae[~keep])
    assert torch.equal(own[~keep], mean[~keep])
    assert not torch.isclose(own[keep], with_sae[keep]).any()
    assert (zeros != own).all()


def test_positions_that_training_left_out(model):
    sae = transformer(model)
    sae.cfg.metadata.seqpos_slice = (2, 12)
    tokens = store_of(sae, model).get_batch_tokens(PROMPTS)
    cache = model.run_with_cache(tokens)[1]
    output, target = sae(cache[HOOK][:, 2:12]), cache[HOOK_OUT][:, 2:12]
    config = EvalConfig(batch_size_prompts=PROMPTS, compute_variance_metrics=True)

    metrics, _ = run_evals(
        sae,
        store_of(sae, model),
        model,
        eval_config=config,
        exclude_special_tokens=False,
        n_code_tokens=40,
    )

    assert metrics["reconstruction_quality"]["mse"] == pytest.approx(
        (target - output).square().sum(-1).mean().item(), rel=1e-5
    )


def test_the_leak_of_the_release_is_evaluated_as_it_is(model):
    sae = transformer(model, decoder_memory="encoder")
    tokens = store_of(sae, model).get_batch_tokens(PROMPTS)
    cache = model.run_with_cache(tokens)[1]
    keep = ~is_special(tokens, [0])
    with only_tokens(sae, keep):
        residual = (sae(cache[HOOK]) - cache[HOOK_OUT])[keep]
    config = EvalConfig(batch_size_prompts=PROMPTS, compute_variance_metrics=True)

    metrics, _ = run_evals(sae, store_of(sae, model), model, eval_config=config, n_code_tokens=100)

    assert metrics["reconstruction_quality"]["mse"] == pytest.approx(
        residual.square().sum(-1).mean().item(), rel=1e-5
    )
    assert metrics["code"]["quantized_explained_variance"] is None


# Models, sentences


def bidirectional() -> HookedSAETransformer:
    cfg = HookedTransformerConfig.from_dict(
        {**make_model().cfg.to_dict(), "attention_dir": "bidirectional"}
    )
    return HookedSAETransformer(cfg, tokenizer=make_tokenizer()).eval()


@pytest.mark.parametrize("make", [bidirectional, make_headless_encoder])
def test_a_model_without_a_language_model_head_has_no_ce_and_no_kl(make):
    model = make()
    hooks = (
        [HOOK, HOOK_OUT] if make is bidirectional else ["blocks.0.hook_out", "blocks.1.hook_out"]
    )
    sae = between(make_clvq(d_out=D_IN, decoder="transformer"), *hooks)
    store = SentenceStore(
        model, SENTENCES, hooks, context_size=12, store_batch_size_prompts=len(SENTENCES)
    )
    store.exclude_special_tokens = [0]

    metrics, per_latent = run_evals(sae, store, model, eval_config=everything(), n_code_tokens=10)

    assert set(metrics) == {
        "reconstruction_quality",
        "shrinkage",
        "sparsity",
        "token_stats",
        "code",
        "outlier_tokens",
    }
    assert not any(name.startswith(("ce_", "kl_")) for group in metrics.values() for name in group)
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == 0
    assert metrics["code"]["n_tokens"] == 10
    assert "feature_density" in per_latent


@pytest.mark.parametrize("kind", ["hooked", "bridge", "encoder"])
@torch.no_grad()
def test_padding_makes_no_difference(kind, tmp_path):
    model: Any = {
        "hooked": make_model,
        "bridge": lambda: make_bridge(tmp_path),
        "encoder": make_headless_encoder,
    }[kind]()
    hooks = [HOOK, HOOK_OUT] if kind == "hooked" else ["blocks.0.hook_out", "blocks.1.hook_out"]
    sae = between(make_clvq(d_out=D_IN, decoder="transformer"), *hooks)
    options: Any = {"context_size": 12, "store_batch_size_prompts": 1}
    alone = SentenceStore(model, SENTENCES, hooks, **options)
    fit_codes(sae, torch.cat([alone.paired_batch().lower[0] for _ in SENTENCES]))

    def evaluate(texts: int) -> dict[str, Any]:
        store = SentenceStore(model, SENTENCES, hooks, **options)
        config = get_eval_everything_config(texts, len(SENTENCES) // texts, len(SENTENCES) // texts)
        return run_evals(sae, store, model, eval_config=config, n_code_tokens=10)[0]

    padded, one_by_one = evaluate(len(SENTENCES)), evaluate(1)

    assert set(padded) == set(one_by_one)
    assert ("model_performance_preservation" in padded) == (kind != "encoder")
    # Those that SAELens averages over batches differ.
    for group, names in {
        "model_performance_preservation": None,
        "model_behavior_preservation": None,
        "reconstruction_quality": ["explained_variance", "mse", "cossim"],
        "shrinkage": ["l2_norm_in", "l2_norm_out", "l2_ratio"],
        "sparsity": ["l0", "l1"],
        "token_stats": None,
        "code": ["n_tokens", "explained_variance", "perplexity", "token_purity"],
    }.items():
        for name in names or padded.get(group, ()):
            assert padded[group][name] == pytest.approx(one_by_one[group][name], rel=1e-4), name
    n_tokens = sum(1 + len(text.split()) for text in SENTENCES)  # each begins with BOS
    assert padded["token_stats"]["total_tokens_eval_sparsity_variance"] == n_tokens


def test_a_plain_sae_on_sentences_minds_their_padding():
    model = make_headless_encoder()
    sae = between(topk(), "blocks.0.hook_out", None)
    store = SentenceStore(
        model, SENTENCES, ["blocks.0.hook_out"], context_size=12, store_batch_size_prompts=3
    )
    residuals = []
    for text in SENTENCES:
        tokens = torch.tensor([model.tokenizer(text)["input_ids"]])  # pyright: ignore[reportOptionalCall]
        x = model.run_with_cache(tokens)[1]["blocks.0.hook_out"][~is_special(tokens, [0])]
        residuals.append((sae(x) - x).square().sum(-1))

    config = EvalConfig(compute_variance_metrics=True)
    metrics, _ = run_evals(sae, store, model, eval_config=config, n_code_tokens=5)  # pyright: ignore[reportArgumentType]

    assert metrics["reconstruction_quality"]["mse"] == pytest.approx(
        torch.cat(residuals).mean().item(), rel=1e-5
    )
    assert metrics["code"]["n_tokens"] == 5


def test_a_bridge(tmp_path):
    bridge: Any = make_bridge(tmp_path)
    sae = between(make_transcoder(d_out=4 * D_IN), "blocks.0.hook_out", "blocks.1.mlp.in.hook_out")
    store = store_of(sae, bridge)
    batches = [store.get_batch_tokens(PROMPTS) for _ in range(N_BATCHES)]

    metrics: dict[str, Any] = {}
    for config in (downstream_only(), quality_only()):
        metrics |= run_evals(
            sae, store_of(sae, bridge), bridge, eval_config=config, n_code_tokens=64
        )[0]

    expected, x, y = by_hand(bridge, sae, batches, special_ids(bridge))
    ce = metrics["model_performance_preservation"]
    for name in ("without_sae", *ABLATED):
        assert ce[f"ce_loss_{name}"] == pytest.approx(expected[f"ce_loss_{name}"], rel=1e-5)
    assert metrics["reconstruction_quality"]["mse"] == pytest.approx(
        (x - y).square().sum(-1).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize(("position", "name"), [(0, "hook_name"), (1, "hook_name_out")])
def test_a_hook_that_the_model_does_not_have(model, position, name):
    sae = between(make_transcoder())
    setattr(sae.cfg.metadata, name, "blocks.0.hook_resid_pst")
    store = store_of(between(make_transcoder()), model)

    with pytest.raises(ValueError, match=r"'blocks\.0\.hook_resid_pst'.*Did you mean blocks\.0"):
        run_evals(sae, store, model, eval_config=everything())


def test_no_hook_in_the_metadata(model):
    sae = between(make_transcoder())
    sae.cfg.metadata.hook_name = None

    with pytest.raises(ValueError, match="names no hook point"):
        run_evals(sae, store_of(between(make_transcoder()), model), model)


# How it is asked


FLAGS = {
    "compute_kl": {"model_behavior_preservation"},
    "compute_ce_loss": {"model_performance_preservation"},
    "compute_variance_metrics": {"reconstruction_quality"},
    "compute_l2_norms": {"shrinkage"},
    "compute_sparsity_metrics": {"sparsity"},
    "compute_featurewise_density_statistics": set(),
    "compute_featurewise_weight_based_metrics": set(),
}


@pytest.mark.parametrize("flag", FLAGS)
def test_only_what_is_asked_for_is_computed(model, flag):
    sae = between(make_transcoder())
    config = EvalConfig(batch_size_prompts=PROMPTS, n_eval_reconstruction_batches=1)
    setattr(config, flag, True)

    metrics, per_latent = run_evals(
        sae, store_of(sae, model), model, eval_config=config, n_code_tokens=0
    )

    assert set(metrics) == FLAGS[flag] | {"token_stats"}
    assert set(per_latent) == {
        "compute_featurewise_density_statistics": {
            "feature_density",
            "consistent_activation_heuristic",
        },
        "compute_featurewise_weight_based_metrics": {
            "encoder_norm",
            "encoder_decoder_cosine_sim",
            "encoder_bias",
        },
    }.get(flag, set())


def test_nothing_is_asked_for_by_default(model):
    sae = between(make_transcoder())

    metrics, per_latent = run_evals(sae, store_of(sae, model), model, n_code_tokens=64)

    assert set(metrics) == {"token_stats", "code", "outlier_tokens"}
    assert set(metrics["token_stats"].values()) == {0}
    assert set(per_latent) == {"firing_rates"}


@pytest.mark.parametrize(
    ("flag", "n"),
    [
        ("compute_ce_loss", "n_eval_reconstruction_batches"),
        ("compute_l2_norms", "n_eval_sparsity_variance_batches"),
    ],
)
def test_no_batches_are_refused(model, flag, n):
    sae = between(make_transcoder())

    with pytest.raises(ValueError, match=f"{n} must be at least 1; got 0"):
        run_evals(sae, store_of(sae, model), model, eval_config=EvalConfig(**{flag: True, n: 0}))


def test_both_hooks_come_from_one_pass_which_stops_after_the_higher(monkeypatch):
    model = make_model()
    sae = between(make_transcoder(), "blocks.0.hook_resid_pre", HOOK)
    # Or it would be taken of the first tokens.
    sae.cfg.metadata.outlier_reference_norms = {"blocks.0.hook_resid_pre": 1.0, HOOK: 1.0}
    passes: list[int | None] = []
    forward = type(model).forward

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(kwargs.get("stop_at_layer"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spy)
    config = EvalConfig(
        n_eval_sparsity_variance_batches=3, batch_size_prompts=2, compute_variance_metrics=True
    )

    run_evals(sae, store_of(sae, model), model, eval_config=config, n_code_tokens=50)

    assert passes == [1] * (3 + 1)


def test_it_leaves_the_model_and_the_sae_as_they_were(model):
    sae = transformer(model)
    tokens = store_of(sae, model).get_batch_tokens(2)
    before, x = model(tokens), torch.randn(2, 5, D_IN)
    output = sae(x)

    run_evals(sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=50)

    assert torch.equal(model(tokens), before)
    assert torch.equal(sae(x), output)


def test_a_scaling_factor_that_is_not_folded_in_yet(model):
    sae, folded = transformer(model), transformer(model)
    folded.fold_activation_norm_scaling_factor(1.7)

    metrics, _ = run_evals(
        sae, store_of(sae, model), model, ActivationScaler(1.7), everything(), n_code_tokens=64
    )

    expected, _ = run_evals(
        folded, store_of(folded, model), model, eval_config=everything(), n_code_tokens=64
    )
    for group in ("model_performance_preservation", "reconstruction_quality", "shrinkage"):
        assert metrics[group] == pytest.approx(expected[group], rel=1e-3), group


def test_two_hooks_have_no_whitening_in_common(model):
    sae = between(make_transcoder())
    scaler = ActivationScaler()
    scaler.estimate_whitening(D_IN, iter([torch.randn(200, D_IN)]), n_batches_for_norm_estimate=1)

    with pytest.raises(ValueError, match="cannot be unwhitened"):
        run_evals(sae, store_of(sae, model), model, scaler)


# The code


@torch.no_grad()
def test_the_code_of_a_clvq_vae_by_hand(model):
    n = 137
    sae = clvq(model)
    # The second half of the text, where SAELens' own groups would have been read from the first.
    store = store_of(sae, model)
    tokens = torch.cat([store.get_batch_tokens() for _ in range(4)])
    cache = model.run_with_cache(tokens)[1]
    keep = ~is_special(tokens, special_ids(model))
    codes = sae.code_indices(cache[HOOK])[keep][:n]
    target, output = cache[HOOK_OUT][keep][:n], sae(cache[HOOK])[keep][:n]

    metrics, _ = run_evals(sae, store_of(sae, model), model, n_code_tokens=n)

    code = metrics["code"]
    share = torch.bincount(codes, minlength=N_CODES) / n
    entropy = -torch.xlogy(share, share).sum().item()
    assert code["n_tokens"] == n
    assert code["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-5)
    assert code["bits_per_token"] == pytest.approx(entropy / math.log(2), rel=1e-5)
    assert code["description_length"] == code["support_entropy"] == code["bits_per_token"]
    assert code["codes_in_use"] == len(codes.unique()) > 3
    assert code["share_of_codes_in_use"] == len(codes.unique()) / N_CODES
    use = CodebookUse(N_CODES)
    use.update(codes, tokens[keep][:n])
    assert code["token_purity"] == use.compute().token_purity
    assert code["token_purity_shuffled"] == use.compute().token_purity_shuffled
    assert code["l0"] == code["l0_median"] == 1
    assert code["is_one_bit"]
    assert code["magnitude_entropy"] == 0
    assert code["plug_in_entropy"] is None
    residual = (target - output).square().sum() / (target - target.mean(0)).square().sum()
    assert code["explained_variance"] == pytest.approx(1 - residual.item(), rel=1e-4)
    assert code["quantized_explained_variance"] is None


def test_pairs_of_codes_say_what_the_perplexity_says(model):
    sae = clvq(model)

    metrics, _ = run_evals(sae, store_of(sae, model), model, n_code_tokens=20 * N_CODES)

    code = metrics["code"]
    assert code["plug_in_entropy"] == pytest.approx(code["bits_per_token"])
    assert code["n_distinct_codes"] == code["codes_in_use"]


@pytest.mark.parametrize("kind", [Transcoder, SkipTranscoder])
def test_the_code_of_a_transcoder(model, kind):
    sae = between(make_transcoder(kind, d_out=D_MLP), HOOK, MLP)

    coarse, fine = (
        run_evals(sae, store_of(sae, model), model, n_code_tokens=300, magnitude_bits=bits)[0]
        for bits in (1, 10)
    )

    assert "perplexity" not in fine["code"]
    assert not fine["code"]["is_one_bit"]
    assert fine["code"]["antipodal_dense_pairs"] is not None
    assert coarse["code"]["explained_variance"] == fine["code"]["explained_variance"]
    # What is left at a fine resolution is all, a skip connection included.
    assert fine["code"]["quantized_explained_variance"] == pytest.approx(
        fine["code"]["explained_variance"], rel=1e-3
    )
    assert coarse["code"]["quantized_explained_variance"] != pytest.approx(
        coarse["code"]["explained_variance"], rel=1e-3
    )


def test_a_topk_transcoder_under_training(model):
    cfg = TrainingTopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=D_MLP, k=4)
    sae = between(TrainingTopKTranscoder(cfg), HOOK, MLP)

    metrics, _ = run_evals(
        sae, store_of(sae, model), model, eval_config=everything(), n_code_tokens=64
    )

    assert metrics["sparsity"]["l0"] <= 4
    assert metrics["code"]["n_tokens"] == 64


def test_text_that_ends_before_is_counted_once_and_said(model, caplog):
    sae = clvq(model)
    text = Dataset.from_dict({"text": ["word1 word2 word3 word4 " * 12] * 4})
    store = ActivationsStore.from_sae(
        model, sae, text, streaming=False, store_batch_size_prompts=PROMPTS
    )

    metrics, _ = run_evals(sae, store, model, n_code_tokens=10**6)

    assert 0 < metrics["code"]["n_tokens"] < 200
    assert f"ended after {metrics['code']['n_tokens']} of 1000000 tokens" in caplog.text
