"""From a dictionary to directions: what a token's concepts are, and where they point.

Two kinds of dictionary give two kinds of concept. A *code* (CLVQ-VAE, VQ-VAE, clusters) is a place,
which is centred before it is a direction: the mean of its tokens, or the centroid. A *latent* (SAEs, transcoders, BAE)
is a direction already: a row of the decoder or a column of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from sklearn.cluster import KMeans
from torch import Tensor

from bae_lens.activations.hook_points import flat_heads, hook_names
from bae_lens.checks.fields import check, whole
from bae_lens.evals.summarise import decoder_vectors, is_one_bit, is_one_hot
from bae_lens.fingerprint import weights_sha256
from bae_lens.nn import squared_distances

Vectors = Literal["decoder", "encoder"]

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
        self, ids: Int[Tensor, "n k"], at_upper: bool, centre: Float[Tensor, " d"] | None
    ) -> Float[Tensor, "n k d"] | None:
        """Where they point at one of the hook points, nought for −1; None if they do not say.

        A code points from ``centre`` to its place, a latent the same way from anywhere.
        """
        ...


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centroids of activations as a dictionary: the concepts of k-means, or of any clustering.

    Attributes:
        centroids: a token's cluster is that of the nearest one.
        hook_name: of the activations.
        name: for tables.
    """

    centroids: Float[Tensor, "n d"]
    hook_name: str
    name: str = "k-means"

    @classmethod
    def fit(cls, x: Float[Tensor, "m d"], n: int, hook_name: str, seed: int = 0) -> Clusters:
        """k-means (scikit-learn, k-means++, one start).

        Raises:
            ValueError: if there are fewer activations than clusters.
        """
        n, seed = check("n", n, whole(1)), check("seed", seed, whole(0, 2**32 - 1))
        if len(x) < n:
            raise ValueError(f"{n} clusters need at least {n} activations; got {len(x)}.")
        kmeans = KMeans(n, n_init=1, random_state=seed)  # pyright: ignore[reportArgumentType]
        kmeans.fit(x.float().cpu().numpy())
        return cls(torch.from_numpy(kmeans.cluster_centers_), hook_name)


def dictionary_hooks(dictionary: SAE[Any] | Clusters) -> tuple[str, str]:
    """Hook points that a dictionary reads and writes; of clusters the same."""
    if isinstance(dictionary, Clusters):
        return dictionary.hook_name, dictionary.hook_name
    return hook_names(dictionary)


def dictionary_sha256(dictionary: SAE[Any] | Clusters) -> str:
    """Which weights, or centroids, these are: see ``bae_lens.fingerprint``."""
    is_clusters = isinstance(dictionary, Clusters)
    return weights_sha256({"centroids": dictionary.centroids} if is_clusters else dictionary)


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
    d_in = (
        dictionary.centroids.shape[1] if isinstance(dictionary, Clusters) else dictionary.cfg.d_in
    )
    if sample.lower.shape[1] != d_in:
        raise ValueError(
            f"The dictionary reads activations of width {d_in}; those at its hook point have "
            f"{sample.lower.shape[1]}."
        )
    if isinstance(dictionary, Clusters) or is_one_hot(dictionary):
        return _Codes(dictionary, sample, name)
    return _Latents(dictionary, sample, vectors, name)


class _Codes:
    """Of a CLVQ-VAE, a VQ-VAE or clusters."""

    def __init__(
        self, dictionary: SAE[Any] | Clusters, sample: TokenSample, name: str | None
    ) -> None:
        self._dictionary = dictionary
        is_sae = isinstance(dictionary, SAE)
        own = dictionary.cfg.architecture() if is_sae else dictionary.name
        self.name = own if name is None else name
        n = dictionary.cfg.d_sae if is_sae else len(dictionary.centroids)
        self.in_use = torch.arange(n)
        codes = self.active(sample.lower, 1)[:, 0]
        counts = torch.bincount(codes, minlength=n)
        # From here on a token has the nearest of the codes that there are tokens to describe.
        self.in_use = counts.nonzero()[:, 0]
        self._lower = (
            _means(sample.lower, codes, counts) if is_sae else dictionary.centroids.float().cpu()
        )
        hook_in, hook_out = dictionary_hooks(dictionary)
        with torch.no_grad():
            # A dictionary that writes elsewhere says nothing of this hook point, but its tokens do.
            self._upper = (
                dictionary.W_dec.float().cpu()
                if is_sae and hook_out == sample.hook_names[1] != hook_in
                else _means(sample.upper, codes, counts)
            )

    @torch.no_grad()
    def active(self, x: Tensor, k: int) -> Tensor:
        parts = []
        for part in x.split(_CHUNK):
            if isinstance(self._dictionary, SAE):
                sae: Any = self._dictionary
                z = sae.encoder(sae.process_sae_in(part.to(sae.device, sae.dtype)))
                codebook = sae.codebook
            else:
                z, codebook = part, self._dictionary.centroids.float()
            distances = squared_distances(z, codebook[self.in_use.to(codebook.device)])
            nearest = distances.topk(min(k, len(self.in_use)), largest=False).indices.cpu()
            parts.append(self.in_use[nearest])
        return torch.cat(parts)

    def directions(self, ids: Tensor, at_upper: bool, centre: Tensor | None) -> Tensor:
        places = self._upper if at_upper else self._lower
        return places[ids] if centre is None else places[ids] - centre


class _Latents:
    """Of an SAE, a transcoder or a BAE."""

    def __init__(
        self, sae: SAE[Any], sample: TokenSample, vectors: Vectors, name: str | None
    ) -> None:
        self._sae = sae
        self._is_one_bit = is_one_bit(sae)
        self.name = sae.cfg.architecture() if name is None else name
        hook_in, hook_out = hook_names(sae)
        encoder: Tensor | None = getattr(sae, "W_enc", None)
        # A decoder that writes elsewhere says nothing about the hook point that is read.
        is_encoder = vectors == "encoder" or hook_in != hook_out
        if is_encoder and encoder is None:
            raise ValueError(f"{self.name} has no encoder vectors (W_enc); set vectors='decoder'.")
        with torch.no_grad():
            decoder = decoder_vectors(sae).float().cpu()
            self._lower = encoder.float().cpu().T if is_encoder and encoder is not None else decoder
            self._upper = decoder if hook_out == sample.hook_names[1] else None
            fired = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
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
        with flat_heads(self._sae):
            acts = self._sae.encode(x.to(self._sae.device, self._sae.dtype))
        acts = acts if acts.layout == torch.strided else acts.to_dense()
        return (acts != 0 if self._is_one_bit else acts).float().cpu()

    @torch.no_grad()
    def active(self, x: Tensor, k: int) -> Tensor:
        """By activation times length of the decoder's row; bits by their surprise −log2(rate)."""
        k = min(k, self._sae.cfg.d_sae)
        best = [(self._encode(part) * self._strength).topk(k) for part in x.split(_CHUNK)]
        values = torch.cat([part.values for part in best])
        return torch.cat([part.indices for part in best]).where(values > 0, -1)

    def directions(
        self,
        ids: Tensor,
        at_upper: bool,
        centre: Tensor | None,  # noqa: ARG002
    ) -> Tensor | None:
        vectors = self._upper if at_upper else self._lower
        return None if vectors is None else vectors[ids] * (ids >= 0)[..., None]


def _means(x: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    total = torch.zeros(len(counts), x.shape[1]).index_add_(0, codes, x.float().cpu())
    return total / counts.clamp(min=1)[:, None]
