"""How a code is used: how often its latents fire, and how many bits that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from bae_lens.bae import BAE
from bae_lens.nn import binary_entropy


@dataclass(frozen=True, eq=False)
class CodeSummary:
    """Statistics of a code over ``n_tokens`` tokens. A latent fires where it is not zero.

    *Raw* is the code with the polarity it was trained with; *folded* counts a latent that is on for
    more than half of the tokens by how often it is off, min(p, 1 − p), since that is when it says
    something. Folding hides always-on latents, so both are given.

    Attributes:
        n_tokens: tokens seen.
        l0: latents on per token, as the SAE is.
        marginal_entropy: Σ_j H₂(p_j) over all tokens, in bits per token: an upper bound of the
            code's entropy, reached only by independent latents.
        dense_share_10, dense_share_1: share of latents on for more than 10 % and 1 % of tokens, raw.
        dense_share_10_folded, dense_share_1_folded: the same, folded.
        max_density: the densest latent's firing rate, raw.
        dead_share: share of latents that never fired (which for an inverted bit of a BAE means:
            was never off).
        firing_rates: ``[d_sae]``, as the SAE is.
    """

    n_tokens: int
    l0: float
    marginal_entropy: float
    dense_share_10: float
    dense_share_10_folded: float
    dense_share_1: float
    dense_share_1_folded: float
    max_density: float
    dead_share: float
    firing_rates: Tensor

    def to_dict(self) -> dict[str, float]:
        """The scalars, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "firing_rates"}


class CodeStatistics:
    """Streaming statistics of any SAE's activations: ``update(acts)`` … ``compute()``.

    Args:
        d_sae: number of latents.
        flipped: ``[d_sae]``, latents whose polarity was inverted after training (the buffer of a
            saved ``BAE``), so that the raw densities are those of training.
    """

    def __init__(self, d_sae: int, flipped: Tensor | None = None) -> None:
        self.flipped = torch.zeros(d_sae, dtype=torch.bool) if flipped is None else flipped.cpu()
        if self.flipped.shape != (d_sae,):
            raise ValueError(
                f"flipped must have shape ({d_sae},), one entry a latent; got {tuple(self.flipped.shape)}."
            )
        self.n_tokens = 0
        self.n_fired = torch.zeros(d_sae, dtype=torch.int64)

    @torch.no_grad()
    def update(self, acts: Tensor) -> None:
        """Count a batch of activations ``[..., d_sae]`` (dense or sparse; sign does not matter).

        Raises:
            ValueError: if the last dimension is not d_sae, or a value is NaN or infinite.
        """
        d_sae = len(self.n_fired)
        if acts.shape[-1] != d_sae:
            raise ValueError(
                f"These statistics are of {d_sae} latents; got activations of shape {tuple(acts.shape)}."
            )
        if acts.is_sparse:
            acts = acts.to_dense()
        acts = acts.reshape(-1, d_sae)
        if not acts.isfinite().all():
            raise ValueError(
                "Activations have NaN or infinite values; whether a latent fires is not defined for them."
            )
        self.n_tokens += len(acts)
        self.n_fired += (acts != 0).sum(0).cpu()

    def merge(self, other: CodeStatistics) -> None:
        """Add what another instance has counted.

        Raises:
            ValueError: if the two are not of the same code.
        """
        if not torch.equal(self.flipped, other.flipped):
            raise ValueError("Only statistics of the same code (d_sae, flipped) can be merged.")
        self.n_tokens += other.n_tokens
        self.n_fired += other.n_fired

    def compute(self) -> CodeSummary:
        """Statistics of everything seen so far.

        Raises:
            ValueError: if nothing was seen.
        """
        if self.n_tokens == 0:
            raise ValueError("No token was counted: call update() with at least one row first.")
        rates = self.n_fired.double() / self.n_tokens
        raw = torch.where(self.flipped, 1 - rates, rates)
        folded = torch.minimum(rates, 1 - rates)

        def share(p: Tensor, above: float) -> float:
            return (p > above).double().mean().item()

        return CodeSummary(
            n_tokens=self.n_tokens,
            l0=rates.sum().item(),
            marginal_entropy=binary_entropy(rates).sum().item(),
            dense_share_10=share(raw, 0.1),
            dense_share_10_folded=share(folded, 0.1),
            dense_share_1=share(raw, 0.01),
            dense_share_1_folded=share(folded, 0.01),
            max_density=raw.max().item(),
            dead_share=(self.n_fired == 0).double().mean().item(),
            firing_rates=rates.float(),
        )


@torch.no_grad()
def summarise_code(
    sae: SAE[Any], activations: Iterable[Tensor], activation_scaler: ActivationScaler | None = None
) -> tuple[CodeSummary, float]:
    """Encode and decode batches of activations, counting the code and the variance explained.

    Args:
        sae: any SAELens SAE that reconstructs its own input.
        activations: batches ``[n, d_in]`` from its hook point, special tokens left out, unscaled,
            heads flattened.
        activation_scaler: as SAELens trains with, while it is not folded in yet.

    Returns:
        The code's statistics, and the explained variance 1 − Σ‖x − x̂‖² / Σ‖x − mean‖² over all
        batches (SAELens' ``explained_variance``).
    """
    code = CodeStatistics(sae.cfg.d_sae, sae.flipped if isinstance(sae, BAE) else None)
    variance = ExplainedVarianceCalculator()
    scaler = activation_scaler or ActivationScaler()
    with _flat_heads(sae):
        for batch in activations:
            acts = sae.encode(scaler.scale(batch))
            code.update(acts)
            variance.add_batch(sae_output=scaler.unscale(sae.decode(acts)), hidden_acts=batch)
    return code.compute(), variance.compute()


@contextmanager
def _flat_heads(sae: SAE[Any]) -> Iterator[None]:
    """Let an SAE of ``hook_z`` take its heads flattened, as a store gives them."""
    was_on = sae.hook_z_reshaping_mode
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if was_on:
            sae.turn_on_forward_pass_hook_z_reshaping()
