"""Cross-Layer VQ-VAE (CLVQ-VAE), arXiv 2506.20040, as a SAELens architecture.

``x → z = (1 − α)·x + α·LN(W·x + b) → nearest of K codes → decoder → ŷ``, where x is a token's
activation at a lower hook point and ŷ the reconstruction of its activation at a higher one. All
that passes from one to the other is which code each token has: with the ``token`` decoder its own,
with the ``transformer`` decoder also those of the tokens before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from sae_lens import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from bae_lens.codebook_init import CODEBOOK_INITS, CodebookInit, initial_codebook
from bae_lens.cross_layer import CrossLayerSAE, check_cross_layer, masked, target_and_output
from bae_lens.fields import number_or_none
from bae_lens.nn import (
    AdaptiveResidualEncoder,
    CausalTransformerDecoder,
    EMACodebook,
    TokenDecoder,
    nearest_codes,
    squared_distances,
    straight_through,
)
from bae_lens.packing import unpack_rows

# pyright: reportIncompatibleVariableOverride=false

Decoder = Literal["transformer", "token"]
DecoderMemory = Literal["codes", "encoder"]

# Buffers of the quantiser; in a state dict they stand at the top level, as the codebook does in the
# inference class.
_QUANTIZER = "quantizer."
# What it keeps beside the codebook.
_STATISTICS = EMACodebook(1, 1, device="meta").state_dict().keys() - {"codebook"}


@dataclass
class _CrossLayerFields:
    """Fields of both configs, after those of ``SAEConfig``, which come first."""

    apply_b_dec_to_input: bool = False
    d_out: int | None = None
    decoder: Decoder = "transformer"
    decoder_memory: DecoderMemory = "codes"
    decoder_layers: int = 3
    decoder_width: int | None = None
    decoder_heads: int | None = None
    decoder_mlp_width: int | None = None


@dataclass
class CLVQVAEConfig(_CrossLayerFields, SAEConfig):
    """Configuration class for a CLVQ-VAE.

    Args:
        d_out (int | None): Width of the higher hook point; None: that of the lower one, ``d_in``.
        decoder (str): ``"transformer"`` (causal, over the codes of a sequence, with positions) or
            ``"token"`` (residual MLP on each code by itself).
        decoder_memory (str): ``"codes"``: the decoder sees codes only. ``"encoder"``: a transformer
            decoder also attends to the continuous z, as in the release, which takes the
            reconstruction past the bottleneck; it is here to be compared with.
        decoder_layers (int): Blocks of the decoder.
        decoder_width (int | None): Inside a transformer decoder; None: ``d_in``.
        decoder_heads (int | None): Of a transformer decoder; None: 8, or the largest number below
            that divides the width.
        decoder_mlp_width (int | None): Hidden width of a block's MLP; None: 4 times the width.
        d_in (int): Width of the lower hook point. Inherited from SAEConfig.
        d_sae (int): Number of codes, K. Inherited from SAEConfig.
        apply_b_dec_to_input (bool): Must be False: the decoder's bias is of another hook point.

    Raises:
        ValueError: if a value is outside its range.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "clvq_vae"

    @override
    def __post_init__(self) -> None:
        _check_shared(self)
        super().__post_init__()
        self.d_out = self.d_in if self.d_out is None else self.d_out


@dataclass
class TrainingCLVQVAEConfig(_CrossLayerFields, TrainingSAEConfig):
    """Configuration class for training a CLVQ-VAE.

    Inputs and targets are centred and scaled by the model itself, from the activations that it is
    initialised with: ``normalize_activations`` need not be set. Losses are in those units: squared
    error summed over d_out with the target's variance at d_out, commitment summed over d_in with
    inputs of mean norm √d_in.

    Args:
        top_k (int): Training draws each token's code among so many nearest ones; 1: the nearest.
        temperature (float): Of the draw, in units of the running mean of the squared distance to
            the nearest code.
        ema_decay (float): γ, the share of the codebook's running means that a batch leaves.
        laplace_epsilon (float): Vectors that Laplace smoothing adds to each code's count.
        revive_after (int | None): Batches after which a code that is nearest to no token is moved
            onto one; None: never.
        max_revived (int): How many codes a step moves at most.
        commitment_coefficient (float): β, weight of ‖z − sg(code)‖².
        codebook_init (str): ``"scaled_spherical_kmeans++"``, ``"kmeans++"`` or ``"random"``.
        codebook_init_seed (int): Of its draws.
        sequence_length (int | None): Tokens that belong together in a training batch, in order, for
            the transformer decoder; None: every token is on its own. With
            ``CrossLayerRunnerConfig`` it is always that of the text.
        d_out (int | None): see ``CLVQVAEConfig``, as for all fields of the decoder.
        decoder_init_norm (float | None): Not used. Inherited from TrainingSAEConfig.

    Raises:
        ValueError: if a value is outside its range.
    """

    top_k: int = 5
    temperature: float = 0.1
    ema_decay: float = 0.98
    laplace_epsilon: float = 1e-5
    revive_after: int | None = number_or_none(100, kind=int)
    max_revived: int = 5
    commitment_coefficient: float = 0.5
    codebook_init: CodebookInit = "scaled_spherical_kmeans++"
    codebook_init_seed: int = 0
    sequence_length: int | None = None

    @override
    @classmethod
    def architecture(cls) -> str:
        return "clvq_vae"

    @override
    def __post_init__(self) -> None:
        _check_shared(self)
        super().__post_init__()
        if self.codebook_init not in CODEBOOK_INITS:
            raise ValueError(
                f"codebook_init must be one of {', '.join(CODEBOOK_INITS)}; "
                f"got {self.codebook_init!r}."
            )
        for name, is_valid, expected in (
            ("top_k", lambda v: v >= 1, "at least 1 (the nearest code)"),
            ("temperature", lambda v: v > 0, "greater than 0; for the nearest code set top_k to 1"),
            ("ema_decay", lambda v: 0 <= v < 1, "at least 0 and below 1"),
            ("laplace_epsilon", lambda v: v > 0, "greater than 0"),
            ("revive_after", lambda v: v is None or v >= 1, "at least 1, or None"),
            ("max_revived", lambda v: v >= 0, "0 or greater"),
            ("commitment_coefficient", lambda v: v >= 0, "0 or greater"),
            ("sequence_length", lambda v: v is None or v >= 1, "at least 1, or None"),
        ):
            if not is_valid(getattr(self, name)):
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)}.")


def _check_shared(cfg: CLVQVAEConfig | TrainingCLVQVAEConfig) -> None:
    for name, choices in (
        ("decoder", get_args(Decoder)),
        ("decoder_memory", get_args(DecoderMemory)),
    ):
        if getattr(cfg, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}; got {getattr(cfg, name)!r}."
            )
    for name in ("decoder_width", "decoder_heads", "decoder_mlp_width"):
        value = getattr(cfg, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, or None; got {value}.")
    if cfg.decoder_layers < 0:
        raise ValueError(f"decoder_layers must be 0 or greater; got {cfg.decoder_layers}.")
    width, heads = cfg.decoder_width or cfg.d_in, cfg.decoder_heads
    if cfg.decoder == "transformer" and heads is not None and width % heads:
        raise ValueError(f"decoder_heads = {heads} must divide the decoder's width, {width}.")
    if cfg.decoder_memory == "encoder" and cfg.decoder == "token":
        raise ValueError("decoder_memory='encoder' needs attention: set decoder to 'transformer'.")
    check_cross_layer(cfg)


class _CLVQ(CrossLayerSAE):
    """What the training and the inference class share: encoder, decoder, scales, how to fold."""

    codebook: Tensor
    scale: Tensor
    _valid: Tensor | None = None

    @override
    def initialize_weights(self) -> None:
        cfg = self.cfg
        kwargs: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        self.encoder = AdaptiveResidualEncoder(cfg.d_in, **kwargs)
        if cfg.decoder == "token":
            self.decoder = TokenDecoder(
                cfg.d_in,
                self.d_out,
                n_layers=cfg.decoder_layers,
                d_mlp=cfg.decoder_mlp_width,
                **kwargs,
            )
        else:
            self.decoder = CausalTransformerDecoder(
                cfg.d_in,
                self.d_out,
                d_model=cfg.decoder_width,
                n_layers=cfg.decoder_layers,
                n_heads=cfg.decoder_heads,
                d_mlp=cfg.decoder_mlp_width,
                cross_attention=cfg.decoder_memory == "encoder",
                **kwargs,
            )
        self.register_units()
        # A one-hot has no magnitude: where the norm of W_dec is folded away, it goes here.
        self.register_buffer("scale", torch.ones(cfg.d_sae, **kwargs))

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return _one_hot_of_largest

    # SAELens' names for the weights

    @property
    def W_dec(self) -> Float[Tensor, "K d_out"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What each code decodes to alone, ``decode`` of its one-hot as a sequence of length 1."""
        memory = self.codebook if self.cfg.decoder_memory == "encoder" else None
        return self._decode_vectors(self.codebook, memory=memory) / self.scale[:, None]

    @property
    def b_dec(self) -> Float[Tensor, " d_out"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Zero: the target's mean is in every row of ``W_dec``."""
        return torch.zeros_like(self.target_mean)

    @property
    def W_enc(self) -> Float[Tensor, "d_in K"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The codebook: z·W_enc + b_enc is largest for the nearest code."""
        return self.codebook.T.to(self.dtype)

    @property
    def b_enc(self) -> Float[Tensor, " K"]:
        """−½‖code‖², see ``W_enc``."""
        return (-self.codebook.square().sum(1) / 2).to(self.dtype)

    # Encoding and decoding

    def code_indices(self, x: Float[Tensor, "*batch d_in"]) -> Int[Tensor, "*batch"]:
        """Which code each token has: the nearest."""
        return nearest_codes(self.encoder(self.process_sae_in(x)), self.codebook)

    @contextmanager
    def only_tokens(self, valid: Bool[Tensor, "*batch"] | None) -> Iterator[None]:
        """While inside, the other tokens have no code: they encode to zeros.

        A transformer decoder then does not see them, as it did not in training. Pass where padding
        and special tokens are; ``bae_lens.attached`` and ``bae_lens.run_evals`` do.
        """
        previous, self._valid = self._valid, valid
        try:
            yield
        finally:
            self._valid = previous

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, what its distance says for each code, and the one-hot of the nearest."""
        z = self.encoder(self.process_sae_in(x))
        hidden_pre = self.hook_sae_acts_pre(-squared_distances(z, self.codebook))
        acts = self.activation_fn(hidden_pre).to(self.dtype) * self.scale
        if self._valid is not None:
            if self._valid.shape != acts.shape[:-1]:
                raise ValueError(
                    "The mask of only_tokens must have one entry a token, "
                    f"{tuple(acts.shape[:-1])}; got {tuple(self._valid.shape)}."
                )
            acts = torch.where(self._valid.to(acts.device)[..., None], acts, 0)
        return z, hidden_pre, self.hook_sae_acts_post(acts)

    @override
    def encode(self, x: Tensor) -> Tensor:
        """One-hot of the nearest code (times ``scale``): ``[..., d_in]`` → ``[..., K]``."""
        return self._encode(x)[2]

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction at the higher hook point: ``[..., K]`` → ``[..., d_out]``.

        A token whose activations are all zero has no code: a transformer decoder leaves it out, and
        it decodes to zero. ``[n, K]`` is n sequences of length 1 to a transformer decoder.

        Raises:
            ValueError: with ``decoder_memory="encoder"``, whose output is no function of the codes.
        """
        if self.cfg.decoder_memory == "encoder":
            raise ValueError(
                "With decoder_memory='encoder' the reconstruction is not a function of the codes: "
                "there is only forward(x). Train with decoder_memory='codes' to decode."
            )
        return self._decode_acts(feature_acts)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction at the higher hook point: ``[..., d_in]`` → ``[..., d_out]``."""
        self.refuse_error_term()
        z, _, acts = self._encode(x)
        memory = z if self.cfg.decoder_memory == "encoder" else None
        return self.hook_sae_output(self._decode_acts(acts, memory))

    def _decode_acts(self, acts: Tensor, memory: Tensor | None = None) -> Tensor:
        if acts.layout != torch.strided:
            acts = acts.to_dense()
        codes = (acts / self.scale) @ self.codebook.to(acts.dtype)
        return self.hook_sae_recons(self._decode_vectors(codes, (acts != 0).any(-1), memory))

    def _decode_vectors(
        self, codes: Tensor, valid: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor:
        decoded = self.to_target(self._run_decoder(codes.to(self.dtype), valid, memory))
        return decoded if valid is None else torch.where(valid[..., None], decoded, 0)

    def _run_decoder(
        self, codes: Tensor, valid: Tensor | None, memory: Tensor | None = None
    ) -> Tensor:
        """In units of the target's standard deviation, about its mean."""
        if isinstance(self.decoder, TokenDecoder):
            return self.decoder(codes, valid)
        positions = None
        if valid is not None:
            # Counted over the tokens that are there, so that it is the same text with or without
            # BOS and padding on either side.
            positions = (valid.cumsum(-1) - 1).clamp(min=0)
            if valid.ndim == 1:
                positions = torch.zeros_like(positions)
        return self.decoder(codes, valid, memory, positions)

    # Folding

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> Tensor:
        """Fold decoder norms into ``scale`` (SAELens: into the encoder, which an argmin ignores)."""
        norms = self.get_W_dec_norm()
        self.scale.mul_(norms)
        return norms


class CLVQVAE(_CLVQ):
    """Cross-Layer VQ-VAE for inference: ``encode`` gives the one-hot of the nearest code.

    Buffers: ``codebook`` [K, d_in], in float32 whatever the dtype, in the units of the encoder's
    output (inputs centred by ``input_mean`` and times ``input_scale``); ``scale`` [K], what an
    activation is worth, 1 unless the norms of ``W_dec`` were folded into it.

    With the transformer decoder, a model's key-value cache hides the codes of earlier tokens:
    generate with ``use_past_kv_cache=False``.
    """

    float32_buffers = (*CrossLayerSAE.float32_buffers, "codebook")

    cfg: CLVQVAEConfig

    def __init__(self, cfg: CLVQVAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        shape = (self.cfg.d_sae, self.cfg.d_in)
        self.register_buffer("codebook", torch.randn(shape, device=self.device))

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        _drop_statistics(state_dict)


class TrainingCLVQVAE(_CLVQ, TrainingSAE[TrainingCLVQVAEConfig]):
    """Cross-Layer VQ-VAE under training, on SAELens' own trainer.

    A training batch is rows of ``bae_lens.packing.pack_rows``, or ``[n, d_in]`` for one hook point,
    reconstructed from itself (the single-layer VQ-VAE). Loss beside SAELens' ``mse_loss``:
    ``commitment_loss``. The codebook has no gradient: it follows the encoder's output by running
    means, whose state (``ema_count``, ``ema_sum`` …, see ``EMACodebook``) is float32 whatever the
    model's dtype and saved with every checkpoint. (SAELens' loader rounds what it reads to a
    bfloat16 model's dtype first; a resumed run does not.)

    The step's ``sae_in`` is the *target*, so that SAELens' explained variance is that of the higher
    hook point; where the mask excludes a token, both it and the reconstruction are the mean of the
    others, which leaves the explained variance as it is (``explained_variance_legacy``, a mean over
    tokens, then means nothing). Its ``feature_acts`` are the nearest codes, also where another one was drawn, so that
    SAELens' sparsity is that of evaluation.
    """

    cfg: TrainingCLVQVAEConfig
    quantizer: EMACodebook

    def __init__(self, cfg: TrainingCLVQVAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.register_state_dict_post_hook(_to_top_level)
        self.register_load_state_dict_pre_hook(_from_top_level)
        self.register_load_state_dict_post_hook(_note_loaded_calibration)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        self.quantizer = EMACodebook(
            cfg.d_sae,
            cfg.d_in,
            decay=cfg.ema_decay,
            epsilon=cfg.laplace_epsilon,
            revive_after=cfg.revive_after,
            max_revived=cfg.max_revived,
            device=self.device,
        )

    @property
    def codebook(self) -> Float[Tensor, "K d_in"]:
        return self.quantizer.codebook

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"commitment": self.cfg.commitment_coefficient}

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot of the nearest code, and minus the squared distances, both ``[..., K]``."""
        _, hidden_pre, acts = self._encode(x)
        return acts, hidden_pre

    @override
    def encode(self, x: Tensor) -> Tensor:
        return self._encode(x)[2]

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        return _CLVQ.decode(self, feature_acts)

    @torch.compiler.disable()
    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "n width"], batch_size: int | None = None) -> None:
        """Set means, scales and codebook from activations, and the codebook's statistics with it.

        ``training_forward_pass`` calls it with its first batch if nobody did before; more tokens
        make better clusters (``CrossLayerTrainingRunner`` gives it ``initialization_tokens``).

        Args:
            rows: as a training batch.
            batch_size: tokens of a training batch, for the running counts; default: these.

        Raises:
            ValueError: if not all values are finite, or there are fewer distinct tokens than codes.
        """
        lower = self.fit_units(rows).lower
        z = self.encoder(self.process_sae_in(lower)).float()
        codebook, counts = initial_codebook(
            z, self.cfg.d_sae, self.cfg.codebook_init, self.cfg.codebook_init_seed
        )
        distance = squared_distances(z, codebook).amin(-1).mean()
        share = (batch_size or len(rows)) / len(rows)
        self.quantizer.set_codebook(codebook, counts * share, distance)
        self.is_calibrated = True

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step on packed rows; see the class for what it returns.

        Raises:
            ValueError: if the batch is neither packed rows nor of width d_in, or not whole
                sequences.
        """
        rows = step_input.sae_in
        if not self.is_calibrated:
            with torch.autocast(self.device.type, enabled=False):
                self.calibrate(rows)
        lower, upper, valid = unpack_rows(rows, self.cfg.d_in, self.d_out)
        n_valid = valid.sum().clamp(min=1)

        z = self.encoder(self.process_sae_in(masked(lower, valid, self.input_mean)))
        quantized = self.quantizer.quantize(
            z, valid, self.cfg.top_k if self.training else 1, self.cfg.temperature
        )
        decoded = self._decode_sequences(straight_through(z, quantized.codes), valid, z)

        target = (masked(upper, valid, self.target_mean) - self.target_mean) / self.target_scale
        error = masked(decoded.float() - target, valid)
        away = masked(z.float() - quantized.codes, valid)
        losses = {
            "mse_loss": error.square().sum() / n_valid,
            "commitment_loss": step_input.coefficients["commitment"]
            * (away.square().sum() / n_valid),
        }
        with torch.no_grad():
            if self.training:
                self.quantizer.update(
                    z, quantized.indices, valid, quantized.distance, quantized.nearest
                )
            feature_acts = torch.zeros_like(quantized.distances, dtype=z.dtype)
            feature_acts.scatter_(1, quantized.nearest[:, None], valid[:, None].to(z.dtype))
            drawn = ((quantized.indices != quantized.nearest) & valid).sum() / n_valid
            sae_in, sae_out, metrics = target_and_output(upper, self.target_scale * error, valid)
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts * self.scale,
            hidden_pre=-quantized.distances,
            loss=losses["mse_loss"] + losses["commitment_loss"],
            losses=losses,
            # Callables are evaluated on logging steps only.
            metrics={
                **metrics,
                "drawn_off_nearest": drawn,
                "perplexity": self.quantizer.perplexity,
                "codes_in_use": self.quantizer.codes_in_use,
                "revived_codes": partial(torch.clone, self.quantizer.n_revived),
                "alpha": partial(torch.clone, self.encoder.alpha.detach()),
            },
        )

    def _decode_sequences(self, codes: Tensor, valid: Tensor, z: Tensor) -> Tensor:
        """``_run_decoder`` on flat tokens, put into their sequences for it."""
        memory = z if self.cfg.decoder_memory == "encoder" else None
        length = self.cfg.sequence_length
        if length is None or self.cfg.decoder == "token":
            return self._run_decoder(codes, valid, memory)
        if len(codes) % length:
            raise ValueError(
                f"A training batch must be whole sequences of sequence_length = {length} tokens; got "
                f"{len(codes)} tokens. Set the batch size to a multiple of {length}."
            )
        in_sequences: list[Any] = [
            None if t is None else rearrange(t, "(n t) ... -> n t ...", t=length)
            for t in (codes, valid, memory)
        ]
        return rearrange(self._run_decoder(*in_sequences), "n t d -> (n t) d")

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """Not used: the commitment needs z, which ``training_forward_pass`` has."""
        raise NotImplementedError("TrainingCLVQVAE computes its losses in training_forward_pass.")

    def fold_log_sparsity(self, log_sparsity: Tensor) -> Tensor:
        """SAELens' log10 firing rates ``[K]``, per valid token: it divides by masked ones too."""
        rate = 10**log_sparsity
        return torch.log10(rate / rate.sum() + 1e-10).to(log_sparsity.dtype)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a ``CLVQVAE``, with the L0 of valid tokens, each of which has one code."""
        weights_path, cfg_path = super().save_inference_model(path)
        cfg = json.loads(cfg_path.read_text())
        if cfg["metadata"].get("l0") is not None:
            cfg["metadata"]["l0"] = 1.0
            cfg_path.write_text(json.dumps(cfg))
        return weights_path, cfg_path

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if not _STATISTICS & state_dict.keys():
            # Saved for inference, and now to be trained further from where it is.
            codebook = state_dict["codebook"].float()
            fresh = EMACodebook(*codebook.shape, device=codebook.device)
            ones = torch.ones_like(codebook[:, 0])
            fresh.set_codebook(codebook, ones, distance=torch.zeros_like(ones[0]))
            state_dict |= fresh.state_dict()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        _drop_statistics(state_dict)


@contextmanager
def only_tokens(sae: SAE[Any], valid: Bool[Tensor, "*batch"] | None) -> Iterator[None]:
    """``sae.only_tokens(valid)`` where an SAE has it: where tokens do not see each other, none."""
    with sae.only_tokens(valid) if isinstance(sae, _CLVQ) else nullcontext():
        yield


def _one_hot_of_largest(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)


def _drop_statistics(state_dict: dict[str, Any]) -> None:
    for name in _STATISTICS:
        state_dict.pop(name, None)


def _to_top_level(
    module: TrainingCLVQVAE,  # noqa: ARG001
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,  # noqa: ARG001
) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + _QUANTIZER)]:
        state_dict[prefix + name.removeprefix(prefix + _QUANTIZER)] = state_dict.pop(name)


def _from_top_level(
    module: TrainingCLVQVAE, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    for name in dict(module.quantizer.named_buffers()):
        if prefix + name in state_dict:
            state_dict[prefix + _QUANTIZER + name] = state_dict.pop(prefix + name)


def _note_loaded_calibration(module: TrainingCLVQVAE, incompatible_keys: Any) -> None:  # noqa: ARG001
    n_updates = module.quantizer.n_updates
    if not n_updates.is_meta:
        module.is_calibrated = bool(n_updates > 0)
