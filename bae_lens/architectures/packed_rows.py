"""Two hook points in one batch: rows that SAELens' trainer can pass on without knowing of them.

SAELens trains on batches ``[tokens, d_in]`` of one hook point. A row here is a token's
``[lower | upper | valid]``: its activation at the lower hook point, that at the higher one, and 1
where the token counts, 0 for padding and special tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Packed(NamedTuple):
    """The parts of a batch of rows.

    Attributes:
        lower: activations at the lower hook point.
        upper: activations at the higher one.
        valid: which tokens count.
    """

    lower: Float[Tensor, "n d_in"]
    upper: Float[Tensor, "n d_out"]
    valid: Bool[Tensor, " n"]


def pack_rows(
    lower: Float[Tensor, "*batch d_in"],
    upper: Float[Tensor, "*batch d_out"],
    valid: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "n width"]:
    """Rows of two aligned batches, tokens in order; all valid if no mask is given.

    Raises:
        ValueError: if the shapes do not belong together, or the mask is not boolean.

    Examples:
        >>> rows = pack_rows(torch.zeros(4, 3), torch.ones(4, 2))
        >>> rows.shape
        torch.Size([4, 6])
        >>> lower, upper, valid = unpack_rows(rows, d_in=3, d_out=2)
        >>> upper.shape, valid.all().item()
        (torch.Size([4, 2]), True)
    """
    shape = lower.shape[:-1]
    if upper.shape[:-1] != shape or (valid is not None and valid.shape != shape):
        raise ValueError(
            "Both activations and the mask must be of the same tokens; got lower "
            f"{tuple(lower.shape)}, upper {tuple(upper.shape)}, valid "
            f"{None if valid is None else tuple(valid.shape)}."
        )
    if valid is None:
        valid = torch.ones(shape, dtype=torch.bool, device=lower.device)
    if valid.dtype != torch.bool:
        raise ValueError(f"The mask must be boolean; got {valid.dtype}.")
    rows = torch.cat([lower, upper.to(lower), valid[..., None].to(lower)], -1)
    return rows.reshape(-1, rows.shape[-1])


def unpack_rows(rows: Float[Tensor, "n width"], d_in: int, d_out: int) -> Packed:
    """The parts of packed rows; rows of width d_in are both, of one hook point, and all valid.

    Raises:
        ValueError: for any other shape.
    """
    if rows.ndim == 2 and rows.shape[1] == d_in + d_out + 1:
        lower, upper, valid = rows.split([d_in, d_out, 1], dim=1)
        return Packed(lower, upper, valid.squeeze(1) > 0)
    if rows.ndim == 2 and rows.shape[1] == d_in == d_out:
        return Packed(rows, rows, torch.ones_like(rows[:, 0], dtype=torch.bool))
    both = f", or [n, {d_in}] for one hook point" if d_in == d_out else ""
    raise ValueError(
        f"Training batches must be rows [n, d_in + d_out + 1 = {d_in + d_out + 1}] as pack_rows "
        f"makes them{both}; got shape {tuple(rows.shape)}. CrossLayerTrainingRunner packs them."
    )
