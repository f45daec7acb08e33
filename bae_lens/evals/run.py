"""SAELens' evals and ours, in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig
from sae_lens.evals import run_evals as sae_lens_run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.evals.code_statistics import TOKENS_PER_LATENT
from bae_lens.evals.codebook_use import CodebookUse
from bae_lens.evals.cross_layer import CrossLayerEvaluation, evaluates_here
from bae_lens.evals.reconstruction import mean_ablation_ce
from bae_lens.evals.summarise import Reconstructed, is_one_hot, summarise_code
from bae_lens.evals.text_batch import MaskedTextStore, has_masks
from bae_lens.special_tokens import special_token_ids

logger = logging.getLogger(__name__)

# Pair counts of so many latents take 1 GB.
_MAX_PAIRED = 16_384
# Tokens that are shuffled together, so that a minibatch is not of a few texts only.
_MIXED_TOKENS, _BATCH = 32_768, 4096


class _Recorder:
    """A store that remembers the token batches it has given out."""

    def __init__(self, store: ActivationsStore) -> None:
        self._store = store
        self.served: list[Tensor] = []

    def get_batch_tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        tokens = self._store.get_batch_tokens(*args, **kwargs)
        self.served.append(tokens)
        return tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def run_evals(
    sae: SAE[Any],
    activation_store: ActivationsStore | MaskedTextStore,
    model: HookedRootModule,
    activation_scaler: ActivationScaler | None = None,
    eval_config: EvalConfig | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    exclude_special_tokens: Iterable[int] | bool = True,
    verbose: bool = False,
    n_code_tokens: int = 65_536,
    pair_counts: bool | None = None,
    magnitude_bits: float = 4,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """SAELens' ``run_evals`` with two additions, for any SAE.

    * ``model_performance_preservation`` gains ``ce_loss_with_mean_ablation`` and
      ``ce_loss_score_mean_ablation``, on the same tokens as SAELens' zero-ablation score, where
      ``eval_config.compute_ce_loss`` asks for that;
    * a group ``code``: all scalars of ``CodeSummary`` (densities, death, entropies, description
      length) and the explained variance, over ``n_code_tokens`` further tokens, mixed as SAELens
      mixes them for training; for a CLVQ-VAE also those of ``CodebookSummary``, whose
      ``bits_per_token`` is then the description length.

    All else is what ``sae_lens.run_evals`` returns, untouched, for an SAE that reconstructs its own
    input. One that writes to another hook point (``metadata.hook_name_out``: CLVQ-VAEs, transcoders)
    is scored there, in the same groups by the same names, which SAELens does not do: its explained
    variance, norms and cosine are those of the target, and the model goes on from its output at that
    hook point. KL is then against mean-ablation too. So is every SAE scored on texts that come with
    an attention mask.

    Args:
        sae: the SAE.
        activation_store: gives the text. For the code statistics its own ``exclude_special_tokens``
            decides which tokens are left out, of two hook points the argument here. Encoders need a
            ``SentenceStore`` or the like, whose tokens come with their attention mask. Of a model
            that predicts no next token there are no CE and KL, asked for or not.
        model: the language model.
        activation_scaler: as SAELens trains with, while it is not folded in yet.
        eval_config: which of SAELens' groups to compute; none of them if omitted.
        model_kwargs: passed to the model.
        exclude_special_tokens: as in SAELens.
        verbose: show progress bars.
        n_code_tokens: tokens behind the group ``code``; 0 leaves it out.
        pair_counts: count pairs of latents and distinct codes, for the joint entropy. If omitted:
            where that is sound and small, at 20 tokens a latent or more and up to 16,384 latents (1
            GB of counts).
        magnitude_bits: resolution at which a real-valued code's magnitudes are counted, see
            ``MagnitudeQuantiser``; ``quantised_explained_variance`` is what is left at it.

    Returns:
        Metrics by group, and SAELens' per-latent metrics.

    Raises:
        ValueError: if the SAE's metadata names no hook point, the model lacks one of them, or it has
            no tokenizer to say which tokens are special.
    """
    scaler = activation_scaler or ActivationScaler()
    config = eval_config or EvalConfig()
    kwargs = dict(model_kwargs or {})
    special = special_token_ids(model, exclude_special_tokens)
    codes: Iterator[Tensor | Reconstructed]
    use: CodebookUse | None = None
    if has_masks(activation_store) or evaluates_here(sae):
        evaluation = CrossLayerEvaluation(
            sae, activation_store, model, scaler, kwargs, special, verbose
        )
        metrics, feature_metrics = evaluation.run(config)
        use = CodebookUse(sae.cfg.d_sae) if is_one_hot(sae) else None
        rows = evaluation.rows(n_code_tokens, use)
        codes = map(evaluation.split, _mixed(_first(n_code_tokens, rows, verbose)))
    else:
        metrics, feature_metrics = _same_layer_groups(
            sae, activation_store, model, scaler, config, kwargs, special, verbose
        )
        batches = _activations(sae, activation_store)
        codes = _mixed(_first(n_code_tokens, batches, verbose))
    if n_code_tokens > 0:
        is_sound = sae.cfg.d_sae <= min(n_code_tokens // TOKENS_PER_LATENT, _MAX_PAIRED)
        counts_pairs = is_sound if pair_counts is None else pair_counts
        code, explained_variance, quantised = summarise_code(
            sae, codes, scaler, pair_counts=counts_pairs, magnitude_bits=magnitude_bits
        )
        metrics["code"] = {
            **code.to_dict(),
            "explained_variance": explained_variance,
            "quantised_explained_variance": quantised,
        }
        if use is not None:
            summary = use.compute()
            # Which latent fires is known exactly; as bits that are on or off it looks like more.
            bits = dict.fromkeys(("support_entropy", "description_length"), summary.bits_per_token)
            metrics["code"] |= bits | summary._asdict()
    return metrics, feature_metrics


def _same_layer_groups(
    sae: SAE[Any],
    store: ActivationsStore,
    model: HookedRootModule,
    scaler: ActivationScaler,
    config: EvalConfig,
    model_kwargs: dict[str, Any],
    special_tokens: list[int],
    verbose: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What SAELens returns, with the score against mean-ablation."""
    recorder = _Recorder(store)
    metrics, feature_metrics = sae_lens_run_evals(
        sae=sae,
        activation_store=recorder,  # pyright: ignore[reportArgumentType]
        model=model,
        activation_scaler=scaler,
        eval_config=config,
        model_kwargs=model_kwargs,
        exclude_special_tokens=special_tokens,
        verbose=verbose,
    )
    if config.compute_ce_loss:
        group = metrics["model_performance_preservation"]
        ablated = mean_ablation_ce(
            model,
            sae.cfg.metadata.hook_name,  # pyright: ignore[reportArgumentType]
            recorder.served[: config.n_eval_reconstruction_batches],
            special_tokens,
            sae.cfg.metadata.hook_head_index,
            model_kwargs,
            verbose,
        )
        group["ce_loss_with_mean_ablation"] = ablated
        group["ce_loss_score_mean_ablation"] = (ablated - group["ce_loss_with_sae"]) / (
            ablated - group["ce_loss_without_sae"]
        )
    return metrics, feature_metrics


def _activations(sae: SAE[Any], store: ActivationsStore) -> Iterator[Tensor]:
    while True:
        try:
            batch = store.get_filtered_llm_batch(raise_on_epoch_end=True)
        except StopIteration:
            return
        yield batch.to(sae.device)


def _first(n_tokens: int, batches: Iterator[Tensor], verbose: bool) -> Iterator[Tensor]:
    """The first rows of batches; what is missing is logged."""
    n = 0
    with tqdm(total=n_tokens, desc="Code", unit="tok", leave=False, disable=not verbose) as bar:
        for batch in batches:
            batch = batch[: n_tokens - n]
            n += len(batch)
            bar.update(len(batch))
            yield batch
            if n >= n_tokens:
                return
    logger.warning("The text ended after %d of %d tokens.", n, n_tokens)


def _mixed(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Batches with the tokens of many texts in each, none lost."""
    held: list[Tensor] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= _MIXED_TOKENS:
            yield from _shuffled(held)
            held = []
    if held:
        yield from _shuffled(held)


def _shuffled(batches: list[Tensor]) -> Iterator[Tensor]:
    rows = torch.cat(batches)
    generator = torch.Generator().manual_seed(len(rows))
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    yield from rows[order].split(_BATCH)
