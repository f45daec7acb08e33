"""Evals of SAEs that read one hook point and write another, at the one that they write."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig, ExplainedVarianceCalculator
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.hook_points import take_heads
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.text_batch import (
    READ_AGAIN,
    MaskedTextStore,
    TextBatch,
    read_hooks,
    text_of,
)
from bae_lens.dictionaries import Dictionary
from bae_lens.evals.codebook_use import CodebookUse
from bae_lens.evals.reconstruction import (
    Continuation,
    kl_from,
    next_token_loss,
    predicts_next_token,
)
from bae_lens.evals.summarize import Reconstructed
from bae_lens.nn import widened

logger = logging.getLogger(__name__)

# At the end of a group's name: over all tokens, outliers too.
WITH_OUTLIERS = "_with_outliers"


def evaluates_here(sae: SAE[Any]) -> bool:
    """Whether SAELens' ``run_evals`` is no use for an SAE.

    It compares the output with the input and puts it back where the input came from, and lets a
    decoder over whole sequences see special tokens.
    """
    dictionary = Dictionary(sae)
    return dictionary.writes_elsewhere or dictionary.is_cross_layer


class _Seen(NamedTuple):
    """A batch of text as an SAE sees it: latents fire for tokens that count, and for others too
    unless they are hidden from it."""

    inputs: Tensor
    targets: Tensor
    acts: Tensor
    outputs: Tensor


class CrossLayerEvaluation:
    """SAELens' groups of metrics, by the same names, for an SAE that writes to ``hook_name_out``.

    The target is the activation at that hook point, and that is where the model goes on from the
    reconstruction. Both hook points are read in one forward pass. Special tokens and padding are
    hidden from an SAE that decodes whole sequences, as in training, and keep their own activations.

    Args:
        sae: the SAE; where both its hooks are the same, the metrics are SAELens'.
        store: gives the text, see ``TextBatch.read``.
        model: the language model.
        activation_scaler: scales inputs and unscales outputs.
        model_kwargs: passed to the model.
        special_tokens: ids of tokens that do not count.
        verbose: show progress bars.
        outliers: tokens that do not count either, and are treated as special ones are; None: all do.

    Attributes:
        n_counted: tokens of the groups of ``run``, outliers among them.
        n_outliers: outliers among them.

    Raises:
        ValueError: if the metadata names no hook, or activations of two hook points are whitened.
    """

    def __init__(
        self,
        sae: SAE[Any],
        store: ActivationsStore | MaskedTextStore,
        model: HookedRootModule,
        activation_scaler: ActivationScaler,
        model_kwargs: Mapping[str, Any],
        special_tokens: Sequence[int],
        verbose: bool = False,
        outliers: OutlierTokens | None = None,
    ) -> None:
        self.sae, self.store, self.model = sae, store, model
        self.dictionary = dictionary = Dictionary(sae, activation_scaler)
        self.outliers = outliers
        self.n_counted = self.n_outliers = 0
        self.model_kwargs = model_kwargs
        self.special_tokens, self.verbose = special_tokens, verbose
        self._reads_again = False
        self.hook_names = dictionary.hook_names
        if activation_scaler.whitening is not None and dictionary.writes_elsewhere:
            raise ValueError(
                "The activations of one hook point cannot be unwhitened with the covariance of "
                "another. Evaluate with normalize_activations='none'."
            )
        self.head_indices = dictionary.head_indices

    @torch.no_grad()
    def run(self, config: EvalConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``sae_lens.run_evals`` returns; CE and KL, also against mean-ablation, only for a
        model that predicts the next token. ``token_stats`` are of the tokens read.

        Where outliers were left out, each group is there once more with them, by its name and
        ``WITH_OUTLIERS``.
        """
        if config.compute_kl or config.compute_ce_loss:
            _check_positive(config.n_eval_reconstruction_batches, "n_eval_reconstruction_batches")
            if not predicts_next_token(self.model):
                config = replace(config, compute_kl=False, compute_ce_loss=False)
        metrics: dict[str, dict[str, Any]] = defaultdict(dict)
        per_latent: dict[str, Any] = {}
        n_read = [0, 0]
        if config.compute_kl or config.compute_ce_loss:
            groups, n_read[0] = self._downstream(config)
            metrics.update(groups)
        asked = {
            "reconstruction_quality": config.compute_variance_metrics,
            "shrinkage": config.compute_l2_norms,
            "sparsity": config.compute_sparsity_metrics,
        }
        if any(asked.values()) or config.compute_featurewise_density_statistics:
            n = config.n_eval_sparsity_variance_batches
            _check_positive(n, "n_eval_sparsity_variance_batches")
            quality, with_outliers = _Quality(self.sae.cfg.d_sae), _Quality(self.sae.cfg.d_sae)
            n_outliers = self.n_outliers
            for _ in self._bar(range(n), "Sparsity and variance"):
                batch = self._read(config.batch_size_prompts)
                _, inputs, targets = self._activations(batch)
                counted = self._counted(batch, inputs, targets)
                seen = self._code(inputs, targets, counted.valid)
                quality.update(seen, counted.valid)
                if self.outliers is not None:
                    if not counted.valid.equal(batch.valid):
                        seen = self._code(inputs, targets, batch.valid)
                    with_outliers.update(seen, batch.valid)
                n_read[1] += batch.n_tokens
            for of, end in ((quality, ""), (with_outliers, WITH_OUTLIERS)):
                if of is quality or self.n_outliers > n_outliers:
                    computed = of.compute()
                    metrics.update(
                        {group + end: computed[group] for group in asked if asked[group]}
                    )
            if config.compute_featurewise_density_statistics:
                per_latent |= quality.per_latent()
        if config.compute_featurewise_weight_based_metrics:
            per_latent |= _weight_metrics(self.sae)
        if self._reads_again:
            logger.warning(READ_AGAIN)
        names = ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance")
        metrics["token_stats"] = dict(zip(names, n_read, strict=True))
        return dict(metrics), per_latent

    def rows(self, n_tokens: int, use: CodebookUse | None = None) -> Iterator[Tensor]:
        """The next tokens that count, as rows ``[inputs | targets | outputs]`` (see ``split``).

        Args:
            n_tokens: how many, unless the text ends before.
            use: counts their codes, for an SAE of one latent per token.
        """
        if n_tokens <= 0:
            return
        # A store of sentences begins again; SAELens' goes on where the other groups have ended.
        self.store.reset_input_dataset()
        for batch in TextBatch.until_end(self.store, self.special_tokens):
            _, inputs, targets = self._activations(batch)
            counts = batch.valid
            if self.outliers is not None:
                counts = counts & ~self._outliers_in(inputs, targets).to(counts.device)
            seen = self._code(inputs, targets, counts)
            if not counts.equal(batch.valid):
                # Outliers as they come out where they are not hidden from others.
                outliers = (batch.valid & ~counts).to(seen.acts.device)[..., None]
                others = self._code(inputs, targets, batch.valid)
                seen = seen._replace(
                    acts=torch.where(outliers, others.acts, seen.acts),
                    outputs=torch.where(
                        outliers.to(seen.outputs.device), others.outputs, seen.outputs
                    ),
                )
            inputs, targets, acts, outputs = (
                x[batch.valid.to(x.device)][:n_tokens].to(self.sae.device) for x in seen
            )
            if use is not None:
                is_used = counts[batch.valid][:n_tokens]
                tokens = batch.tokens[batch.valid][:n_tokens]
                use.update(acts[is_used.to(acts.device)].argmax(-1), tokens[is_used])
            n_tokens -= len(acts)
            yield torch.cat([inputs, targets, outputs], -1)
            if n_tokens <= 0:
                return

    def split(self, rows: Tensor) -> Reconstructed:
        """The parts of ``rows``."""
        d_out = (rows.shape[1] - self.sae.cfg.d_in) // 2
        return Reconstructed(*rows.split([self.sae.cfg.d_in, d_out, d_out], dim=1))

    def has_outliers(self, batches: Iterable[Tensor]) -> bool:
        """Whether there is one among the tokens of batches that count."""
        for tokens in batches:
            batch = TextBatch.of(tokens, self.special_tokens)
            if not self._counted(batch, *self._activations(batch)[1:]).valid.equal(batch.valid):
                return True
        return False

    # Parts

    def _read(self, n_prompts: int | None = None) -> TextBatch:
        begun = text_of(self.store)
        batch = TextBatch.read(self.store, self.special_tokens, n_prompts)
        self._reads_again |= text_of(self.store) is not begun
        return batch

    def _bar(self, batches: Iterable[Any], what: str) -> Iterable[Any]:
        return tqdm(batches, desc=what, leave=False, disable=not self.verbose)

    @torch.no_grad()
    def _activations(
        self, batch: TextBatch, stop_after: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The model's output, and its activations where the SAE reads and where it writes."""
        output, both = read_hooks(self.model, batch, self.hook_names, self.model_kwargs, stop_after)
        inputs, targets = (take_heads(*x) for x in zip(both, self.head_indices, strict=True))
        return output, inputs, targets

    @torch.no_grad()
    def _code(self, inputs: Tensor, targets: Tensor, valid: Tensor) -> _Seen:
        """What the SAE makes of activations; tokens that do not count are hidden from a decoder."""
        acts, outputs = self.dictionary.reconstruct(inputs, valid)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"The SAE writes activations of width {outputs.shape[-1]}; those at "
                f"{self.hook_names[1]!r} have width {targets.shape[-1]}."
            )
        return _Seen(inputs, targets, acts, outputs.to(targets.device))

    def _outliers_in(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """True where a token is an outlier at either hook point."""
        assert self.outliers is not None
        return self.outliers.mask_between(self.hook_names, inputs, targets)

    def _counted(self, batch: TextBatch, inputs: Tensor, targets: Tensor) -> TextBatch:
        """The batch without its outliers, which are counted."""
        if self.outliers is None:
            return batch
        outliers = self._outliers_in(inputs, targets).to(batch.valid.device)
        self.n_counted += int(batch.valid.sum())
        self.n_outliers += int((batch.valid & outliers).sum())
        return batch._replace(valid=batch.valid & ~outliers)

    def _downstream(self, config: EvalConfig) -> tuple[dict[str, dict[str, float]], int]:
        """CE and KL of the model that goes on from the reconstruction, zeros, or the mean."""
        batches = [
            self._read(config.batch_size_prompts)
            for _ in range(config.n_eval_reconstruction_batches)
        ]
        counted, n_outliers = batches, self.n_outliers
        if self.outliers is not None:
            counted = [self._counted(batch, *self._activations(batch)[1:]) for batch in batches]
        groups = self._scores(counted, config)
        if self.n_outliers > n_outliers:
            others = self._scores(batches, config)
            groups |= {group + WITH_OUTLIERS: values for group, values in others.items()}
        return groups, sum(batch.n_tokens for batch in batches)

    def _scores(
        self, batches: Sequence[TextBatch], config: EvalConfig
    ) -> dict[str, dict[str, float]]:
        """The groups of ``_downstream``, scored on the tokens that count; other tokens keep their activations."""
        point = Continuation(
            self.model, self.hook_names[1], self.head_indices[1], self.model_kwargs
        )
        mean = point.mean(self._bar(batches, "Mean activation"))
        zero = torch.zeros_like(mean)
        ce, kl = defaultdict(list), defaultdict(list)
        for batch in self._bar(batches, "Reconstruction"):
            logits, inputs, targets = self._activations(batch, stop_after=False)
            seen = self._code(inputs, targets, batch.valid)
            ce["without_sae"].append(next_token_loss(logits, batch))
            for name, new, where in (
                ("with_sae", seen.outputs, batch.valid),
                # SAELens' baseline, which takes special tokens away too.
                ("with_ablation", zero, None),
                ("with_mean_ablation", mean, batch.valid),
            ):
                logits_after = point.logits(batch, new, where)
                ce[name].append(next_token_loss(logits_after, batch))
                if config.compute_kl:
                    kl[name].append(kl_from(logits, logits_after, batch))
        groups = {}
        if config.compute_kl:
            groups["model_behavior_preservation"] = _scored("kl_div", kl)
        if config.compute_ce_loss:
            groups["model_performance_preservation"] = _scored("ce_loss", ce)
        return groups


class _Quality:
    """Streaming metrics of codes and reconstructions, each as SAELens defines it."""

    def __init__(self, d_sae: int) -> None:
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.explained_variance = ExplainedVarianceCalculator()
        self.n_fired, self.n_prompts_fired = torch.zeros(2, d_sae, dtype=torch.int64)
        self.n_tokens = 0

    def update(self, seen: _Seen, valid: Tensor) -> None:
        """Count the tokens of a batch that count."""
        fired = (seen.acts != 0) & valid.to(seen.acts.device)[..., None]
        self.n_fired += fired.sum((0, 1)).cpu()
        self.n_prompts_fired += fired.any(1).sum(0).cpu()
        self.n_tokens += int(valid.sum())
        target, output, acts = (
            widened(x[valid.to(x.device)]) for x in (seen.targets, seen.outputs, seen.acts)
        )
        norm, output_norm = target.norm(dim=-1), output.norm(dim=-1)
        residual = (target - output).square().sum(-1)
        self.explained_variance.add_batch(sae_output=output, hidden_acts=target)
        for name, value in {
            "explained_variance_legacy": 1 - residual / (target - target.mean(0)).square().sum(-1),
            "mse": residual,
            "cossim": (target * output).sum(-1) / (norm * output_norm),
            "l2_norm_in": norm,
            "l2_norm_out": output_norm,
            "l2_ratio": output_norm / torch.where(norm < 1e-4, 1, norm),
            "relative_reconstruction_bias": (
                output_norm.square().mean() / (target * output).sum(-1).mean()
            )[None],
            "l0": (acts != 0).sum(-1).float(),
            "l1": acts.abs().sum(-1),
        }.items():
            self.values[name].append(value)

    def compute(self) -> dict[str, dict[str, float]]:
        """The metrics, in SAELens' groups."""
        mean = {name: torch.cat(values).mean().item() for name, values in self.values.items()}
        mean["explained_variance"] = self.explained_variance.compute()
        groups = {
            "reconstruction_quality": (
                *("explained_variance", "explained_variance_legacy", "mse", "cossim"),
            ),
            "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
            "sparsity": ("l0", "l1"),
        }
        return {group: {name: mean[name] for name in names} for group, names in groups.items()}

    def per_latent(self) -> dict[str, list[float]]:
        """How often each latent fires, over tokens and within the texts in which it does."""
        return {
            "feature_density": (self.n_fired / self.n_tokens).tolist(),
            "consistent_activation_heuristic": (self.n_fired / self.n_prompts_fired).tolist(),
        }


def _check_positive(n: int, name: str) -> None:
    if n <= 0:
        raise ValueError(f"eval_config.{name} must be at least 1; got {n}.")


def _scored(kind: str, values: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """Means by their names, with the share of what each ablation loses that the SAE keeps."""
    mean = {name: torch.cat(parts).mean().item() for name, parts in values.items()}
    floor = mean.get("without_sae", 0.0)

    def score(ablated: float) -> float:
        lost = ablated - floor
        return (ablated - mean["with_sae"]) / lost if lost else math.nan

    return {
        f"{kind}_score": score(mean["with_ablation"]),
        **{f"{kind}_{name}": value for name, value in mean.items()},
        f"{kind}_score_mean_ablation": score(mean["with_mean_ablation"]),
    }


def _weight_metrics(sae: SAE[Any]) -> dict[str, list[float]]:
    """SAELens' per-latent metrics of weights, as far as an SAE's shapes allow them."""
    if not (hasattr(sae, "W_enc") and hasattr(sae, "W_dec")):
        return {}
    W_enc, W_dec = widened(sae.W_enc.detach()), widened(sae.W_dec.detach())
    metrics = {"encoder_norm": W_enc.norm(dim=0).tolist()}
    if W_enc.shape[0] == W_dec.shape[1]:
        metrics["encoder_decoder_cosine_sim"] = cosine_similarity(W_enc.T, W_dec).tolist()
    if getattr(sae, "b_enc", None) is not None:
        metrics["encoder_bias"] = sae.b_enc.tolist()  # pyright: ignore[reportCallIssue]
    return metrics
