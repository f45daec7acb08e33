"""What a CLVQ-VAE does in training and in inference alike: encode, decode and fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from bae_lens.architectures.code_kind import ONE_HOT
from bae_lens.architectures.cross_layer import CrossLayerSAE
from bae_lens.nn import (
    AdaptiveResidualEncoder,
    CausalTransformerDecoder,
    PredictiveEncoder,
    TokenDecoder,
    nan_where_not_finite,
    nearest_codes,
    one_hot,
    squared_distances,
)


class CLVQVAEBase(CrossLayerSAE):
    """What the training and the inference class share: encoder, decoder, scales, how to fold."""

    # A buffer of the inference class; in training it is the quantizer that has it.
    codebook: Tensor
    scale: Tensor
    code_kind = ONE_HOT
    _valid: Tensor | None = None

    @override
    def initialize_weights(self) -> None:
        cfg = self.cfg
        kwargs: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.is_predictive:
            self.encoder = PredictiveEncoder(cfg.d_in, self.d_out, cfg.predictor_hidden, **kwargs)
        else:
            self.encoder = AdaptiveResidualEncoder(cfg.d_in, **kwargs)
        if self.is_predictive:
            self.decoder = nn.Identity()
        elif cfg.decoder == "token":
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
        return one_hot

    @property
    def is_predictive(self) -> bool:
        """Whether codes are of the target's space, and each token's nearest to its prediction."""
        return self.cfg.encoder == "predictive"

    @property
    def d_code(self) -> int:
        """Width of a code: that of the encoder's output."""
        return self.d_out if self.is_predictive else self.cfg.d_in

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
    def W_enc(self) -> Float[Tensor, "d_code K"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The codebook: z·W_enc + b_enc, of the encoder's output z, is largest for the nearest code."""
        return self.codebook.T.to(self.dtype)

    @property
    def b_enc(self) -> Float[Tensor, " K"]:
        """−½‖code‖², see ``W_enc``."""
        return (-self.codebook.square().sum(1) / 2).to(self.dtype)

    # Encoding and decoding

    @property
    def decodes_sequences(self) -> bool:
        """Whether the tokens of a sequence are decoded together."""
        return self.cfg.decoder == "transformer"

    @property
    def output_is_decoded_code(self) -> bool:
        """Whether the reconstruction is a function of the codes alone."""
        return self.cfg.decoder_memory == "codes"

    def code_distances(
        self, x: Float[Tensor, "*batch d_in"], among: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "*batch k"]:
        """Squared distances from each encoded token to codes, in float32.

        Args:
            x: activations at the lower hook point.
            among: ids of the codes; all if omitted.
        """
        codes = self.codebook if among is None else self.codebook[among]
        return squared_distances(self.encoder(self.process_sae_in(x)), codes)

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
                    "The mask of only_tokens must have one entry per token, "
                    f"{tuple(acts.shape[:-1])}; got {tuple(self._valid.shape)}."
                )
            acts = torch.where(self._valid.to(acts.device)[..., None], acts, 0)
        return z, hidden_pre, self.hook_sae_acts_post(acts)

    @override
    def encode(self, x: Tensor) -> Tensor:
        """One-hot of the nearest code (times ``scale``): ``[..., d_in]`` → ``[..., K]``.

        A gradient reaches each of its entries; none goes on to the input, see ``one_hot``.
        """
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
        """Reconstruction at the higher hook point: ``[..., d_in]`` → ``[..., d_out]``; NaN of an input that is not finite
        in the SAE's type, which has a nearest code all the same."""
        self.refuse_error_term()
        z, _, acts = self._encode(x)
        memory = z if self.cfg.decoder_memory == "encoder" else None
        outputs = self._decode_acts(acts, memory)
        outputs = nan_where_not_finite(outputs, x.to(self.dtype), outputs.ndim - 1)
        return self.hook_sae_output(outputs)

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
        """What codes decode to, in units of the target's standard deviation, about its mean."""
        if isinstance(self.decoder, nn.Identity):
            return codes if valid is None else torch.where(valid[..., None], codes, 0)
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


@contextmanager
def only_tokens(sae: SAE[Any], valid: Bool[Tensor, "*batch"] | None) -> Iterator[None]:
    """``sae.only_tokens(valid)`` where an SAE has it: where tokens do not see each other, none."""
    hide_others: Any = getattr(sae, "only_tokens", None)
    with nullcontext() if hide_others is None else hide_others(valid):
        yield
