"""What the numbers of an evaluation are, each in a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bae_lens.evals.code_summary import CodeSummary
from bae_lens.files.json_file import finite_or_none

# What stands at the top of a report, where it is known.
HEADLINES = (
    "explained_variance",
    "model_performance_preservation/ce_loss_score",
    "code/l0",
    "code/dead_share",
    "code/dense_share_10",
    "code/marginal_entropy",
    "code/chow_liu_entropy",
    "code/description_length",
    "code/perplexity",
    "code/share_of_codes_in_use",
)

# Two groups have it, of other tokens each: one of them is listed, the one of more tokens where both do.
_EXPLAINED_VARIANCE = ("code/explained_variance", "reconstruction_quality/explained_variance")

# Of latents that fire side by side. Where each token has one code, these say nothing, or less than the
# perplexity and the codes in use do: the bounds of the entropy are then far above it.
OF_LATENTS = frozenset(
    f"code/{name}"
    for name in ("l0", "dead_share", "dense_share_10", "marginal_entropy", "chow_liu_entropy")
)

_ABBREVIATIONS = {"l0", "l1", "l2", "mse", "kl", "ce", "sae"}
_LABELS = {
    "chow_liu_entropy": "Chow–Liu entropy",
    "cossim": "cosine similarity",
    "kl_div_score": "KL divergence score",
    "kl_div_with_ablation": "KL divergence with ablation",
    "kl_div_with_sae": "KL divergence with SAE",
    "l0_5th": "L0, 5th percentile",
    "l0_95th": "L0, 95th percentile",
    "dense_share_10": "dense share, above 10 %",
    "dense_share_10_folded": "dense share, above 10 %, folded",
    "dense_share_1": "dense share, above 1 %",
    "dense_share_1_folded": "dense share, above 1 %, folded",
}
_N_TOKENS = "total_tokens_eval_sparsity_variance"
_EXPLANATIONS = {
    "explained_variance": "Share of the activations' variance that the reconstruction explains; 1 is all of it.",
    "explained_variance_legacy": "Explained variance as a mean over tokens, as older reports have it.",
    "explained_variance_with_outliers": "Explained variance of all tokens, outliers too.",
    "l0_with_outliers": "Latents that fire at a token, outliers too.",
    "n_outlier_tokens": "Tokens left out as outliers (attention sinks), as special tokens are.",
    "multiple": "Outliers are tokens so many times as long as the reference norm, or longer.",
    "reference_norm": "Norm of an ordinary token, where the dictionary reads.",
    "reference_norm_out": "Norm of an ordinary token, where the dictionary writes.",
    "quantized_explained_variance": "Explained variance with strengths rounded as they are for the description length.",
    "mse": "Squared error of the reconstruction, per token.",
    "cossim": "Cosine of activations and their reconstruction; 1 is the same direction.",
    "l2_norm_in": "Mean length of the activations.",
    "l2_norm_out": "Mean length of the reconstructions.",
    "l2_ratio": "Length of the reconstruction over that of the activations; below 1 it shrinks.",
    "relative_reconstruction_bias": "1 where reconstructions are neither too short nor too long.",
    "kl_div_score": "How much of the harm of a zeroed hook point is undone, in next-token distributions; 1 is all.",
    "kl_div_with_ablation": "Kullback–Leibler divergence from the untouched model with the hook point zeroed.",
    "kl_div_with_sae": "Kullback–Leibler divergence from the untouched model with the reconstruction in place.",
    "ce_loss_score": "How much of the loss that zeroing the hook point costs is won back; 1 is all of it.",
    "ce_loss_score_mean_ablation": "How much of the loss that the mean activation costs is won back: harder than against zero.",
    "ce_loss_with_ablation": "Cross-entropy of the model with the hook point zeroed, nats per token.",
    "ce_loss_with_mean_ablation": "Cross-entropy with the mean activation at the hook point.",
    "ce_loss_with_sae": "Cross-entropy with the reconstruction at the hook point.",
    "ce_loss_without_sae": "Cross-entropy of the untouched model.",
    "l0": "Latents that fire at a token, on average.",
    "l0_raw": "Latents that fire at a token; a bit fires where it is 1.",
    "l0_folded": "Latents that fire at a token, one that is mostly on counted where it is off.",
    "l0_std": "How much the latents that fire vary in number between tokens (standard deviation).",
    "l0_5th": "5 % of tokens have at most so many latents.",
    "l0_median": "Half of the tokens have at most so many latents.",
    "l0_95th": "95 % of tokens have at most so many latents.",
    "l1": "Sum of the strengths at a token, on average.",
    "dense_share_10": "Share of latents that fire at more than 10 % of tokens; a bit fires where it is 1.",
    "dense_share_10_folded": "Share above 10 %, a latent that is mostly on counted where it is off.",
    "dense_share_1": "Share of latents that fire at more than 1 % of tokens.",
    "dense_share_1_folded": "Share above 1 %, a latent that is mostly on counted where it is off.",
    "max_density": "Share of tokens at which the densest latent fires.",
    "always_on_share": "Share of latents that fire at more than 99 % of tokens: they say nothing.",
    "dead_share": "Share of latents that never fire.",
    "antipodal_dense_pairs": "Pairs of dense latents that point in opposite directions: one axis cut in two.",
    "exclusive_dense_pairs": "Pairs of dense latents that never fire together.",
    "marginal_entropy": "Bits per token if latents were independent: an upper bound of the code's entropy.",
    "minibatch_entropy": "Marginal entropy of a minibatch, as in training; lower, since a minibatch is small.",
    "minibatch_entropy_miller_madow": "Marginal entropy of a minibatch, corrected for its size.",
    "minibatch_size": "Tokens of a minibatch.",
    "n_minibatches": "Minibatches seen.",
    "chow_liu_entropy": "A tighter upper bound: the marginal entropy less what a tree of pairs of latents shares.",
    "total_correlation": "Bits per token that pairs of latents share (by a tree of pairs).",
    "chance_total_correlation": "What independent latents would seem to share on so few tokens.",
    "plug_in_entropy": "Entropy of the distinct codes seen, in bits per token.",
    "plug_in_ceiling": "What the plug-in entropy cannot pass on so few tokens; near it, it says nothing else.",
    "n_distinct_codes": "Distinct codes seen.",
    "is_one_bit": "Whether each latent has one strength only.",
    "magnitude_entropy": "Bits per token of how strongly latents fire: of their levels, where the code has levels.",
    "magnitude_bits": "Resolution at which strengths are counted; none of levels, which are counted as they are.",
    "support_entropy": "Bits per token of which latents fire.",
    "description_length": "Bits per token that the code needs in all.",
    "n_tokens": "Tokens behind these numbers.",
    "perplexity": "How many codes, used evenly, would have the same entropy.",
    "codes_in_use": "Codes that some token has.",
    "share_of_codes_in_use": "Codes that some token has, as a share of all codes.",
    "bits_per_token": "Bits that the code of a token has, on average.",
    "token_purity": "How often a token is the most frequent of its code; 1: the code only says which token it is.",
    "token_purity_shuffled": "Token purity with codes dealt out at random.",
    "total_tokens_eval_reconstruction": "Tokens behind the scores of the model with the reconstruction.",
    "total_tokens_eval_sparsity_variance": "Tokens behind the reconstruction's quality and sparsity.",
}
# In files of an older version.
_OLD_NAMES = {"quantised_explained_variance": "quantized_explained_variance"}


class Metric(NamedTuple):
    """One number.

    Attributes:
        name: group and name.
        value: None where it is not known.
        explanation: empty where there is none.
        label: what it is called on the page.
        source: which tokens it is of, beside the value; empty where that need not be said.
    """

    name: str
    value: float | int | bool | str | None
    explanation: str
    label: str
    source: str = ""


def list_metrics(summary: CodeSummary | Mapping[str, Any] | None) -> list[Metric]:
    """All numbers of a summary, those of ``HEADLINES`` first.

    Args:
        summary: statistics of a code; or what ``run_evals`` returns and ``bae-lens eval`` writes:
            numbers by name, in groups or without.

    Raises:
        ValueError: if a value is neither a number nor a group of numbers.
    """
    if summary is None:
        return []
    values = summary.to_dict() if isinstance(summary, CodeSummary) else summary
    known = {metric.name: metric for metric in _metrics("code", values)}
    explained = [known.pop(name) for name in _EXPLAINED_VARIANCE if name in known]
    if explained:
        one = next((metric for metric in explained if metric.value is not None), explained[0])
        source = _tokens_of(one, {name: metric.value for name, metric in known.items()})
        label = _label("code", "explained_variance")
        known["explained_variance"] = one._replace(
            name="explained_variance", label=label, source=source
        )
    first = [known.pop(name) for name in HEADLINES if name in known]
    return [*first, *known.values()]


def _tokens_of(explained: Metric, values: Mapping[str, Any]) -> str:
    """Which tokens an explained variance is of, and what it is with the outliers among them."""
    is_of_code = explained.name == _EXPLAINED_VARIANCE[0]
    n = values.get("code/n_tokens" if is_of_code else "token_stats/" + _N_TOKENS)
    said = [f"of {n:,} tokens"] if isinstance(n, int) else []
    group = "outlier_tokens" if is_of_code else "reconstruction_quality_with_outliers"
    name = f"{group}/explained_variance" + ("_with_outliers" if is_of_code else "")
    n_outliers, others = values.get("outlier_tokens/n_outlier_tokens"), values.get(name)
    if isinstance(others, float) and (n_outliers or not is_of_code):
        how_many = f" {n_outliers:,}" if is_of_code else ""
        said.append(f"{others:.3g} with{how_many} outliers")
    return "; ".join(said)


def _metrics(group: str, values: Mapping[str, Any]) -> Iterator[Metric]:
    for name, value in values.items():
        name = _OLD_NAMES.get(name, name)
        if isinstance(value, Mapping):
            yield from _metrics(str(name), value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            explanation = _EXPLANATIONS.get(str(name), "")
            label = _label(group, str(name))
            yield Metric(f"{group}/{name}", finite_or_none(value), explanation, label)
        else:
            raise ValueError(
                f"The metric {name!r} must be a number, or a group of numbers by name; got "
                f"{type(value).__name__}."
            )


def _label(group: str, name: str) -> str:
    words = [word.upper() if word in _ABBREVIATIONS else word for word in name.split("_")]
    label = _LABELS.get(name, " ".join(words))
    return label if group == "code" else f"{group.replace('_', ' ')}: {label}"
