"""From a dictionary to directions: what a token's concepts are, and where they point.

Two kinds of dictionary give two kinds of concept. A *code* (CLVQ-VAE, VQ-VAE, clusters) is a place,
which is centered before it is a direction: the mean of its tokens, or the centroid. A *latent* (SAEs, transcoders, BAE)
is a direction already: a row of the decoder or a column of the encoder.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from bae_lens.concept_ablation.settings import Vectors
from bae_lens.dictionaries import Clusters, Dictionary

__all__ = ["Clusters", "Concepts", "TokenSample", "Vectors", "describe"]


# Tokens that are encoded at a time.
_CHUNK = 4096


class TokenSample(NamedTuple):
    """Activations of the same tokens at both hook points, which concepts are described by.

    Attributes:
        hook_names: the lower and the upper hook point.
        lower: activations at the lower one.
        upper: at the upper one.
        lower_mean: mean of all tokens that were read, sampled or not.
        upper_mean: the same at the upper hook point.
    """

    hook_names: tuple[str, str]
    lower: Float[Tensor, "m d_in"]
    upper: Float[Tensor, "m d_out"]
    lower_mean: Float[Tensor, " d_in"]
    upper_mean: Float[Tensor, " d_out"]


class Concepts(Protocol):
    """A dictionary that was shown a sample of tokens.

    Attributes:
        name: for tables.
        in_use: ids of the latents or codes that the sample has.
    """

    name: str
    in_use: Int[Tensor, " n_in_use"]

    def active(self, x: Float[Tensor, "n d_in"], k: int) -> Int[Tensor, "n k"]:
        """Ids of each token's k most active latents, or nearest codes; −1 where there are fewer."""
        ...

    def directions(
        self, ids: Int[Tensor, "n k"], at_upper: bool, center: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "n k d"] | None:
        """Vectors that they point along at a hook point, zeros for −1; None if the dictionary has none there.

        A code points from ``center`` to its place, a latent the same way from anywhere.
        """
        ...


def describe(
    dictionary: SAE[Any] | Clusters,
    sample: TokenSample,
    vectors: Vectors = "decoder",
    name: str | None = None,
) -> Concepts:
    """The concepts of a dictionary, described by a sample of tokens.

    Args:
        dictionary: a CLVQ-VAE, a single-layer VQ-VAE, any other SAELens SAE or transcoder, a BAE, or
            clusters.
        sample: tokens that codes get their means from, and latents their firing rates.
        vectors: what a latent is the direction of, at the hook point that it reads.
        name: for tables; the architecture if omitted.

    Raises:
        ValueError: if the activations have another width than the dictionary's, or it has no
            vectors of that kind.
    """
    adapter = Dictionary(dictionary)
    if sample.lower.shape[1] != adapter.d_in:
        raise ValueError(
            f"The dictionary reads activations of width {adapter.d_in}; those at its hook point have "
            f"{sample.lower.shape[1]}."
        )
    if adapter.kind.is_one_hot:
        return _Codes(adapter, sample, name)
    return _Latents(adapter, sample, vectors, name)


class _Codes:
    """The concepts of a CLVQ-VAE, a VQ-VAE or clusters."""

    def __init__(self, dictionary: Dictionary, sample: TokenSample, name: str | None) -> None:
        self._dictionary = dictionary
        self.name = dictionary.name if name is None else name
        n = dictionary.n_latents
        self.in_use = torch.arange(n)
        codes = self.active(sample.lower, 1)[:, 0]
        counts = torch.bincount(codes, minlength=n)
        # From here on a token has the nearest of the codes that there are tokens to describe.
        self.in_use = counts.nonzero()[:, 0]
        is_clusters = isinstance(dictionary.source, Clusters)
        with torch.no_grad():
            # A centroid lies among the activations themselves, a code where the encoder puts them.
            self._lower = (
                dictionary.codebook.cpu() if is_clusters else _means(sample.lower, codes, counts)
            )
            # A dictionary that writes elsewhere says nothing of this hook point, but its tokens do.
            is_written = dictionary.hook_names[1] == sample.hook_names[1]
            self._upper = (
                dictionary.decoder_vectors.float().cpu()
                if is_written and dictionary.writes_elsewhere
                else _means(sample.upper, codes, counts)
            )

    @torch.no_grad()
    def active(self, x: Tensor, k: int) -> Tensor:
        parts = []
        for part in x.split(_CHUNK):
            distances = self._dictionary.code_distances(part, self.in_use)
            nearest = distances.topk(min(k, len(self.in_use)), largest=False).indices.cpu()
            parts.append(self.in_use[nearest])
        return torch.cat(parts)

    def directions(self, ids: Tensor, at_upper: bool, center: Tensor | None) -> Tensor:
        places = self._upper if at_upper else self._lower
        return places[ids] if center is None else places[ids] - center


class _Latents:
    """The concepts of an SAE, a transcoder or a BAE."""

    def __init__(
        self, dictionary: Dictionary, sample: TokenSample, vectors: Vectors, name: str | None
    ) -> None:
        self._dictionary = dictionary
        self._is_one_bit = dictionary.kind.is_one_bit
        self.name = dictionary.name if name is None else name
        encoder = dictionary.encoder_vectors
        # A decoder that writes elsewhere says nothing about the hook point that is read.
        is_encoder = vectors == "encoder" or dictionary.writes_elsewhere
        if is_encoder and encoder is None:
            raise ValueError(f"{self.name} has no encoder vectors (W_enc); set vectors='decoder'.")
        with torch.no_grad():
            decoder = dictionary.decoder_vectors.float().cpu()
            self._lower = encoder.float().cpu() if is_encoder and encoder is not None else decoder
            is_written = dictionary.hook_names[1] == sample.hook_names[1]
            self._upper = decoder if is_written else None
            fired = torch.zeros(dictionary.n_latents, dtype=torch.int64)
            for part in sample.lower.split(_CHUNK):
                fired += (self._encode(part) != 0).sum(0)
        self.in_use = fired.nonzero()[:, 0]
        if self._is_one_bit:
            # Every bit that is on has the value of its scale: what a bit says is how rare it is.
            rates = fired.clamp(min=0.5) / len(sample.lower)
            self._strength = -rates.log2()
        else:
            self._strength = decoder.norm(dim=1)

    def _encode(self, x: Tensor) -> Tensor:
        acts = self._dictionary.encode(x.to(self._dictionary.dtype))
        return (acts != 0 if self._is_one_bit else acts).float().cpu()

    @torch.no_grad()
    def active(self, x: Tensor, k: int) -> Tensor:
        """The latents with the largest activation times length of the decoder row; bits by their surprise, −log2(rate)."""
        k = min(k, self._dictionary.n_latents)
        best = [(self._encode(part) * self._strength).topk(k) for part in x.split(_CHUNK)]
        values = torch.cat([part.values for part in best])
        return torch.cat([part.indices for part in best]).where(values > 0, -1)

    def directions(
        self,
        ids: Tensor,
        at_upper: bool,
        center: Tensor | None,  # noqa: ARG002
    ) -> Tensor | None:
        vectors = self._upper if at_upper else self._lower
        return None if vectors is None else vectors[ids] * (ids >= 0)[..., None]


def _means(x: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """Mean activation of each code's tokens, ``[n_codes, d]``; zeros where it has none."""
    total = torch.zeros(len(counts), x.shape[1]).index_add_(0, codes, x.float().cpu())
    return total / counts.clamp(min=1)[:, None]
