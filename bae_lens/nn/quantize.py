"""Vector quantization: nearest and sampled codes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.distributed import n_ranks, own_rows

# Below any distance between activations; keeps a scale of zero from dividing.
_TINY = 1e-30


def squared_distances(
    z: Float[Tensor, "*batch d"], codebook: Float[Tensor, "K d"]
) -> Float[Tensor, "*batch K"]:
    """‖z − e_k‖² of every vector to every code, in float32 whatever the dtypes, autocast or not.

    Both are taken relative to the mean code first: the codes of a language model's layer share most
    of their length, and the difference of two large products would be left with its rounding.

    Args:
        z: vectors, any leading shape.
        codebook: one code per row.

    Returns:
        Squared distances, never negative; ``[*batch, K]`` is held at once.

    Raises:
        ValueError: if the widths differ.
    """
    if codebook.ndim != 2 or z.ndim == 0 or z.shape[-1] != codebook.shape[1]:
        raise ValueError(
            "Vectors [..., d] and codebook [K, d] must have the same width d; got "
            f"{tuple(z.shape)} and {tuple(codebook.shape)}."
        )
    with torch.autocast(z.device.type, enabled=False):
        center = codebook.float().mean(0)
        z, codebook = z.float() - center, codebook.float() - center
        square = z.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
        return (square - 2 * z @ codebook.T).clamp(min=0)


def nearest_codes(
    z: Float[Tensor, "*batch d"], codebook: Float[Tensor, "K d"]
) -> Int[Tensor, "*batch"]:
    """Index of the nearest code; of several that are equally near, the lowest."""
    return squared_distances(z, codebook).argmin(-1)


def sample_codes(
    distances: Float[Tensor, "*batch K"],
    top_k: int,
    temperature: float,
    scale: float | Float[Tensor, ""] = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """Draw one of the ``top_k`` nearest codes with softmax(−D/(scale·T)), all rows at once.

    Top-k temperature sampling of arXiv 2506.20040. Its release leaves the squared distances as they
    are (scale 1), which are in the hundreds between activations: at T = 1 it all but never leaves
    the nearest code. The mean distance to the nearest code is a scale that makes T mean the same at
    any width and norm.

    Args:
        distances: squared distances. Computed in float32, autocast or not.
        top_k: how many of the nearest codes take part; all of them if there are fewer.
        temperature: T.
        scale: what to divide distances by.
        generator: source of the draw, on the device of ``distances``. On several ranks it draws for the rows
            of all, and each takes its own: of generators that are alike, what one process would draw.

    Raises:
        ValueError: if ``top_k`` is below 1 or ``temperature`` is not positive.
    """
    check_sampling(top_k, temperature)
    with torch.autocast(distances.device.type, enabled=False):
        nearest, codes = distances.float().topk(
            min(top_k, distances.shape[-1]), dim=-1, largest=False
        )
        # Differences to the nearest first: with a scale near zero they stay 0 for the nearest.
        excess = nearest - nearest[..., :1]
        scale = torch.as_tensor(scale, dtype=torch.float32, device=distances.device)
        logits = -excess / (scale * temperature).clamp(min=_TINY)
        # Gumbel's argmax draws from the softmax; torch.multinomial would wait for the device.
        n_rows = logits[..., 0].numel() * n_ranks()
        noise = logits.new_empty(n_rows, logits.shape[-1]).exponential_(generator=generator)
        noise = own_rows(noise).reshape(logits.shape).log()
        draw = (logits - noise).argmax(-1, keepdim=True)
        return codes.gather(-1, draw).squeeze(-1)


def straight_through(
    z: Float[Tensor, "*batch d"], codes: Float[Tensor, "*batch d"]
) -> Float[Tensor, "*batch d"]:
    """``codes`` in the dtype of ``z``, to the last bit, with the gradient going to ``z`` unchanged.

    As z + sg(codes − z), Eq. 5 of the reference, but for that sum's rounding.
    """
    return codes.detach().to(z.dtype) + (z - z.detach())


def check_sampling(top_k: int, temperature: float) -> None:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1 (the nearest code); got {top_k}.")
    if not temperature > 0:
        raise ValueError(
            f"temperature must be greater than 0; got {temperature}. For the nearest code set "
            "top_k to 1."
        )
