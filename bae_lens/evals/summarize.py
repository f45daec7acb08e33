"""An SAE's code and what it explains, over batches of activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from bae_lens.checks.fields import Number, check, whole
from bae_lens.dictionaries import Dictionary, decoder_vectors, is_one_bit, is_one_hot
from bae_lens.distributed import from_first, gather_merge, on_every_rank
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.evals.code_summary import CodeSummary
from bae_lens.evals.explained_variance import ExplainedVariance
from bae_lens.evals.magnitudes import MAX_BITS, MagnitudeQuantizer
from bae_lens.evals.outliers import OutlierScores

__all__ = [
    "CodeEvaluation",
    "Reconstructed",
    "decoder_vectors",
    "is_one_bit",
    "is_one_hot",
    "summarize_code",
]


class Reconstructed(NamedTuple):
    """Activations of two hook points, and what an SAE made of the one to match the other.

    Attributes:
        inputs: at the hook point that is read.
        targets: at the one that is to be rebuilt.
        outputs: the reconstruction of it, unscaled.
    """

    inputs: Float[Tensor, "n d_in"]
    targets: Float[Tensor, "n d_out"]
    outputs: Float[Tensor, "n d_out"]


class CodeEvaluation(NamedTuple):
    """What ``summarize_code`` returns.

    Attributes:
        code: statistics of the code.
        explained_variance: 1 − Σ‖x − x̂‖² / Σ‖x − mean‖² over all batches (SAELens'
            ``explained_variance``); x is what is to be rebuilt.
        quantized_explained_variance: the same with the magnitudes quantized as they are for
            ``code.description_length``; None without a quantizer, as for bits and levels, of which
            that length is without any rounding.
    """

    code: CodeSummary
    explained_variance: float
    quantized_explained_variance: float | None


@torch.no_grad()
def summarize_code(
    sae: SAE[Any],
    activations: Iterable[Tensor | Reconstructed],
    activation_scaler: ActivationScaler | None = None,
    *,
    pair_counts: bool = False,
    minibatch_size: int = 1024,
    magnitude_bits: float | None = None,
    outlier_scores: OutlierScores | None = None,
    all_ranks: bool = False,
) -> CodeEvaluation:
    """Encode and decode batches of activations, counting the code and the variance explained.

    Args:
        sae: any SAELens SAE.
        activations: batches ``[n, d_in]`` from its hook point, special tokens left out, unscaled,
            heads flattened, that it is to reconstruct. Of an SAE that writes to another hook point,
            or needs whole sequences to decode, batches of both with what it made of them.
        activation_scaler: as SAELens trains with, while it is not folded in yet.
        pair_counts: see ``CodeStatistics``.
        minibatch_size: see ``CodeStatistics``. Shuffle the activations to have the minibatches of
            training.
        magnitude_bits: resolution at which the magnitudes of a real-valued code are quantized. The
            quantizer is fitted on the first batch, which is scored with the others; where nothing fires
            in it, there is none. Ignored for a code of bits or levels, whose values are counted as they are.
        outlier_scores: says which tokens are outliers, which are left out here, and takes in all of
            them; None: none are left out.
        all_ranks: every rank calls this with activations of its own, and what is returned is of all of them
            (``outlier_scores`` too), alike on each: counts are merged, and the quantizer is rank 0's.

    Raises:
        ValueError: if there are no activations, or outliers only, a latent's activation is NaN or
            infinite, or ``magnitude_bits`` is not from 0 to 16.
    """
    minibatch_size = check("minibatch_size", minibatch_size, whole(1))
    magnitude_bits = check(
        "magnitude_bits", magnitude_bits, Number(least=0, most=MAX_BITS, or_none=True)
    )
    code: CodeStatistics | None = None
    plain, quantized = ExplainedVariance(), ExplainedVariance()
    quantizer: MagnitudeQuantizer | None = None
    dictionary = Dictionary(sae, activation_scaler or ActivationScaler())
    for batch in activations:
        is_given = isinstance(batch, Reconstructed)
        inputs, targets = (batch.inputs, batch.targets) if is_given else (batch, batch)
        acts, scales = dictionary.encode_with_scales(inputs)
        outputs = batch.outputs if is_given else dictionary.decode(acts, scales)
        if outlier_scores is not None:
            kept = outlier_scores.kept(inputs, targets, acts, outputs)
            if not kept.any():
                continue
            if not kept.all():
                acts, targets, outputs = (x[kept.to(x.device)] for x in (acts, targets, outputs))
                scales = scales[kept]
        if code is None:
            has_magnitudes = dictionary.kind.is_real_valued and bool((acts != 0).any())
            if magnitude_bits is not None and has_magnitudes:
                quantizer = MagnitudeQuantizer.fit(acts, dictionary.decoder_vectors, magnitude_bits)
            if all_ranks:
                quantizer = from_first(quantizer)
            code = CodeStatistics(
                dictionary.n_latents,
                pair_counts,
                dictionary.flipped,
                minibatch_size,
                quantizer,
                dictionary.level_values,
            )
        code.update(acts)
        plain.add_batch(sae_output=outputs, hidden_acts=targets)
        if quantizer is not None:
            restored = dictionary.decode(quantizer.quantize(acts), scales)
            if is_given:
                # What the output has beside the decoded code: a skip connection, or nothing.
                restored = restored + (outputs - dictionary.decode(acts, scales))
            quantized.add_batch(sae_output=restored, hidden_acts=targets)
    if all_ranks:
        if code is None:
            from_first(quantizer)
        with on_every_rank():
            _check_any(code)
        assert code is not None
        counts = gather_merge(_Counts(code, plain, quantized, outlier_scores))
        code, plain, quantized = counts.code, counts.plain, counts.quantized
        if outlier_scores is not None:
            vars(outlier_scores).update(vars(counts.outlier_scores))
    _check_any(code)
    assert code is not None
    return CodeEvaluation(
        code.compute(sae.W_dec),
        plain.compute(),
        None if quantizer is None else quantized.compute(),
    )


@dataclass
class _Counts:
    """All that one rank counts."""

    code: CodeStatistics
    plain: ExplainedVariance
    quantized: ExplainedVariance
    outlier_scores: OutlierScores | None

    def merge(self, other: _Counts) -> None:
        self.code.merge(other.code)
        self.plain.merge(other.plain)
        self.quantized.merge(other.quantized)
        if self.outlier_scores is not None and other.outlier_scores is not None:
            self.outlier_scores.merge(other.outlier_scores)


def _check_any(code: CodeStatistics | None) -> None:
    if code is None:
        raise ValueError("There are no activations to summarize a code over.")
