"""SAELens' evals and ours, in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import EvalConfig
from sae_lens.evals import run_evals as sae_lens_run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.first_tokens import first_tokens, warn_if_text_ended
from bae_lens.activations.hook_points import hook_names, hook_shape
from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.activations.rank_share import own_number
from bae_lens.activations.reference_norms import outlier_tokens_of, warn_of_many
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.activations.text_batch import (
    READ_AGAIN,
    MaskedTextStore,
    has_masks,
    no_sequence,
    text_of,
    tokens_until_end,
)
from bae_lens.activations.text_store import Progress
from bae_lens.checks.fields import Number, check, whole
from bae_lens.distributed import from_first, gather_merge, n_ranks, on_every_rank
from bae_lens.evals.code_statistics import TOKENS_PER_LATENT
from bae_lens.evals.codebook_use import CodebookUse
from bae_lens.evals.cross_layer import WITH_OUTLIERS, CrossLayerEvaluation, evaluates_here
from bae_lens.evals.magnitudes import MAX_BITS
from bae_lens.evals.on_ranks import averaged, own_share
from bae_lens.evals.outliers import OutlierScores, described
from bae_lens.evals.reconstruction import mean_ablation_ce
from bae_lens.evals.summarize import Reconstructed, is_one_hot, summarize_code

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
        self.reads_again = False

    def get_batch_tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        begun = text_of(self._store)
        try:
            tokens = self._store.get_batch_tokens(*args, **kwargs)
        except StopIteration:
            raise ValueError(no_sequence(self._store)) from None
        self.reads_again |= text_of(self._store) is not begun
        self.served.append(tokens)
        return tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Served:
    """The very batches that were served, once more.

    Args:
        batches: of token ids.
    """

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = iter(batches)

    def get_batch_tokens(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        return next(self._batches)


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
    magnitude_bits: float | None = 4,
    exclude_outlier_tokens: bool | float | OutlierTokens = True,
    all_ranks: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """SAELens' ``run_evals`` with four additions, for any SAE.

    * ``model_performance_preservation`` gains ``ce_loss_with_mean_ablation`` and
      ``ce_loss_score_mean_ablation``, on the same tokens as SAELens' zero-ablation score, where
      ``eval_config.compute_ce_loss`` asks for that;
    * a group ``code``: all scalars of ``CodeSummary`` (densities, death, entropies, description
      length) and the explained variance, over ``n_code_tokens`` further tokens, mixed as SAELens
      mixes them for training; where the text has not so many left, over the first ones of the whole
      text, and where it has not so many at all, over those that it has, with a warning
      (``n_tokens`` says how many they are; where there is none it stands alone); for a CLVQ-VAE also those of ``CodebookSummary``, whose
      ``bits_per_token`` is then the description length.

    * ``firing_rates`` among the per-latent metrics: how often each latent fires on the tokens of ``code``, as the
      SAE is;

    * outlier tokens (attention sinks other than BOS, see ``bae_lens.activations.outlier_tokens``) are left out as
      special tokens are: not scored, and not replaced in the model. A group ``outlier_tokens`` says
      how many there were among those of ``code``, by what norm, and the explained variance and L0
      with them; any other group in whose text there were some is there once more over all tokens,
      as ``…_with_outliers``.

    All else is what ``sae_lens.run_evals`` returns, untouched, for an SAE that reconstructs its own
    input (with outliers in the text, in the groups ``…_with_outliers``). One that writes to another hook point (``metadata.hook_name_out``: CLVQ-VAEs, transcoders)
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
            where that is sound and small, at 20 tokens per latent or more and up to 16,384 latents (1
            GB of counts).
        magnitude_bits: resolution at which a real-valued code's magnitudes are counted, see
            ``MagnitudeQuantizer``; ``quantized_explained_variance`` is what is left at it. None: they
            are not.
        exclude_outlier_tokens: see ``outlier_tokens_of``; False: none are left out, and SAELens' groups
            are its own. Give the same ``OutlierTokens`` for SAEs that are compared on other texts
            than one.
        all_ranks: every rank of a process group calls this with its own share of the text (see
            ``bae_lens.activations.rank_share.own_text``), evaluates its share of the batches and tokens that are
            asked for, and returns the metrics of all of them: ``code`` of merged counts, other groups as
            ``bae_lens.evals.on_ranks.averaged`` says. Outliers are told by rank 0's norms.

    Returns:
        Metrics by group, and SAELens' per-latent metrics with ``firing_rates``.

    Raises:
        ValueError: if the SAE's metadata names no hook point, the model lacks one of them, or it has
            no tokenizer to say which tokens are special; the text has not one sequence.
    """
    n_code_tokens = check("n_code_tokens", n_code_tokens, whole(0))
    magnitude_bits = check(
        "magnitude_bits", magnitude_bits, Number(least=0, most=MAX_BITS, or_none=True)
    )
    scaler = ActivationScaler() if activation_scaler is None else activation_scaler
    config = EvalConfig() if eval_config is None else eval_config
    kwargs = dict(model_kwargs or {})
    special = special_token_ids(model, exclude_special_tokens)
    n_own_tokens = n_code_tokens
    if all_ranks:
        config, n_own_tokens = own_share(config), own_number(n_code_tokens)
    evaluation: CrossLayerEvaluation | None = None
    is_ours = (
        has_masks(activation_store)
        or evaluates_here(sae)
        or _has_heads_unknown_to_saelens(sae, model, kwargs)
    )
    outliers = None
    if n_code_tokens > 0 or _reads_text(config):
        outliers = outlier_tokens_of(
            exclude_outlier_tokens, sae, activation_store, model, special, kwargs
        )
        if all_ranks:
            outliers = from_first(outliers)
    if is_ours:
        evaluation = CrossLayerEvaluation(
            sae, activation_store, model, scaler, kwargs, special, verbose, outliers
        )
        metrics, feature_metrics = evaluation.run(config)
    else:
        assert not has_masks(activation_store)
        metrics, feature_metrics = _same_layer_groups(
            sae, activation_store, model, scaler, config, kwargs, special, verbose, outliers
        )
    if all_ranks:
        metrics, feature_metrics = averaged(metrics, feature_metrics)
    if n_code_tokens == 0:
        return metrics, feature_metrics
    scores = None
    firing_rates: list[float] = []

    is_sound = sae.cfg.d_sae <= min(n_code_tokens // TOKENS_PER_LATENT, _MAX_PAIRED)
    counts_pairs = is_sound if pair_counts is None else pair_counts

    def code() -> dict[str, Any]:
        """The group ``code``, of the next tokens of the text, up to its end."""
        nonlocal scores, firing_rates
        scores = None if outliers is None else OutlierScores(outliers, hook_names(sae))
        use = CodebookUse(sae.cfg.d_sae) if evaluation is not None and is_one_hot(sae) else None
        if evaluation is None:
            assert not has_masks(activation_store)
            batches = _first(n_own_tokens, _activations(sae, activation_store), verbose)
            codes: Iterator[Tensor | Reconstructed] = _mixed(batches)
        else:
            rows = _first(n_own_tokens, evaluation.rows(n_own_tokens, use), verbose)
            codes = map(evaluation.split, _mixed(rows))
        one = next(codes, None)
        if all_ranks and n_ranks() > 1:
            # None of them waits for one that has nothing.
            with on_every_rank():
                if one is None:
                    raise ValueError("No token of this rank's share of the text counts.")
        if one is None:
            return {"n_tokens": 0}
        summary, explained_variance, quantized = summarize_code(
            sae,
            chain([one], codes),
            scaler,
            pair_counts=counts_pairs,
            magnitude_bits=magnitude_bits,
            outlier_scores=scores,
            all_ranks=all_ranks,
        )
        firing_rates = summary.firing_rates.tolist()
        if use is not None and all_ranks:
            use = gather_merge(use)
        group = {
            **summary.to_dict(),
            "explained_variance": explained_variance,
            "quantized_explained_variance": quantized,
        }
        if use is not None:
            used = use.compute()
            # Which latent fires is known exactly; as bits that are on or off it looks like more.
            bits = dict.fromkeys(("support_entropy", "description_length"), used.bits_per_token)
            group |= bits | used._asdict()
        return group

    def n_read() -> int:
        return metrics["code"]["n_tokens"] + (0 if scores is None else scores.n_outliers)

    metrics["code"] = code()
    if n_read() < n_code_tokens and not has_masks(activation_store):
        # The other groups have read some of a short text, which now begins again: it counts whole.
        metrics["code"] = code()
    n_tokens = n_read()
    if n_tokens == 0:
        logger.warning("There is no group 'code': no token of the text counts.")
    else:
        warn_if_text_ended(n_tokens, n_code_tokens)
    if outliers is not None and scores is not None:
        metrics["outlier_tokens"] = described(outliers, hook_names(sae)) | scores.compute()
        warn_of_many(scores.n_outliers, scores.n_tokens, outliers)
    return metrics, feature_metrics | ({"firing_rates": firing_rates} if firing_rates else {})


def _reads_text(config: EvalConfig) -> bool:
    """Whether a group is asked for that is of text."""
    return any(
        value
        for name, value in vars(config).items()
        if name.startswith("compute_") and name != "compute_featurewise_weight_based_metrics"
    )


def _has_heads_unknown_to_saelens(
    sae: SAE[Any], model: HookedRootModule, model_kwargs: Mapping[str, Any]
) -> bool:
    """Whether a hook point has heads and a name by which SAELens' ``run_evals`` does not know it."""
    hook_name = hook_names(sae)[0]
    if any(name in hook_name for name in ("hook_q", "hook_k", "hook_v", "hook_z")):
        return False
    return len(hook_shape(model, hook_name, **model_kwargs)) > 1


def _same_layer_groups(
    sae: SAE[Any],
    store: ActivationsStore,
    model: HookedRootModule,
    scaler: ActivationScaler,
    config: EvalConfig,
    model_kwargs: dict[str, Any],
    special_tokens: list[int],
    verbose: bool,
    outliers: OutlierTokens | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What SAELens returns, with the score against mean-ablation; where there are outliers in its text,
    that is of all tokens, and the groups of its names are without them."""
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
    if recorder.reads_again:
        logger.warning(READ_AGAIN)
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
    if outliers is None or not recorder.served:
        return metrics, feature_metrics
    others = CrossLayerEvaluation(
        sae,
        _Served(recorder.served),  # pyright: ignore[reportArgumentType]
        model,
        scaler,
        model_kwargs,
        special_tokens,
        verbose,
        outliers,
    )
    if not others.has_outliers(recorder.served):
        return metrics, feature_metrics
    without, features_without = others.run(config)
    with_outliers = {
        f"{group}{WITH_OUTLIERS}": values
        for group, values in metrics.items()
        if group in without and group != "token_stats"
    }
    without = {g: v for g, v in without.items() if not g.endswith(WITH_OUTLIERS)}
    return metrics | without | with_outliers, feature_metrics | features_without


def _activations(sae: SAE[Any], store: ActivationsStore) -> Iterator[Tensor]:
    """Activations of the tokens that count, batch by batch up to the end of the text."""
    if store.cached_activation_dataset is not None:
        while True:
            try:
                batch = store.get_filtered_llm_batch(raise_on_epoch_end=True)
            except StopIteration:
                return
            yield batch.to(sae.device)
    for tokens in tokens_until_end(store):
        # As SAELens' get_filtered_llm_batch.
        activations = store.get_activations(tokens).flatten(0, 1)
        ids = tokens[:, slice(*store.seqpos_slice)].flatten().to(activations.device)
        excluded = store.exclude_special_tokens
        if excluded is not None:
            activations = activations[~torch.isin(ids, excluded.to(ids.device))]
        yield activations.to(sae.device)


def _never_barren(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The batches; an endless text of which no token counts raises."""
    progress = Progress()
    for batch in batches:
        progress.see(len(batch))
        yield batch


def _first(n_tokens: int, batches: Iterator[Tensor], verbose: bool) -> Iterator[Tensor]:
    """The first rows of batches."""
    return first_tokens(_never_barren(batches), n_tokens, "Code", verbose=verbose)


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
