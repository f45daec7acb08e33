"""The verdict of an SAE's metrics, on figures by hand."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
from sae_lens import (
    SAE,
    GatedSAEConfig,
    JumpReLUSAEConfig,
    SAEConfig,
    StandardSAEConfig,
    TopKSAEConfig,
)
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAEConfig

from bae_lens import BAEConfig, CLVQVAEConfig, TrainingBAE, TrainingBAEConfig
from bae_lens.cli.fields import overrides_of
from bae_lens.evals import eval_verdict
from bae_lens.training.config_file import load_config

D: dict[str, Any] = {"d_in": 576, "d_sae": 400}
BAE = BAEConfig(**D)


def code(**changes: Any) -> dict[str, Any]:
    own = {"n_tokens": 65_000, "dead_share": 0.05, "dense_share_10": 0.0, "explained_variance": 0.8}
    return {**own, "description_length": 310.0, "support_entropy": 300.0, "l0": 48.0, **changes}


def model(**changes: Any) -> dict[str, Any]:
    own = {"ce_loss_with_sae": 3.2, "ce_loss_without_sae": 3.0, "ce_loss_with_ablation": 13.0}
    own |= {"ce_loss_with_mean_ablation": 8.0, "ce_loss_score_mean_ablation": 0.96}
    return {**own, **changes}


def metrics(of_code: dict[str, Any] | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    stats = {"total_tokens_eval_reconstruction": 4096}
    groups = {"model_performance_preservation": model(), "token_stats": stats}
    return {**groups, "code": code() if of_code is None else of_code, **changes}


def test_the_finding_has_the_figures_with_their_tokens():
    assert eval_verdict(metrics(), BAE).finding == (
        "On 65,000 tokens 5.0 % of 400 latents never fire (dead) and 0 % fire at more than 10 % (dense); the "
        "reconstruction explains 0.800 of the variance, in 310 bits per token; in the model it costs +0.200 nats per "
        "token on 4,096 tokens, 2.0 % of what zeros cost and 4.0 % of what mean activations cost."
    )


def test_what_was_not_measured_is_not_said():
    encoder = metrics()
    del encoder["model_performance_preservation"]
    assert "model" not in eval_verdict(encoder, BAE).finding
    no_magnitudes = metrics(code(description_length=None))
    assert "300 bits per token without magnitudes" in str(eval_verdict(no_magnitudes, BAE))
    # An ablation that costs nothing has no share.
    free = metrics(model_performance_preservation=model(ce_loss_with_ablation=2.9))
    assert "zeros" not in eval_verdict(free, BAE).finding
    broken = metrics(model_performance_preservation=model(ce_loss_with_sae=float("nan")))
    assert "nats" not in eval_verdict(broken, BAE).finding
    no_code = metrics({"n_tokens": 0})
    assert eval_verdict(no_code, BAE).finding.startswith("In the model it costs")
    assert "--n_code_tokens 65536" in eval_verdict(no_code, BAE).advice
    assert str(eval_verdict({}, BAE)) == "Nothing was measured. Try --n_code_tokens 65536."


@pytest.mark.parametrize(
    ("of_code", "advised"),
    [
        (code(explained_variance=-0.1), "no better than the mean activation"),
        (code(dead_share=0.25), "--sae.d_sae 300."),
        (code(dead_share=0.25, n_tokens=1000), "--n_code_tokens 65536"),
        (code(dead_share=1.0), "a lower --lr,"),
        (code(dense_share_10=0.03), "--sae.max_density 0.05."),
        (code(), "in fewer bits, train with --sae.target_entropy d_in/16 (and --sae.target_unexplained_variance null, where"),
        (code(description_length=45.0), "run bae-lens report; to explain more, train with --sae.target_entropy 90"),
        # A code of which the magnitudes are unknown is judged by what is known.
        (code(description_length=None, support_entropy=50.0), "--sae.target_entropy 100"),
    ],
)  # fmt: skip
def test_what_a_bae_is_advised(of_code, advised):
    assert advised in eval_verdict(metrics(of_code), BAE).advice


@pytest.mark.parametrize("bits", [45.0, 310.0, 560.0])
@pytest.mark.parametrize("shipped", ["smollm2-entropy", "smollm2-read"])
def test_what_a_bae_is_advised_is_what_a_config_takes(bits, shipped):
    advice = eval_verdict(metrics(code(description_length=bits)), BAE).advice
    options = [word.strip("(),.") for word in advice.split()]
    given = [
        text
        for name, value in pairwise(options)
        if name.startswith("--sae.")
        for text in (name, value)
    ]
    assert given[2:4] == ["--sae.target_unexplained_variance", "null"]
    cfg: Any = load_config(shipped, overrides_of([*given, "--sae.n_levels", "1"])).runner.sae
    assert isinstance(cfg, TrainingBAEConfig)
    assert cfg.target_unexplained_variance is None


def test_more_bits_than_there_is_room_for_take_more_latents():
    crowded = BAEConfig(d_in=6000, d_sae=400)
    advice = eval_verdict(metrics(code(description_length=310.0)), crowded).advice
    assert "--sae.target_entropy 620 " in advice
    assert advice.endswith(", and --sae.d_sae 800.")
    # Levels have room for it.
    levels = BAEConfig(d_in=6000, d_sae=400, n_levels=3)
    assert "d_sae" not in eval_verdict(metrics(code(description_length=310.0)), levels).advice
    of_k = metrics(code(description_length=310.0, l0=250))
    advice = eval_verdict(of_k, TopKSAEConfig(d_in=6000, d_sae=400, k=250)).advice
    assert advice.endswith("--sae.k 500, and --sae.d_sae 800.")


@pytest.mark.parametrize(
    ("loss", "mean", "score", "is_worse"),
    [
        (8.5, 8.0, -0.1, True),
        # The mean itself costs nothing here, and the score's sign says the opposite.
        (2.8, 2.9, -1.0, False),
        (3.5, 2.9, 5.0, True),
    ],
)
def test_a_model_that_does_worse_than_with_the_mean_is_told_first(loss, mean, score, is_worse):
    losses = {"ce_loss_with_sae": loss, "ce_loss_with_mean_ablation": mean}
    of_model = model(**losses, ce_loss_score_mean_ablation=score)
    advice = eval_verdict(
        metrics(code(dead_share=0.5), model_performance_preservation=of_model), BAE
    ).advice
    assert ("no better than the mean activation" in advice) == is_worse


@pytest.mark.parametrize(
    ("cfg", "dense", "more"),
    [
        (TopKSAEConfig(**D, k=48), "--sae.k 24.", "--sae.k 96."),
        (JumpReLUSAEConfig(**D), "--sae.k 24 (BatchTopK) or --sae.target_l0 24", "--sae.k 96 (Bat"),
        (StandardSAEConfig(**D), "twice the --sae.l1_coefficient.", "half the --sae.l1_coeffic"),
        (GatedSAEConfig(**D), "twice the --sae.l1_coefficient.", "half the --sae.l1_coefficient."),
        (MatchingPursuitSAEConfig(**D), "about 24 latents on per token.", "about 96 latents on"),
    ],
)
def test_saelens_own_are_advised_in_their_own_fields(cfg: SAEConfig, dense: str, more: str):
    assert dense in eval_verdict(metrics(code(dense_share_10=0.1)), cfg).advice
    assert more in eval_verdict(metrics(code(description_length=50.0)), cfg).advice


def test_a_k_to_read_has_a_bit_for_sixteen_dimensions():
    # 48 latents are 310 bits, and 36 bits are so many.
    assert "--sae.k 6." in eval_verdict(metrics(), TopKSAEConfig(**D, k=48)).advice


def test_a_codebook():
    of_code = code(codes_in_use=38, perplexity=21.3, description_length=4.4)
    cfg = CLVQVAEConfig(d_in=576, d_sae=40, d_out=576)
    verdict = eval_verdict(metrics(of_code), cfg)
    assert "38 of 40 codes are in use, as many as 21 used evenly;" in verdict.finding
    assert "--sae.d_sae 80" in verdict.advice
    few = eval_verdict(metrics({**of_code, "dead_share": 0.5, "codes_in_use": 20}), cfg)
    assert "--sae.d_sae 20." in few.advice


def trained(cfg: Any = BAE, **details: Any) -> Any:
    """The config of one that was trained with that."""
    own = copy.deepcopy(cfg)
    own.metadata.training_architecture_details = details
    return own


READS = {"target_entropy": "d_in/16", "entropy_coefficient": 0.04, "max_density": 0.1}


@pytest.mark.parametrize(
    ("bits", "details", "advised"),
    [
        (
            310.0,
            READS,
            "For latents to read, in fewer bits, train with more steps (--training_tokens) or a higher "
            "--sae.entropy_coefficient, since it was trained for 36 bits per token and has 310 on this text.",
        ),
        # A smaller target would not have come nearer.
        (310.0, {**READS, "target_entropy": 100}, "since it was trained for 100 bits per token"),
        (310.0, {**READS, "target_entropy": 300}, "train with --sae.target_entropy d_in/16 ("),
        (310.0, {**READS, "target_entropy": None}, "train with --sae.target_entropy d_in/16 ("),
        (45.0, READS, "train with --sae.target_entropy 90 ("),
        (
            45.0,
            {**READS, "target_entropy": 90.0},
            "to explain more, train with more steps (--training_tokens), a lower --sae.entropy_coefficient or "
            "--sae.max_density null, since it was trained for 90 bits per token and has 45 on this text.",
        ),
        (45.0, {"target_entropy": 90, "entropy_coefficient": 0}, "or --sae.d_sae 800, since"),
    ],
)
def test_a_bae_is_not_advised_the_target_that_it_has(bits, details, advised):
    verdict = eval_verdict(metrics(code(description_length=bits)), trained(**details))
    assert advised in verdict.advice


@pytest.mark.parametrize(
    ("details", "advised"),
    [
        ({"max_density": 0.1, "density_coefficient": 2.0}, "with --sae.max_density 0.05."),
        ({"max_density": None, "density_coefficient": 2.0}, "with --sae.max_density 0.05."),
        (
            {"max_density": 0.1, "density_coefficient": 0.0},
            "with --sae.max_density 0.05 --sae.density_coefficient 2.",
        ),
        (
            {"max_density": 0.05, "density_coefficient": 2.0},
            "with more steps (--training_tokens) or --sae.density_coefficient 4, since its cap is 0.05 already.",
        ),
        ({"max_density": 0.02, "density_coefficient": 0}, "or --sae.density_coefficient 2, since"),
    ],
)
def test_a_bae_is_not_advised_the_cap_that_it_has(details, advised):
    verdict = eval_verdict(metrics(code(dense_share_10=0.03)), trained(**details))
    assert advised in verdict.advice


JUMPRELU = JumpReLUSAEConfig(**D)
QUADRATIC = {"jumprelu_sparsity_loss_mode": "quadratic", "l0_coefficient": 1.0}


@pytest.mark.parametrize(
    ("cfg", "of_code", "advised"),
    [
        (
            trained(JUMPRELU, k=24, topk_threshold_lr=0.01),
            code(dense_share_10=0.1),
            "train with more steps (--training_tokens) or a higher --sae.topk_threshold_lr, since it was trained for 24 "
            "latents on per token and has 48 on this text.",
        ),
        (trained(JUMPRELU, k=40), code(dense_share_10=0.1), "--sae.k 24 ("),
        (
            trained(JUMPRELU, target_l0=6, **QUADRATIC),
            code(),
            "or a higher --sae.l0_coefficient, since it was trained for 6 latents on",
        ),
        # Without the mode a target counts nothing.
        (
            trained(JUMPRELU, target_l0=6, jumprelu_sparsity_loss_mode="step"),
            code(),
            "--sae.k 6 (B",
        ),
        (
            TopKSAEConfig(**D, k=96),
            code(description_length=50.0),
            "more steps (--training_tokens) or --sae.d_sae 800, since it was trained for 96 latents",
        ),
        # Half of it, rounded, is what it has.
        (TopKSAEConfig(**D, k=2), code(dense_share_10=0.1, l0=2.9), "train with --sae.k 1."),
        (TopKSAEConfig(**D, k=1), code(dense_share_10=0.1, l0=1.0), "train with --sae.d_sae 800."),
        (
            trained(StandardSAEConfig(**D), l1_coefficient=0.0),
            code(),
            "an --sae.l1_coefficient above 0.",
        ),
        (
            trained(GatedSAEConfig(**D), l1_coefficient=0),
            code(description_length=50.0),
            "train with --sae.d_sae 800.",
        ),
    ],
)
def test_saelens_own_are_not_advised_what_they_have(cfg, of_code, advised):
    assert advised in eval_verdict(metrics(of_code), cfg).advice


@pytest.mark.parametrize(
    "details", [None, [], "d_in", {"target_entropy": "much", "max_density": []}]
)
def test_metadata_that_says_nothing_of_the_training(details):
    cfg = trained()
    cfg.metadata.training_architecture_details = details
    advice = eval_verdict(metrics(), cfg).advice
    assert "--sae.target_entropy d_in/16" in advice
    assert "max_density 0.05." in eval_verdict(metrics(code(dense_share_10=0.1)), cfg).advice


def test_what_a_saved_bae_was_trained_with_is_known(tmp_path):
    cfg = TrainingBAEConfig(d_in=8, d_sae=32, target_entropy=2.0)
    TrainingBAE(cfg).save_inference_model(tmp_path)
    saved: Any = SAE.load_from_disk(tmp_path)
    verdict = eval_verdict(metrics(code(description_length=20.0)), saved.cfg)
    assert "since it was trained for 2 bits per token and has 20 on this text" in verdict.advice
