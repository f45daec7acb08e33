"""What fires at a token, for any dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from bae_lens.dictionaries import Dictionary
from bae_lens.examples.records import Strength

# Numbers of a dense code that are held at a time.
_MAX_DENSE = 2**25
_LARGEST_HALF = 65_504


@dataclass(frozen=True, eq=False)
class Coder(Dictionary):
    """A dictionary whose code is kept as what fires at each token and how strongly.

    Raises:
        ValueError: if the dictionary's metadata names no hook point, or what fires at a token depends
            on the others of a batch (BatchTopK in training).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.hook_names  # Refused now, if there are none.
        if self.depends_on_batch:
            raise ValueError(
                "What fires in a BatchTopK SAE in training depends on which tokens are in a batch. "
                "Convert it: save_inference_model(folder), and SAE.load_from_disk(folder)."
            )

    @property
    def strength(self) -> Strength:
        """What orders examples by how strongly a latent fires, see ``LatentRecords.strength``."""
        if self.kind.is_one_hot:
            return "nearness"
        return "surprise" if self.kind.is_one_bit else "activation"

    def firings(self, x: Float[Tensor, "n d_in"]) -> Any:
        """Sparse matrix ``[n, n_latents]`` (CSR, float32, CPU) with an entry where a latent fires.

        Entries are activations; 1 for bits; for codes minus the squared distance, which may be an
        explicit zero.

        Raises:
            ValueError: if activations have another width, or they or the code are NaN or infinite.
        """
        return sparse.vstack([code for code, _ in self._parts(x)], format="csr")

    def firings_with_margins(
        self, x: Float[Tensor, "n d_in"]
    ) -> tuple[Any, NDArray[np.float16] | None]:
        """``firings``, and ``[n, n_latents]`` of bits: how far each pre-activation is from the threshold,
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
            if self.kind.is_one_hot:
                yield self._nearest(part), None
            else:
                yield self._active(part)

    def _active(self, x: Tensor) -> tuple[Any, NDArray[np.float16] | None]:
        sae: Any = self.source
        is_one_bit = self.kind.is_one_bit
        hidden_pre: list[Tensor] = []
        handle = None
        if is_one_bit:
            handle = sae.hook_sae_acts_pre.register_forward_hook(
                lambda *args: hidden_pre.append(args[2])
            )
        try:
            acts = self.encode(x.to(self.dtype))
        finally:
            if handle is not None:
                handle.remove()
        _check_finite(acts)
        rows, latents = acts.nonzero(as_tuple=True)
        values = torch.ones_like(rows) if is_one_bit else acts[rows, latents]
        margins = None
        if hidden_pre:
            # The threshold of a bit is 0. Three digits are enough for an order, and more would be the
            # rounding of the model, which differs with the size of a batch.
            margins = hidden_pre[0].abs().clamp(max=_LARGEST_HALF).half().cpu().numpy()
        return _csr(rows, latents, values, (len(x), self.n_latents)), margins

    def _nearest(self, x: Tensor) -> Any:
        distances, codes = self.code_distances(x).min(-1)
        _check_finite(distances)
        rows = torch.arange(len(codes))
        return _csr(rows, codes, -distances, (len(codes), self.n_latents))


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            "The dictionary's code has NaN or infinite values, of which nothing can be said. Are its weights "
            "finite?"
        )


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Any:
    """A sparse matrix of entries that come in the order of their rows."""
    starts = np.zeros(shape[0] + 1, dtype=np.int64)
    starts[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0).cpu().numpy()
    data = (values.float().cpu().numpy(), columns.cpu().numpy(), starts)
    return sparse.csr_matrix(data, shape=shape)
