"""The entropy of a set of vectors, through the smallest binary code found that explains them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bae_lens.architectures.bae import BAE, TrainingBAE, TrainingBAEConfig
from bae_lens.checks.fields import ListOf, Number, check
from bae_lens.entropy.pruning import check_prunable, prune
from bae_lens.evals import CodeEvaluation, CodeSummary, summarize_code
from bae_lens.training.fit import fit_activations

logger = logging.getLogger(__name__)

# A code that starts balanced finds bits that are on half of the time, one that starts sparse finds
# rare ones; each gets stuck where the other is at home.
STARTS = (0.5, 0.04)


@dataclass(frozen=True, eq=False)
class EntropyEstimate:
    """An upper bound of the entropy of a set of vectors at a stated fidelity.

    As an estimate of that bound it is low by about ``code.chance_total_correlation``, which matters where
    held-out vectors are few.

    Attributes:
        code: statistics of the code on held-out vectors. ``code.chow_liu_entropy`` is the estimate,
            in bits per vector; ``marginal_entropy`` beside it is what counts duplicated bits twice,
            ``plug_in_entropy`` what the distinct codes say, up to ``plug_in_ceiling``.
        unexplained_variance: of the held-out vectors, with this code.
        max_unexplained: what it was to be at most, on the training vectors.
        trained_unexplained_variance: of the held-out vectors, before pruning.
        trained_marginal_entropy, trained_chow_liu_entropy: of the code on held-out vectors, before
            pruning.
        initial_firing_rate: the start that this code came from.
        n_train: vectors it was trained and pruned on.
        sae: the code itself.
    """

    code: CodeSummary
    unexplained_variance: float
    max_unexplained: float
    trained_unexplained_variance: float
    trained_marginal_entropy: float
    trained_chow_liu_entropy: float
    initial_firing_rate: float
    n_train: int
    sae: BAE

    @property
    def entropy(self) -> float:
        """The estimate: Chow–Liu bound of the code, in bits per vector."""
        assert self.code.chow_liu_entropy is not None
        return self.code.chow_liu_entropy

    def to_dict(self) -> dict[str, Any]:
        """All numbers, flat, for JSON."""
        values = {name: v for name, v in vars(self).items() if name not in ("code", "sae")}
        return (
            {"entropy": self.entropy, "n_bits": self.sae.cfg.d_sae} | values | self.code.to_dict()
        )


def estimate_entropy(
    activations: Tensor,
    held_out: Tensor,
    max_unexplained: float,
    cfg: TrainingBAEConfig | None = None,
    *,
    starts: Sequence[float] = STARTS,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
) -> EntropyEstimate:
    """Bits per vector of the smallest code found that leaves little unexplained.

    A BAE is trained from each start and pruned until what is left unexplained reaches
    ``max_unexplained`` (``bae_lens.entropy.pruning.prune``); of those that hold it on the training vectors,
    the one with the smallest Chow–Liu bound there is taken, and scored on the held-out vectors. Each
    code is a valid description of the vectors, so the shortest is the best bound at hand. It is an upper
    bound: of redundancy that no tree of pairs shows it knows nothing, and a longer training may find
    a shorter code.

    Args:
        activations: ``[n, d_in]``, to train on.
        held_out: ``[m, d_in]``, to score on. Many more than there are bits.
        max_unexplained: share of the variance that may be left unexplained: the fidelity at which
            the entropy is taken. Entropies at different fidelities do not compare.
        cfg: what to train; the default recipe with four latents an input dimension, a budget of one bit each and no
            density cap (which would forbid a fair bit) if omitted. ``initial_firing_rate`` is taken from ``starts``;
            one bit a latent, and no feedback.
        starts: firing rates that bits start from, one training each.
        steps, batch_size, lr, seed, device: see ``fit_activations``.

    Raises:
        ValueError: if there are too few vectors, they are not all finite, they do not vary, no start is
            given, or ``cfg`` has several levels a latent or feedback, or scales each token by itself.
    """
    starts = check("starts", starts, ListOf(Number(above=0, below=1)))
    max_unexplained = check("max_unexplained", max_unexplained, Number(least=0, below=1))
    for name, vectors in (("activations", activations), ("held_out", held_out)):
        if vectors.ndim != 2:
            raise ValueError(f"{name} must have shape [n, d_in]; got {tuple(vectors.shape)}.")
        if not vectors.isfinite().all():
            raise ValueError(f"{name} have NaN or infinite values.")
        if len(vectors) < 2 or bool((vectors == vectors[0]).all()):
            raise ValueError(
                f"{name} do not vary ({len(vectors)} vectors), so there is no variance to explain."
            )
    d_in = activations.shape[1]
    # Of bits to spare, since what is superfluous is pruned.
    cfg = cfg or TrainingBAEConfig(
        d_in=d_in, d_sae=4 * d_in, target_entropy="d_in", max_density=None
    )
    check_prunable(cfg)

    def score(sae: BAE | TrainingBAE, vectors: Tensor) -> CodeEvaluation:
        return summarize_code(sae, vectors.to(device).split(4096), pair_counts=True)

    best: tuple[tuple[float, ...], EntropyEstimate] | None = None
    for start in starts:
        trained = fit_activations(
            replace(cfg, initial_firing_rate=start),
            *(activations, steps, batch_size, lr, seed, device),
        )
        assert isinstance(trained, TrainingBAE)
        sae = prune(trained, activations.to(device), max_unexplained)
        before, held = score(trained, held_out), score(sae, held_out)
        train = score(sae, activations)
        assert train.code.chow_liu_entropy is not None
        assert before.code.chow_liu_entropy is not None
        missed = max(1 - train.explained_variance - max_unexplained, 0)
        # A code that holds the fidelity is better than one that does not; rounding aside.
        rank = (round(missed, 4), train.code.chow_liu_entropy)
        estimate = EntropyEstimate(
            code=held.code,
            unexplained_variance=1 - held.explained_variance,
            max_unexplained=max_unexplained,
            trained_unexplained_variance=1 - before.explained_variance,
            trained_marginal_entropy=before.code.marginal_entropy,
            trained_chow_liu_entropy=before.code.chow_liu_entropy,
            initial_firing_rate=start,
            n_train=len(activations),
            sae=sae,
        )
        if best is None or rank < best[0]:
            best = (rank, estimate)
    assert best is not None
    if best[0][0] > 0:
        logger.warning(
            "No start reached an unexplained variance of %g: the best leaves %.3f of the training "
            "vectors' variance, and the entropy is that of a coarser code. Train longer, raise d_sae "
            "or allow more.",
            *(max_unexplained, max_unexplained + best[0][0]),
        )
    return best[1]
