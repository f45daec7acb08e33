"""Configuration of a CLVQ-VAE, for inference and for training, and what values it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sae_lens import SAEConfig, TrainingSAEConfig
from typing_extensions import override

from bae_lens.architectures.codebook_init import CODEBOOK_INITS, CodebookInit
from bae_lens.architectures.cross_layer import TrainingAcrossLayers, check_cross_layer
from bae_lens.architectures.sae_fields import CROSS_LAYER_FIELDS, SAE_FIELDS, TRAINING_SAE_FIELDS
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

Encoder = Literal["residual", "predictive"]
Decoder = Literal["transformer", "token"]
DecoderMemory = Literal["codes", "encoder"]

_SHARED_FIELDS: Mapping[str, Rule] = {
    **CROSS_LAYER_FIELDS,
    "encoder": OneOf(get_args(Encoder)),
    "predictor_hidden": whole(1, or_none=True),
    "decoder": OneOf(get_args(Decoder)),
    "decoder_memory": OneOf(get_args(DecoderMemory)),
    # A file's word is not taken for more: each layer is built before any weight is read.
    "decoder_layers": whole(0, 1000),
    "decoder_width": whole(1, or_none=True),
    "decoder_heads": whole(1, or_none=True),
    "decoder_mlp_width": whole(1, or_none=True),
}
_TRAINING_FIELDS: Mapping[str, Rule] = {
    "top_k": whole(1, hint="1 is the nearest code"),
    "temperature": positive(hint="for the nearest code set top_k to 1"),
    "ema_decay": Number(least=0, below=1),
    "laplace_epsilon": positive(),
    "revive_after": whole(1, or_none=True),
    "max_revived": whole(0),
    "commitment_coefficient": Number(least=0),
    "codebook_init": OneOf(CODEBOOK_INITS),
    # Of scikit-learn's generator.
    "codebook_init_seed": whole(0, 2**32 - 1),
    "sequence_length": whole(1, or_none=True),
}


@dataclass
class _CrossLayerFields:
    """Fields of both configs, after those of ``SAEConfig``, which come first."""

    apply_b_dec_to_input: bool = False
    """Must be False: the decoder's bias is of another hook point."""

    d_out: int | None = None
    """Width of the higher hook point. None means that of the lower one, ``d_in``."""

    encoder: Encoder = "residual"
    """``"residual"`` is the paper's: the input, of which at most half is transformed, so that codes are of the
    lower hook point's space. ``"predictive"`` is a regression of the activation at the higher hook point: codes
    are of that space, a token has the code nearest to its prediction, and its code is its reconstruction."""

    predictor_hidden: int | None = None
    """Width of the predictive encoder's hidden layer, which is added to its linear map. None means no such
    layer."""

    decoder: Decoder = "transformer"
    """``"transformer"`` is causal, over the codes of a sequence, with positions; ``"token"`` is a
    residual MLP on each code by itself. The predictive encoder needs ``"token"``, and no layers: the best that
    a single code can decode to is itself, the mean of its tokens."""

    decoder_memory: DecoderMemory = "codes"
    """With ``"codes"`` the decoder sees codes only. With ``"encoder"`` a transformer decoder also attends
    to the continuous z, as in the release, which takes the reconstruction past the bottleneck; it is
    here to be compared with."""

    decoder_layers: int = 3
    """Blocks of the decoder."""

    decoder_width: int | None = None
    """Width inside a transformer decoder. None means ``d_in``."""

    decoder_heads: int | None = None
    """Attention heads of a transformer decoder. None means 8, or the largest number below that divides
    the width."""

    decoder_mlp_width: int | None = None
    """Hidden width of a block's MLP. None means 4 times the width."""


@dataclass
class CLVQVAEConfig(_CrossLayerFields, SAEConfig):
    """Configuration class for a CLVQ-VAE.

    ``d_in`` is the width of the lower hook point, ``d_sae`` the number of codes, K. The fields of the
    decoder are documented where they stand, and those of ``SAEConfig`` are inherited.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "clvq_vae"

    @override
    def __post_init__(self) -> None:
        check_fields(self, {**SAE_FIELDS, **_SHARED_FIELDS})
        _check_shared(self)
        super().__post_init__()
        self.d_out = self.d_in if self.d_out is None else self.d_out


@dataclass
class TrainingCLVQVAEConfig(_CrossLayerFields, TrainingAcrossLayers, TrainingSAEConfig):
    """Configuration class for training a CLVQ-VAE.

    Inputs and targets are centered and scaled by the model itself, from the activations that it is
    initialized with: ``normalize_activations`` need not be set. Losses are in those units: squared
    error summed over d_out with the target's variance at d_out, commitment summed over d_in with
    inputs of mean norm √d_in.

    The fields of the decoder are those of ``CLVQVAEConfig``. ``decoder_init_norm``, inherited from
    ``TrainingSAEConfig``, is not used.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    top_k: int = 5
    """Training draws each token's code among so many nearest ones; 1 is the nearest."""

    temperature: float = 0.1
    """Temperature of the draw, in units of the running mean of the squared distance to the nearest
    code."""

    ema_decay: float = 0.98
    """γ, the share of the codebook's running means that a batch leaves."""

    laplace_epsilon: float = 1e-5
    """Vectors that Laplace smoothing adds to each code's count."""

    revive_after: int | None = number_or_none(100, kind=int)
    """Batches after which a code that is nearest to no token is moved onto one. None means never."""

    max_revived: int = 5
    """How many codes a step moves at most."""

    commitment_coefficient: float = 0.5
    """β, weight of ‖z − sg(code)‖² for the residual encoder. The predictive one has no such term."""

    codebook_init: CodebookInit = "scaled_spherical_kmeans++"
    """``"scaled_spherical_kmeans++"``, ``"kmeans++"`` or ``"random"``: see ``initial_codebook``."""

    codebook_init_seed: int = 0
    """Seed of its draws."""

    sequence_length: int | None = None
    """Tokens that belong together in a training batch, in order, for the transformer decoder. None puts
    every token on its own. With ``CrossLayerRunnerConfig`` it is always that of the text."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "clvq_vae"

    @override
    def __post_init__(self) -> None:
        check_fields(self, {**TRAINING_SAE_FIELDS, **_SHARED_FIELDS, **_TRAINING_FIELDS})
        _check_shared(self)
        super().__post_init__()

    @classmethod
    def predictive(
        cls, d_in: int, d_out: int | None = None, n_codes: int = 512, **overrides: Any
    ) -> TrainingCLVQVAEConfig:
        """The encoder that predicts the higher hook point, with what has been measured to suit it.

        A hidden layer of 2·d_in, nearest codes without draws, and a codebook from plain k-means: each of
        these beats what the residual encoder has by default (``benchmarks/results/predictive_encoder.md``).
        Train it at lr 2e-3.

        Args:
            d_in: width of the lower hook point.
            d_out: width of the higher one; None: that of the lower.
            n_codes: K.
            **overrides: any field of this config.
        """
        d_in, n_codes = check("d_in", d_in, whole(1)), check("n_codes", n_codes, whole(1))
        recipe: dict[str, Any] = {
            "d_in": d_in,
            "d_out": d_out,
            "d_sae": n_codes,
            "encoder": "predictive",
            "predictor_hidden": 2 * d_in,
            "decoder": "token",
            "top_k": 1,
            "ema_decay": 0.99,
            "codebook_init": "kmeans++",
        }
        return cls(**(recipe | overrides))

    @classmethod
    def paper(
        cls, d_in: int, d_out: int | None = None, n_codes: int = 400, **overrides: Any
    ) -> TrainingCLVQVAEConfig:
        """The paper's adaptive residual encoder with the values of the authors' first release.

        K = 400, a draw among the 5 nearest codes, γ = 0.99, ε = 1e-5, β = 0.1, no revival, scaled-spherical
        k-means++, W of the encoder at the identity and α at 0.275, a decoder of 6 blocks with 8 heads and an MLP
        of 2,048. Train it with Adam at lr 5e-3, on batches of 128 sentences, for 50 epochs at most.

        What differs from the release:

        * Its decoder also attends to the encoder's continuous output, sees the tokens *after* a token, and
          has no positions. Here it sees the codes up to a token, with positions;
          ``decoder_memory="encoder"`` brings the first back, and then there is no ``decode``. Its blocks are
          post-norm with ReLU and dropout 0.1, ours pre-norm with GELU and none.
        * Its distances are not scaled: T = 1 of squared distances between codes that are 58 to 161 apart, at
          which hardly a draw leaves the nearest code in the logs that it ships. T is here in units of the mean
          squared distance to the nearest code, where 0.02 stands in for it.
        * Its losses are means over elements of unscaled activations. Here both are sums over a token's, of
          inputs of mean norm √d_in and targets of unit variance: β weighs the same where d_in = d_out and
          both hook points vary as much.
        * Its counts start at 1 each, whatever the clusters hold; its codes are looked up after the step has
          moved them; k-means is started 5 times, here once.
        * Its optimizer decays weights by 1e-4, halves the rate where the error on held-out sentences stands still,
          and clips no gradient; SAELens' trainer does neither, and clips at norm 1.

        Args:
            d_in: width of the lower hook point.
            d_out: width of the higher one; None: that of the lower.
            n_codes: K.
            **overrides: any field of this config.
        """
        d_in, n_codes = check("d_in", d_in, whole(1)), check("n_codes", n_codes, whole(1))
        recipe: dict[str, Any] = {
            "d_in": d_in,
            "d_out": d_out,
            "d_sae": n_codes,
            "encoder": "residual",
            "decoder": "transformer",
            "decoder_memory": "codes",
            "decoder_layers": 6,
            "decoder_heads": 8,
            "decoder_mlp_width": 2048,
            "top_k": 5,
            "temperature": 0.02,
            "ema_decay": 0.99,
            "laplace_epsilon": 1e-5,
            "revive_after": None,
            "commitment_coefficient": 0.1,
            "codebook_init": "scaled_spherical_kmeans++",
        }
        return cls(**(recipe | overrides))


def _check_shared(cfg: CLVQVAEConfig | TrainingCLVQVAEConfig) -> None:
    width, heads = cfg.decoder_width or cfg.d_in, cfg.decoder_heads
    if cfg.decoder == "transformer" and heads is not None and width % heads:
        raise ValueError(f"decoder_heads = {heads} must divide the decoder's width, {width}.")
    if cfg.decoder_memory == "encoder" and cfg.decoder == "token":
        raise ValueError("decoder_memory='encoder' needs attention: set decoder to 'transformer'.")
    if cfg.encoder == "predictive" and cfg.decoder != "token":
        raise ValueError(
            "encoder='predictive' makes each code the reconstruction of its tokens, which a decoder of "
            f"whole sequences would not leave it: set decoder to 'token'; got {cfg.decoder!r}."
        )
    if cfg.encoder != "predictive" and cfg.predictor_hidden is not None:
        raise ValueError(
            f"predictor_hidden = {cfg.predictor_hidden} is a width of the predictive encoder: set "
            f"encoder to 'predictive', or predictor_hidden to None; got encoder = {cfg.encoder!r}."
        )
    check_cross_layer(cfg)
