"""Which of its values each latent of a code of levels has."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.nn.precision import widened


def check_level_values(values: Float[Tensor, "d_sae L"]) -> None:
    """Check the values that latents of a code of levels can have.

    Raises:
        ValueError: if they are not finite floats of two dimensions, with one value a latent or more, in
            ascending order.
    """
    if values.ndim != 2 or values.shape[1] == 0 or not values.is_floating_point():
        raise ValueError(
            "level_values must be floats of shape [d_sae, L], the L values of each latent where it fires; "
            f"got {values.dtype} of shape {tuple(values.shape)}."
        )
    if not values.isfinite().all():
        raise ValueError("level_values must be finite; some of them are NaN or infinite.")
    descends = (values[:, 1:] < values[:, :-1]).any(1).nonzero().flatten()
    if len(descends) > 0:
        latent = int(descends[0])
        raise ValueError(
            "level_values must ascend for each latent, level 1 first; those of latent "
            f"{latent} are {values[latent].tolist()}."
        )


@torch.no_grad()
def level_indices(
    acts: Float[Tensor, "*batch d_sae"], level_values: Float[Tensor, "d_sae L"]
) -> Int[Tensor, "*batch d_sae"]:
    """The level of each latent: 0 where its activation is 0, else 1 … L, that of the nearest value.

    Nearest, so that activations may be rounded to another dtype than the values. Where a narrow dtype
    rounds two neighboring values to one, it is the lower of the two levels.

    Args:
        acts: dense activations, finite.
        level_values: the values that each latent can have where it fires, in ascending order.

    Returns:
        Levels, int32.

    Raises:
        ValueError: if the shapes do not fit together, or the values are none that
            ``check_level_values`` takes.

    Examples:
        >>> values = torch.tensor([[1.0, 1.5, 4.0], [2.0, 2.5, 3.0]])
        >>> level_indices(torch.tensor([[4.0, 0.0], [1.0, 2.5]]), values).tolist()
        [[3, 0], [1, 2]]
    """
    _check_shapes(acts, level_values)
    entries, _, levels = _fired(acts, level_values)
    indices = torch.zeros(acts.shape, dtype=torch.int32, device=acts.device)
    indices.view(-1)[entries] = levels
    return indices


@torch.no_grad()
def levels_of_entries(
    values: Float[Tensor, " m"], latents: Int[Tensor, " m"], level_values: Float[Tensor, "d_sae L"]
) -> Int[Tensor, " m"]:
    """The level from 1 of single activations that are not 0, as ``level_indices`` tells them.

    Args:
        values: activations.
        latents: which latent each is of.
        level_values: as for ``level_indices``.
    """
    level_values = widened(level_values).to(values.device)
    boundaries = (level_values[:, 1:] + level_values[:, :-1]) / 2
    values = widened(values)
    levels = torch.ones_like(latents, dtype=torch.int32)
    # One boundary at a time: memory is by what fires, and not L times that.
    for boundary in boundaries.T.contiguous():
        levels += values > boundary[latents]
    return levels


@torch.no_grad()
def level_counts(
    acts: Float[Tensor, "*batch d_sae"], level_values: Float[Tensor, "d_sae L"]
) -> Int[Tensor, "d_sae L"]:
    """In how many rows each latent is at each of its levels from 1, as ``level_indices`` tells them.

    Examples:
        >>> values = torch.tensor([[1.0, 1.5, 4.0], [2.0, 2.5, 3.0]])
        >>> level_counts(torch.tensor([[4.0, 0.0], [1.0, 2.5]]), values).tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    _check_shapes(acts, level_values)
    _, latents, levels = _fired(acts, level_values)
    cells = latents * level_values.shape[1] + levels - 1
    return torch.bincount(cells, minlength=level_values.numel()).reshape(level_values.shape)


def _check_shapes(acts: Tensor, level_values: Tensor) -> None:
    check_level_values(level_values)
    if acts.ndim == 0 or acts.shape[-1] != len(level_values):
        raise ValueError(
            f"These values are of {len(level_values)} latents; got activations of shape "
            f"{tuple(acts.shape)}."
        )


def _fired(acts: Tensor, level_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where activations are not 0: which entries of the flattened tensor, which latents, which levels."""
    acts = acts.reshape(-1)
    entries = acts.nonzero()[:, 0]
    latents = entries % len(level_values)
    return entries, latents, levels_of_entries(acts[entries], latents, level_values)
