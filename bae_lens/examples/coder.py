"""What fires at a token, for any dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sae_lens import SAE, BatchTopKTrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from scipy import sparse
from torch import Tensor

from bae_lens.activations.hook_points import flat_heads
from bae_lens.concept_ablation.concepts import Clusters, dictionary_hooks, dictionary_sha256
from bae_lens.evals.summarise import is_one_bit, is_one_hot
from bae_lens.examples.records import Strength
from bae_lens.nn import squared_distances

# Numbers of a dense code that are held at a time.
_MAX_DENSE = 2**25
_LARGEST_HALF = 65_504


@dataclass(frozen=True, eq=False)
class Coder:
    """A dictionary as a function from activations to what fires.

    Attributes:
        dictionary: an SAE, transcoder, BAE, CLVQ-VAE or VQ-VAE (trained or in training), or clusters.
        scaler: as SAELens trains with, while it is not folded in yet.

    Raises:
        ValueError: if the dictionary's metadata names no hook point, or what fires at a token depends
            on the others of a batch (BatchTopK in training).
    """

    dictionary: SAE[Any] | Clusters
    scaler: ActivationScaler = field(default_factory=ActivationScaler)

    def __post_init__(self) -> None:
        dictionary_hooks(self.dictionary)
        if isinstance(self.dictionary, BatchTopKTrainingSAE):
            raise ValueError(
                "What fires in a BatchTopK SAE in training depends on which tokens are in a batch. "
                "Convert it: save_inference_model(folder), and SAE.load_from_disk(folder)."
            )

    @property
    def name(self) -> str:
        """For tables."""
        own = self.dictionary
        return own.name if isinstance(own, Clusters) else own.cfg.architecture()

    @property
    def hook_name(self) -> str:
        """Of the hook point that is read."""
        return dictionary_hooks(self.dictionary)[0]

    @property
    def head_index(self) -> int | None:
        """The one head that is read; None: all."""
        own = self.dictionary
        return None if isinstance(own, Clusters) else own.cfg.metadata.hook_head_index

    @property
    def d_in(self) -> int:
        """Width of activations."""
        own = self.dictionary
        return own.centroids.shape[1] if isinstance(own, Clusters) else own.cfg.d_in

    @property
    def n_latents(self) -> int:
        """Number of latents or codes."""
        own = self.dictionary
        return len(own.centroids) if isinstance(own, Clusters) else own.cfg.d_sae

    @property
    def weights_sha256(self) -> str:
        """See ``bae_lens.fingerprint``."""
        return dictionary_sha256(self.dictionary)

    @property
    def strength(self) -> Strength:
        """See ``Evidence.strength``."""
        own = self.dictionary
        if isinstance(own, Clusters) or is_one_hot(own):
            return "nearness"
        return "surprise" if is_one_bit(own) else "activation"

    @property
    def codebook(self) -> Float[Tensor, "K d"]:
        """Of a dictionary of codes."""
        own: Any = self.dictionary
        return (own.centroids if isinstance(own, Clusters) else own.codebook).detach().float()

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n d_in"]) -> Any:
        """Sparse matrix ``[n, n_latents]`` (CSR, float32, CPU) with an entry where a latent fires.

        Entries are activations; 1 for bits; for codes minus the squared distance, which may be an
        explicit zero.

        Raises:
            ValueError: if activations have another width, or the code is NaN or infinite.
        """
        return sparse.vstack([code for code, _ in self._parts(x)], format="csr")

    def encode_with_margins(
        self, x: Float[Tensor, "n d_in"]
    ) -> tuple[Any, NDArray[np.float16] | None]:
        """``encode``, and ``[n, n_latents]`` of bits: how far each pre-activation is from the threshold,
        on either side of it, as the SAE's ``hook_sae_acts_pre`` has it; None of other codes."""
        codes, margins = zip(*self._parts(x), strict=True)
        code = sparse.vstack(codes, format="csr")
        if any(margin is None for margin in margins):
            return code, None
        return code, np.concatenate(margins)

    @torch.no_grad()
    def _parts(self, x: Tensor) -> Iterator[tuple[Any, Any]]:
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"The dictionary reads activations of width {self.d_in}; those at "
                f"{self.hook_name!r} have {x.shape[-1]}. Is it of this model and hook point?"
            )
        for part in x.split(max(1, _MAX_DENSE // self.n_latents)):
            if self.strength == "nearness":
                yield self._nearest(part), None
            else:
                yield self._acts(part)

    def _acts(self, x: Tensor) -> tuple[Any, NDArray[np.float16] | None]:
        sae: Any = self.dictionary
        bits = self.strength == "surprise"
        seen: list[Tensor] = []
        handle = None
        if bits:
            handle = sae.hook_sae_acts_pre.register_forward_hook(lambda *args: seen.append(args[2]))
        try:
            with flat_heads(sae):
                acts = sae.encode(self.scaler.scale(x.to(sae.device, sae.dtype)))
        finally:
            if handle is not None:
                handle.remove()
        acts = acts if acts.layout == torch.strided else acts.to_dense()
        _check_finite(acts)
        rows, latents = acts.nonzero(as_tuple=True)
        values = torch.ones_like(rows) if bits else acts[rows, latents]
        margins = None
        if seen:
            # The threshold of a bit is 0. Three digits are enough for an order, and more would be the
            # rounding of the model, which differs with the size of a batch.
            margins = seen[0].abs().clamp(max=_LARGEST_HALF).half().cpu().numpy()
        return _csr(rows, latents, values, (len(x), self.n_latents)), margins

    def _nearest(self, x: Tensor) -> Any:
        if isinstance(self.dictionary, SAE):
            sae: Any = self.dictionary
            x = self.scaler.scale(x.to(sae.device, sae.dtype))
            x = sae.encoder(sae.process_sae_in(x))
        codebook = self.codebook
        distances, codes = squared_distances(x.to(codebook.device), codebook).min(-1)
        _check_finite(distances)
        rows = torch.arange(len(codes))
        return _csr(rows, codes, -distances, (len(codes), self.n_latents))


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            "The dictionary's code has NaN or infinite values, of which nothing can be said. Are the "
            "model's activations finite?"
        )


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Any:
    """Of entries in the order of their rows."""
    starts = np.zeros(shape[0] + 1, dtype=np.int64)
    starts[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0).cpu().numpy()
    data = (values.float().cpu().numpy(), columns.cpu().numpy(), starts)
    return sparse.csr_matrix(data, shape=shape)
