"""The off-diagonal covariance penalty, in closed form, by the method that is cheapest for the code."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.covariance.pairs import pairs_value_and_grad
from bae_lens.nn.covariance.strips import strips_value_and_grad
from bae_lens.nn.covariance.tiles import tiles_value_and_grad
from bae_lens.nn.sparse_code import BitCounts, SparseCode
from bae_lens.operators import custom_op

Method = Literal["auto", "tiles", "strips", "pairs"]

# Nanoseconds on two cores: a multiply-add of a tile; two additions, and a pair of bits, in a strip; a
# multiply-add of a sparse product (``benchmarks/speed.py --costs``).
_TILES, _STRIPS, _PAIRS = 0.018, (0.05, 0.3), 30.0


def off_diagonal_covariance(
    codes: Float[Tensor, "*batch d_sae"], method: Method = "auto", *, is_binary: bool = False
) -> Float[Tensor, ""]:
    """Σ_{i≠j} |C_ij|, with C the unbiased covariance of the latents over the batch.

    The covariance penalty of arXiv 2509.20997 (as its release computes it). Equal to autograd
    through ``torch.cov`` in value and, where no C_ij is zero, in gradient; a covariance that is
    exactly zero gets the subgradient 0 (between bits this is decided in integers, where float
    noise would pick a sign at random).

    Value and gradient are computed together, and no dense d_sae × d_sae matrix is ever held:

    * ``"tiles"``: tile by tile and each pair of latents once, 3·n·d_sae² multiply-adds. For any
      activations; the others are for zeros and ones, and leave anything else to it;
    * ``"strips"``: all pairs of bits, but only rows where they are on: for m of these 2·m·d_sae
      additions, and a few operations for each of d_sae² pairs;
    * ``"pairs"``: only pairs of bits that fire together, a multiply-add for each bit that is on in a row
      and each partner that it has in the batch: the one that grows linearly in d_sae. It wins for wide
      and very sparse codes: on one core, of 1,024 rows with 20 bits on, strips take 1.9 to 3.7 times as
      long at d_sae 16,384, and 4.5 to 8.3 times at 32,768; with 50 on they are faster at 16,384.

    Args:
        codes: bits or any real activations, any leading shape. Computed in float32 whatever the
            dtype (float64 for float64 codes), autocast or not.
        method: ``"auto"`` takes the cheapest by the batch's own counts; off the CPU always tiles,
            which need not wait for the counts.
        is_binary: promises zeros and ones, for which a GPU's products are exact in bfloat16; it would
            have to be waited for if it were to look itself. Elsewhere it changes nothing.

    Returns:
        A float32 scalar (float64 for float64 codes).

    Raises:
        ValueError: if there are fewer than two rows, or no such method.

    Examples:
        Two bits that are the same have a covariance of 1/2 here; it is counted in both orders.

        >>> codes = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> off_diagonal_covariance(codes).item()
        1.0
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}.")
    flat = codes.reshape(-1, codes.shape[-1])
    if flat.shape[0] < 2:
        raise ValueError(
            "off_diagonal_covariance needs at least two rows of codes, since the unbiased covariance "
            f"divides by n - 1; got shape {tuple(codes.shape)}."
        )
    # Whole numbers and bools can be neither subtracted from 1 nor averaged as they are.
    flat = flat if flat.is_floating_point() else flat.float()
    return _operator(flat, method, is_binary, flat.requires_grad and torch.is_grad_enabled())[0]


# An operator of its own, so that a compiled training pass need not look into it: which method is
# cheaper depends on the data.
@custom_op(
    "off_diagonal_covariance",
    "(Tensor codes, str method, bool is_binary, bool needs_grad) -> (Tensor, Tensor)",
)
def _operator(
    codes: Tensor, method: Method, is_binary: bool, needs_grad: bool
) -> tuple[Tensor, Tensor]:
    """Value and gradient, which is empty where it is not needed."""
    with torch.autocast(codes.device.type, enabled=False):
        value, grad = _value_and_grad(codes, method, is_binary, needs_grad)
    return value, codes.new_empty(0) if grad is None else grad.to(codes.dtype)


@_operator.register_fake
def _(
    codes: Tensor,
    method: Method,  # noqa: ARG001
    is_binary: bool,  # noqa: ARG001
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(codes.dtype, torch.float32)
    grad = torch.empty_like(codes) if needs_grad else codes.new_empty(0)
    return codes.new_empty((), dtype=dtype), grad


def _keep_gradient(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    # Nobody differentiates the gradient; zeros in its place would be as large as the codes.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(
    ctx: Any, grad_value: Tensor | None, _: Any
) -> tuple[Tensor | None, None, None, None]:
    (grad,) = ctx.saved_tensors
    product = None if grad_value is None else grad_value.to(grad.dtype) * grad
    return product, None, None, None


_operator.register_autograd(_backward, setup_context=_keep_gradient)


def _value_and_grad(
    codes: Tensor, method: Method, is_binary: bool, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = torch.promote_types(codes.dtype, torch.float32)
    # Elsewhere the counts would have to be waited for.
    if method == "auto" and codes.device.type != "cpu":
        method = "tiles"
    if method != "tiles":
        bits = BitCounts.of(codes)
        method = cheapest(bits.counts, len(codes)) if method == "auto" else method
        code = SparseCode.of(codes, bits) if method != "tiles" else None
        if code is not None and method == "strips":
            return strips_value_and_grad(code, dtype, needs_grad)
        if code is not None:
            return pairs_value_and_grad(code, dtype, needs_grad)
    is_exact = is_binary and codes.is_cuda
    return tiles_value_and_grad(codes, needs_grad, torch.bfloat16 if is_exact else None)


def cheapest(counts: Float[Tensor, " d"], n: int) -> Method:
    """The method for bits that fire so often in ``n`` rows, by the operations that each needs."""
    costs = expected_costs(counts, n)
    return min(costs, key=costs.__getitem__)


def expected_costs(counts: Float[Tensor, " d"], n: int) -> dict[Method, float]:
    """Nanoseconds of each method, roughly.

    Of the partners of a bit only a bound is known before they are listed: as many as are on beside
    it in the rows where it fires.
    """
    d, counts = len(counts), counts.double()
    n_on = float(counts.sum())
    multiply_adds = float((counts * (counts * n_on / n).clamp(max=d)).sum()) + n_on**2 / n
    return {
        "tiles": _TILES * n * d**2,
        "strips": _STRIPS[0] * n_on * d + _STRIPS[1] * d**2,
        "pairs": _PAIRS * multiply_adds,
    }
