"""Where a codebook starts: codes from activations, by scikit-learn."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from bae_lens.checks.fields import OneOf, check, whole
from bae_lens.nn import nearest_codes

CodebookInit = Literal["random", "kmeans++", "scaled_spherical_kmeans++"]
CODEBOOK_INITS: tuple[str, ...] = get_args(CodebookInit)


def initial_codebook(
    activations: Float[Tensor, "n d"],
    n_codes: int,
    method: CodebookInit = "scaled_spherical_kmeans++",
    seed: int = 0,
    n_init: int = 1,
    max_iter: int = 100,
) -> tuple[Float[Tensor, "K d"], Float[Tensor, " K"]]:
    """Codes for these activations, and how many of them each code gets.

    * ``"random"``: distinct activations, drawn at random. (The release draws Gaussian noise, which
      is nowhere near the activations.)
    * ``"kmeans++"``: k-means from a k-means++ start.
    * ``"scaled_spherical_kmeans++"``: the same on directions (activations of unit norm); then each
      center's direction times the mean norm of its members, Eq. 10 of the reference for
      arXiv 2506.20040.

    All of it is deterministic in ``seed``, on one machine.

    Args:
        activations: one vector per row, padding and special tokens left out.
        n_codes: K.
        method: one of the three.
        seed: seed of all draws.
        n_init: starts of k-means, of which the best is kept (the release: 5).
        max_iter: iterations of k-means.

    Returns:
        Codes and counts, float32, on the device of ``activations``. For
        ``EMACodebook.set_codebook`` the counts are to be those of a batch: scale them down if there
        were more activations than that.

    Raises:
        ValueError: if ``method`` is not one of the three, ``activations`` is not a matrix, a value
            is NaN or infinite, or there are fewer distinct vectors (directions for the spherical
            method) than codes.
    """
    check("method", method, OneOf(CODEBOOK_INITS))
    n_codes, seed = check("n_codes", n_codes, whole(1)), check("seed", seed, whole(0, 2**32 - 1))
    n_init, max_iter = check("n_init", n_init, whole(1)), check("max_iter", max_iter, whole(1))
    if activations.ndim != 2:
        raise ValueError(
            f"Activations must be [n, d], one vector per row; got shape {tuple(activations.shape)}."
        )
    # −0 + 0 is 0: rows are compared byte by byte below.
    x = activations.detach().float().cpu().numpy() + np.float32(0)
    if not np.isfinite(x).all():
        raise ValueError(
            "Some activations are NaN or infinite, from which no codebook can be made. Check the "
            "model's dtype and the hook point."
        )
    norms = np.linalg.norm(x, axis=1)
    is_spherical = method == "scaled_spherical_kmeans++"
    points = _unit(x, norms) if is_spherical else x
    distinct = _first_of_each(points)
    if len(distinct) < n_codes:
        what = "directions" if is_spherical else "vectors"
        raise ValueError(
            f"{n_codes} codes need at least as many distinct {what}; these {len(x)} activations "
            f"have {len(distinct)}. Give more activations, or lower the number of codes."
        )

    if method == "random":
        chosen = np.random.default_rng(seed).choice(distinct, n_codes, replace=False)
        codebook = x[chosen]
        labels = nearest_codes(torch.from_numpy(x), torch.from_numpy(codebook)).numpy()
    else:
        codebook, labels = _kmeans(points, n_codes, seed, n_init, max_iter)
    counts = np.bincount(labels, minlength=n_codes)
    if is_spherical:
        codebook = _unit(codebook, np.linalg.norm(codebook, axis=1))
        total = np.bincount(labels, weights=norms, minlength=n_codes)
        mean_norm = np.where(counts > 0, total / np.maximum(counts, 1), norms.mean())
        codebook = codebook * mean_norm[:, None]
    return (
        torch.from_numpy(codebook).to(activations.device, torch.float32),
        torch.from_numpy(counts).to(activations.device, torch.float32),
    )


def _kmeans(
    points: np.ndarray, n_codes: int, seed: int, n_init: int, max_iter: int
) -> tuple[np.ndarray, np.ndarray]:
    kmeans = KMeans(
        n_codes,
        n_init=n_init,  # pyright: ignore[reportArgumentType]  (a number or "auto")
        max_iter=max_iter,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # Distinct vectors were counted; those that differ by rounding alone may still merge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kmeans.fit_predict(points)
    return kmeans.cluster_centers_, labels


def _unit(x: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Rows of norm 1; a row of zeros, which has no direction, stays as it is."""
    return x / np.where(norms > 0, norms, 1)[:, None]


def _first_of_each(x: np.ndarray) -> np.ndarray:
    """Indices of rows, one for each distinct one."""
    rows = np.ascontiguousarray(x)
    rows = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    return np.unique(rows, return_index=True)[1]
