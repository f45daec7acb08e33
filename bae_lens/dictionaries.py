"""What a dictionary is: an SAE, a transcoder, a BAE, a CLVQ-VAE or VQ-VAE, or clusters of activations.

``Dictionary`` answers what metrics, ablations and collected examples ask of any of them: where it reads and
writes, what its code is made of, how to encode, and where its latents or codes point. ``Clusters`` makes a
dictionary of centroids.

What SAELens' interface does not tell, the architecture is asked for. It may have:

* ``code_kind``: what its code is made of, see ``CodeKind``; without it, real numbers;
* ``level_values``, ``[d_sae, L]``: of a code of L > 1 levels, the values that each latent can have where it fires,
  in ascending order;
* ``code_distances(x, among)``: of a one-hot code, how far each token is from each code;
* ``flipped``, ``[d_sae]``: True for a latent whose polarity was inverted when the SAE was saved;
* ``output_is_decoded_code``: False where ``sae(x)`` is more than ``decode(encode(x))``;
* ``decodes_sequences``: True where the tokens of a sequence are decoded together;
* ``only_tokens(valid)``: a context that hides the other tokens from such a decoder;
* ``is_cross_layer``: True where it is trained on two hook points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE, BatchTopKTrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from sklearn.cluster import KMeans
from torch import Tensor

from bae_lens import fingerprint
from bae_lens.activations import hook_points
from bae_lens.architectures.clvq_vae_base import only_tokens
from bae_lens.architectures.code_kind import ONE_HOT, REAL_VALUED, CodeKind
from bae_lens.architectures.token_scales import (
    TokenScales,
    dense,
    encode_with_scales,
    flat_heads,
    scales_by_token,
)
from bae_lens.checks.fields import check, whole
from bae_lens.checks.finite import check_finite_activations
from bae_lens.nn import one_hot, squared_distances

__all__ = [
    "Clusters",
    "CodeKind",
    "Dictionary",
    "check_reads_tokens",
    "code_kind",
    "decoder_vectors",
    "is_one_bit",
    "is_one_hot",
]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids of activations as a dictionary: the concepts of k-means, or of any clustering.

    Attributes:
        centroids: a token's cluster is that of the nearest one.
        hook_name: name of the hook point that the activations are from.
        name: what tables call it.
    """

    centroids: Float[Tensor, "n d"]
    hook_name: str
    name: str = "k-means"

    @classmethod
    def fit(cls, x: Float[Tensor, "m d"], n: int, hook_name: str, seed: int = 0) -> Clusters:
        """Cluster activations by k-means (scikit-learn, k-means++, one start).

        Raises:
            ValueError: if there are fewer activations than clusters.
        """
        n, seed = check("n", n, whole(1)), check("seed", seed, whole(0, 2**32 - 1))
        if len(x) < n:
            raise ValueError(f"{n} clusters need at least {n} activations; got {len(x)}.")
        kmeans = KMeans(n, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]
        kmeans.fit(x.float().cpu().numpy())
        return cls(torch.from_numpy(kmeans.cluster_centers_), hook_name)

    def code_distances(
        self, x: Float[Tensor, "*batch d"], among: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "*batch k"]:
        """Squared distances from activations to centroids; ``among`` says to which, if not to all."""
        centroids = self.centroids if among is None else self.centroids[among]
        return squared_distances(x, centroids)


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE of any architecture, or clusters, as a function from activations to latents or codes.

    Attributes:
        source: the SAE, trained or in training, or the clusters.
        scaler: scales what is read and unscales what is written, as SAELens trains with while the scale is
            not folded into the weights.

    Raises:
        ValueError: if what fires at a token depends on the tokens before it (SAELens' temporal SAEs).
    """

    source: SAE[Any] | Clusters
    scaler: ActivationScaler = field(default_factory=ActivationScaler)

    def __post_init__(self) -> None:
        check_reads_tokens(self.source, self.name)

    # What it is

    @property
    def name(self) -> str:
        """What tables call it: the architecture of an SAE."""
        source = self.source
        return source.name if isinstance(source, Clusters) else source.cfg.architecture()

    @property
    def weights_sha256(self) -> str:
        """A hash of the weights or centroids, see ``bae_lens.fingerprint``."""
        source = self.source
        if isinstance(source, Clusters):
            return fingerprint.weights_sha256({"centroids": source.centroids})
        return fingerprint.weights_sha256(source)

    @property
    def kind(self) -> CodeKind:
        """What its code is made of."""
        return code_kind(self.source)

    @property
    def depends_on_batch(self) -> bool:
        """Whether what fires at a token depends on the other tokens of a batch (BatchTopK in training)."""
        return isinstance(self.source, BatchTopKTrainingSAE)

    @property
    def n_latents(self) -> int:
        """Number of latents or codes."""
        source = self.source
        return len(source.centroids) if isinstance(source, Clusters) else source.cfg.d_sae

    @property
    def device(self) -> torch.device:
        """The device that its weights or centroids are on."""
        source = self.source
        return source.centroids.device if isinstance(source, Clusters) else source.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights or centroids."""
        source = self.source
        return source.centroids.dtype if isinstance(source, Clusters) else source.dtype

    @property
    def flipped(self) -> Bool[Tensor, " n_latents"] | None:
        """True for latents whose polarity was inverted when the SAE was saved; None where none can be."""
        return getattr(self.source, "flipped", None)

    @property
    def level_values(self) -> Float[Tensor, "n_latents L"] | None:
        """The values that each latent can have where it fires, in ascending order; None unless they are a few."""
        n_values = self.kind.n_values
        if n_values is None or n_values == 1:
            return None
        source: Any = self.source
        return source.level_values.detach()

    # Where it reads and writes

    @property
    def hook_names(self) -> tuple[str, str]:
        """Names of the hook points that are read and written, which may be the same.

        Raises:
            ValueError: if the SAE's metadata names no hook point.
        """
        if isinstance(self.source, Clusters):
            return self.source.hook_name, self.source.hook_name
        return hook_points.hook_names(self.source)

    @property
    def hook_name(self) -> str:
        """Name of the hook point that is read."""
        return self.hook_names[0]

    @property
    def writes_elsewhere(self) -> bool:
        """Whether it writes to another hook point than it reads."""
        return self.hook_names[0] != self.hook_names[1]

    @property
    def head_index(self) -> int | None:
        """The one head that is read; None where all are, side by side."""
        source = self.source
        return None if isinstance(source, Clusters) else source.cfg.metadata.hook_head_index

    @property
    def head_indices(self) -> tuple[int | None, int | None]:
        """The heads that are read and written; at another hook point all are written."""
        return self.head_index, None if self.writes_elsewhere else self.head_index

    @property
    def d_in(self) -> int:
        """Width of the activations that are read."""
        source = self.source
        return source.centroids.shape[1] if isinstance(source, Clusters) else source.cfg.d_in

    @property
    def d_out(self) -> int:
        """Width of the activations that are written."""
        cfg = getattr(self.source, "cfg", None)
        return getattr(cfg, "d_out", None) or self.d_in

    @property
    def context_size(self) -> int | None:
        """Tokens of a text that it was trained on; None where that is not known."""
        source = self.source
        return None if isinstance(source, Clusters) else source.cfg.metadata.context_size

    @property
    def prepend_bos(self) -> bool | None:
        """False where it was trained on text without BOS; None where texts begin as the model has them begin."""
        source = self.source
        is_without = not isinstance(source, Clusters) and source.cfg.metadata.prepend_bos is False
        return False if is_without else None

    # How it encodes and decodes

    @property
    def output_is_decoded_code(self) -> bool:
        """Whether ``decode(encode(x))`` is all of the output.

        It is not for SAELens' skip transcoders, whose ``decode`` leaves the skip connection out, nor for a
        CLVQ-VAE whose decoder sees the encoder's output.
        """
        return not self.has_skip and getattr(self.source, "output_is_decoded_code", True)

    @property
    def has_skip(self) -> bool:
        """Whether a linear map of the input is added to the decoded code, as in a skip transcoder."""
        return hasattr(self.source, "W_skip")

    @property
    def decodes_sequences(self) -> bool:
        """Whether the tokens of a sequence are decoded together, and not each by itself."""
        return getattr(self.source, "decodes_sequences", False)

    @property
    def is_cross_layer(self) -> bool:
        """Whether it is trained on two hook points, of which it may be given the same one twice."""
        return getattr(self.source, "is_cross_layer", False)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Activations of the latents, dense, heads taken flattened; one-hots of the nearest centroids.

        Raises:
            ValueError: if activations are NaN or infinite, which a code of bits or codes would hide.
        """
        return self.encode_with_scales(x)[0]

    @torch.no_grad()
    def encode_with_scales(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch n_latents"], TokenScales]:
        """As ``encode``, and what ``decode`` needs of the tokens beside a code of them."""
        x = self._scaled(x)
        if isinstance(self.source, Clusters):
            return one_hot(-self.source.code_distances(x)), TokenScales()
        return encode_with_scales(self.source, x)

    @torch.no_grad()
    def decode(
        self, acts: Float[Tensor, "*batch n_latents"], scales: TokenScales | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction from the code alone, unscaled, heads flattened; a centroid of clusters.

        Args:
            acts: any code of the tokens.
            scales: of the same tokens, by ``encode_with_scales``; an SAE that scales none does without.

        Raises:
            ValueError: if the SAE does, and there are none.
        """
        source = self.source
        if isinstance(source, Clusters):
            return self.scaler.unscale(acts @ source.centroids.to(acts.dtype))
        if scales_by_token(source):
            if scales is None or not scales.of_tokens:
                raise ValueError(
                    f"With normalize_activations={source.cfg.normalize_activations!r} a code alone does not say how "
                    "long a token is. Give decode the scales that encode_with_scales returns."
                )
            vars(source).update(scales.of_tokens)
        with flat_heads(source):
            return self.scaler.unscale(source.decode(acts))

    @torch.no_grad()
    def reconstruct(
        self, x: Float[Tensor, "*batch d_in"], valid: Bool[Tensor, "*batch"] | None = None
    ) -> tuple[Float[Tensor, "*batch n_latents"], Float[Tensor, "*batch d_out"]]:
        """An SAE's activations and its output, unscaled, with all that it adds to the decoded code.

        Args:
            x: activations at the hook point that is read, heads flattened.
            valid: True where a token counts; the others are hidden from a decoder of whole sequences.

        Raises:
            ValueError: if activations of tokens that count are NaN or infinite.
        """
        sae, x = self.source, self._scaled(x, valid)
        if isinstance(sae, Clusters):
            acts = one_hot(-sae.code_distances(x))
            return acts, self.decode(acts)
        if valid is not None and self.depends_on_batch:
            # Tokens that do not count have no share of what fires in a batch.
            valid = valid.to(x.device)
            counted, scales = encode_with_scales(sae, x[valid])
            parts = counted, self.decode(counted, scales)
            acts, outputs = (part.new_zeros(*x.shape[:-1], part.shape[-1]) for part in parts)
            acts[valid], outputs[valid] = parts
            return acts, outputs
        with only_tokens(sae, valid), flat_heads(sae):
            acts = sae.encode(x)
            outputs = sae.decode(acts) if self.output_is_decoded_code else sae(x)
        return dense(acts), self.scaler.unscale(outputs)

    @torch.no_grad()
    def code_distances(
        self, x: Float[Tensor, "*batch d_in"], among: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "*batch k"]:
        """Squared distances from tokens to codes, in float32.

        Args:
            x: activations at the hook point that is read.
            among: ids of the codes; all if omitted.

        Raises:
            ValueError: if the code is not one-hot, or activations are NaN or infinite.
        """
        source: Any = self.source
        if not hasattr(source, "code_distances"):
            raise ValueError(f"A {self.name} has latents and no codes that a token is near to.")
        x = x.to(self.device) if isinstance(source, Clusters) else x.to(source.device, source.dtype)
        return source.code_distances(
            self._scaled(x), None if among is None else among.to(self.device)
        )

    def _scaled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """What the source reads, on its device and, of an SAE, in its type, which may not hold what x has."""
        x = self.scaler.scale(x.to(self.device))
        source = self.source
        x = x if isinstance(source, Clusters) else x.to(source.dtype)
        name = source.hook_name if isinstance(source, Clusters) else source.cfg.metadata.hook_name
        check_finite_activations(x, repr(name) if name else "the hook point", valid)
        return x

    @property
    def codebook(self) -> Float[Tensor, "K d"]:
        """The codes of a one-hot code as vectors, in float32."""
        source: Any = self.source
        codes = source.centroids if isinstance(source, Clusters) else source.codebook
        return codes.detach().float()

    # Where its latents or codes point

    @property
    def decoder_vectors(self) -> Float[Tensor, "n_latents d_out"]:
        """What each latent's activation is multiplied by in the output; centroids of clusters."""
        if isinstance(self.source, Clusters):
            return self.source.centroids
        return decoder_vectors(self.source)

    @property
    def encoder_vectors(self) -> Float[Tensor, "n_latents d_in"] | None:
        """What each latent is the scalar product with; None where there is no such matrix."""
        encoder: Tensor | None = getattr(self.source, "W_enc", None)
        return None if encoder is None else encoder.T


def code_kind(source: SAE[Any] | Clusters) -> CodeKind:
    """What the code of an SAE or of clusters is made of."""
    return ONE_HOT if isinstance(source, Clusters) else getattr(source, "code_kind", REAL_VALUED)


def is_one_bit(sae: SAE[Any]) -> bool:
    """Whether each latent of an SAE has one value only where it fires, by its architecture."""
    return code_kind(sae).is_one_bit


def is_one_hot(sae: SAE[Any]) -> bool:
    """Whether exactly one latent of an SAE fires per token, by its architecture."""
    return code_kind(sae).is_one_hot


def decoder_vectors(sae: SAE[Any]) -> Float[Tensor, "d_sae d_out"]:
    """What the activations of an SAE are multiplied by in its output."""
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        # They include the norms of the decoder already; SAELens divides by them when decoding.
        return torch.nn.functional.normalize(sae.W_dec, dim=1)
    return sae.W_dec


def check_reads_tokens(source: Any, name: str) -> None:
    """Refuse an SAE that cannot be read token by token.

    Args:
        source: an SAE or its class, or clusters.
        name: what it is called.

    Raises:
        ValueError: if it predicts a token from those before it (SAELens' temporal SAEs), so that its code and
            its output are of a whole sequence.
    """
    if hasattr(source, "encode_with_predictions"):
        raise ValueError(
            f"What a {name} SAE fires at a token, and what it puts in its place, depend on the tokens before it. "
            "Here SAEs are read token by token: take one of another architecture."
        )
