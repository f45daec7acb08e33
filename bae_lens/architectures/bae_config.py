"""Configuration of a BAE, for inference and for training, and what values it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lens import SAEConfig, TrainingSAEConfig
from typing_extensions import override

from bae_lens.architectures.sae_fields import SAE_FIELDS, SCALES_BY_TOKEN, TRAINING_SAE_FIELDS
from bae_lens.checks.fields import (
    Number,
    OneOf,
    Rule,
    check,
    check_fields,
    number_or_none,
    positive,
    whole,
)
from bae_lens.nn import SURROGATES, Surrogate

# Words for a ``target_entropy``: how many input dimensions share one bit.
_BUDGETS: Mapping[str, int] = {"d_in/16": 16, "d_in": 1}
# Those that training and inference share. Far fewer of either are of use; a slip of the pen would ask for
# all memory, or run without end.
_CODE_FIELDS: Mapping[str, Rule] = {"n_levels": whole(1, 1000), "feedback_steps": whole(0, 100)}
_TRAINING_FIELDS: Mapping[str, Rule] = {
    **TRAINING_SAE_FIELDS,
    **_CODE_FIELDS,
    "initial_feedback_gain": Number(least=0),
    "surrogate": OneOf(SURROGATES),
    "temperature": positive(words=("auto",)),
    "curvature_coefficient": Number(least=0, most=1, words=("auto",)),
    "curvature_warm_up_steps": whole(0),
    "initial_firing_rate": Number(above=0, below=1, or_none=True),
    "entropy_coefficient": Number(least=0),
    "entropy_warm_up_steps": whole(0),
    "entropy_start_step": whole(0),
    "entropy_floor": Number(least=0),
    "target_entropy": positive(
        words=tuple(_BUDGETS),
        or_none=True,
        hint="bits per token; 'd_in' is one per input dimension, 'd_in/16' one for 16 of them",
    ),
    "target_unexplained_variance": Number(above=0, below=1, or_none=True),
    "covariance_coefficient": Number(least=0),
    "covariance_warm_up_steps": whole(0),
    "max_density": Number(above=0, most=1, or_none=True),
    "density_coefficient": Number(least=0),
}


@dataclass
class BAEConfig(SAEConfig):
    """Configuration class for a BAE; its other fields are those of ``SAEConfig``.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    n_levels: int = 1
    """Thresholds a latent, see ``TrainingBAEConfig``."""

    feedback_steps: int = 0
    """How often the encoder takes in what its code has left, see ``TrainingBAEConfig``."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bae"

    @override
    def __post_init__(self) -> None:
        check_fields(self, {**SAE_FIELDS, **_CODE_FIELDS})
        super().__post_init__()


@dataclass
class TrainingBAEConfig(TrainingSAEConfig):
    """Configuration class for training a BAE.

    Coefficients are in SAELens' units: the reconstruction error is summed over d_in and averaged
    over tokens. They refer to inputs of mean norm √d_in, which is why ``normalize_activations``
    defaults to ``"expected_average_only_in"`` here (SAELens: ``"none"``): a one-bit code has no
    magnitudes that could absorb another scale. Remember ``n_batches_for_norm_estimate``, whose
    default of 1,000 batches draws four million tokens.

    The fields of ``TrainingSAEConfig`` are inherited. With ``initial_firing_rate`` set, the decoder
    starts at ``decoder_init_norm`` and is then scaled to fit the first batch.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.

    Examples:
        >>> TrainingBAEConfig(d_in=576, d_sae=2304).target_entropy_bits
        36.0
        >>> TrainingBAEConfig(d_in=576, d_sae=2304, target_entropy="d_in").target_entropy_bits
        576.0
        >>> TrainingBAEConfig(d_in=576, d_sae=2304, target_entropy=150).target_entropy_bits
        150
    """

    normalize_activations: str = "expected_average_only_in"  # type: ignore[assignment]
    """How SAELens scales the inputs; the default gives them mean norm √d_in."""

    n_levels: int = 1
    """Thresholds that a latent has, all on one direction. It is off or at one of so many levels, each
    worth more than the one below, and the entropy is that of the level. 1 is the paper's code: a bit."""

    feedback_steps: int = 0
    """How often the encoder takes in what its code has left: the residual's encoding is added to the
    pre-activations, with a gain that each latent learns, and they are quantized anew."""

    initial_feedback_gain: float = 0.25
    """How much of the residual's encoding each latent takes in at the start; it learns its own. With more,
    latents that have found nothing yet are silenced by those that have."""

    surrogate: Surrogate = "sigmoid"
    """Gradient of the one-bit step: ``"sigmoid"``, ``"identity"`` (what the authors' release does in
    effect) or ``"paper"`` (x(1 − x), as printed)."""

    temperature: float | str = number_or_none("auto", "auto")
    """Width of the sigmoid surrogate. ``"auto"`` is 0.5 for one bit a latent, and 0.7 for levels."""

    curvature_coefficient: float | str = number_or_none("auto", "auto")
    """How much of the error's curvature the gradient of a step takes in. At 0 a step has the gradient of an
    infinitely small change, which takes latents just below a threshold for better than they are; at 1 that
    of the step as it is, which silences latents that have not found anything yet, unless it is warmed up.
    ``"auto"`` is 0 for one bit a latent, and 0.5 for levels."""

    curvature_warm_up_steps: int = 0
    """Steps of linear warm-up of the curvature."""

    initial_firing_rate: float | None = number_or_none(0.04)
    """Share of the first batch on which every bit fires at the start. On that batch the input is
    centered, the encoder scaled to pre-activations of unit variance, the thresholds set, and the
    decoder scaled to fit. dH/dp is 0 at p = 1/2, so a code that starts balanced hardly moves. None
    starts as SAELens initializes."""

    entropy_coefficient: float = 0.04
    """Weight of the minibatch's marginal entropy, per bit. With a ``target_entropy`` it is only where
    the weight starts from."""

    entropy_warm_up_steps: int = 0
    """Steps of linear warm-up of the entropy coefficient, from step 0."""

    entropy_start_step: int = 0
    """Steps before which the entropy term is off (the release: 500 epochs)."""

    entropy_floor: float = 0.0
    """The entropy term is off while the entropy is at or below this many bits (the release's
    ``entropy_threshold``)."""

    target_entropy: float | str | None = number_or_none("d_in/16", *_BUDGETS)
    """Budget in bits per token that the entropy coefficient follows, up and down. ``"d_in/16"`` means one
    bit for 16 input dimensions, ``"d_in"`` one for each, None a fixed coefficient.

    The default is for latents that can be read. On SmolLM2, whose 576 dimensions make it 36 bits, a bit a latent
    explains as much at 37.5 as BatchTopK does at L0 4, and 1.5 to 1.7 times as many of its latents pass the intruder
    test; at 75 bits both leads are gone (``benchmarks/results/interpretability.md``). With levels and feedback both
    last longer. To reconstruct take ``"d_in"`` with ``n_levels=7``, ``feedback_steps=2`` and
    ``max_density=None``. That a wider model should have more bits is taken for granted: one width was measured."""

    target_unexplained_variance: float | None = number_or_none(None)
    """The fidelity that the entropy coefficient follows instead: it rises while less than this share of
    each minibatch's variance is left unexplained, and falls while more is. Needs
    ``target_entropy=None``."""

    covariance_coefficient: float = 0.0
    """Weight of Σ_{i≠j} |C_ij|. Off by default: under an entropy budget it costs explained variance or
    does nothing measurable on a language model (``benchmarks/bae_recipe.py``)."""

    covariance_warm_up_steps: int = 0
    """Steps of linear warm-up of the covariance coefficient."""

    max_density: float | None = number_or_none(0.1)
    """Bits that fire on more than this share of tokens are pushed back, from 0.8 of it on. None leaves
    them alone."""

    density_coefficient: float = 2.0
    """Weight of that push, per unit of density and latent."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bae"

    @override
    def __post_init__(self) -> None:
        check_fields(self, _TRAINING_FIELDS)
        super().__post_init__()
        if self.target_unexplained_variance is not None and self.target_entropy is not None:
            raise ValueError(
                "The entropy coefficient can follow one target only: set target_entropy to None, or "
                f"target_unexplained_variance; got {self.target_entropy!r} and "
                f"{self.target_unexplained_variance}."
            )
        if self.curvature_coefficient not in (0, "auto") and self._scales_by_token:
            raise ValueError(
                "The curvature of the reconstruction error differs between tokens that are scaled one by "
                f"one: with normalize_activations={self.normalize_activations!r} set "
                "curvature_coefficient to 0."
            )

    @property
    def _scales_by_token(self) -> bool:
        return self.normalize_activations in SCALES_BY_TOKEN

    @property
    def step_temperature(self) -> float:
        """``temperature`` as a number."""
        return temperature_of(self.temperature, self.n_levels)

    @property
    def step_curvature(self) -> float:
        """``curvature_coefficient`` as a number; ``"auto"`` is 0 where tokens are scaled one by one."""
        if self.curvature_coefficient == "auto":
            return 0.5 if self.n_levels > 1 and not self._scales_by_token else 0.0
        return float(self.curvature_coefficient)

    @property
    def target_entropy_bits(self) -> float | None:
        """``target_entropy`` as a number of bits per token, or None where there is no target."""
        return budget_in_bits(self.target_entropy, self.d_in)

    @classmethod
    def paper(
        cls, d_in: int, expansion: int = 4, entropy_start_step: int = 0, **overrides: Any
    ) -> TrainingBAEConfig:
        """The recipe of the authors' release, in SAELens' units.

        α_e = α_c = 1e-7 of an element-mean loss (here times d_in), identity surrogate, fixed
        coefficients, no calibration, no budget, no density cap, ``b_dec`` on the output only.
        Train it with Adam at lr 5e-4, batch 512, for 2,000 epochs, the entropy term from epoch 500
        on: give ``entropy_start_step`` as 500 × the number of batches in your data.

        What differs from the release: its inputs are not normalized, where here they have mean norm
        √d_in, so that the coefficients mean the same on every model (for the release's own, pass
        ``normalize_activations="none"``); SAELens' trainer clips gradients at norm 1; weights start
        as SAELens starts them (decoder Kaiming uniform, encoder its transpose) and not as
        ``torch.nn.Linear`` does; the release's surrogate is g·(1 − g) of the upstream gradient g,
        for whose small values ``"identity"`` stands in; and its entropy, log₂(p + 1e-10), pushes a
        bit that is silent in the batch further off, where ours leaves it alone.

        Args:
            d_in: input dimension.
            expansion: d_sae / d_in.
            entropy_start_step: steps before which the entropy term is off.
            **overrides: any field of this config.
        """
        d_in, expansion = check("d_in", d_in, whole(1)), check("expansion", expansion, whole(1))
        recipe: dict[str, Any] = {
            "d_in": d_in,
            "d_sae": expansion * d_in,
            "surrogate": "identity",
            "initial_firing_rate": None,
            "entropy_coefficient": 1e-7 * d_in,
            "entropy_start_step": entropy_start_step,
            "target_entropy": None,
            "covariance_coefficient": 1e-7 * d_in,
            "max_density": None,
            "apply_b_dec_to_input": False,
            "decoder_init_norm": None,
        }
        return cls(**(recipe | overrides))


def temperature_of(temperature: float | str, n_levels: int) -> float:
    """The width of the surrogate, as a number."""
    if temperature == "auto":
        return 0.5 if n_levels == 1 else 0.7
    return float(temperature)


def budget_in_bits(target_entropy: float | str | None, d_in: int) -> float | None:
    """A ``target_entropy`` as a number of bits per token; None where there is no target, or the word is none."""
    if not isinstance(target_entropy, str):
        return target_entropy
    share = _BUDGETS.get(target_entropy)
    return None if share is None else d_in / share
