"""A latent of several levels: a thermometer of bits that share one direction, and its surrogate gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from bae_lens.nn.binarize import Surrogate, check_surrogate
from bae_lens.operators import custom_op

# Entries that the backward pass has in hand at a time, so that its passes stay in a core's cache.
_BLOCK = 2**17


class LevelCode(NamedTuple):
    """What a batch of pre-activations becomes.

    Attributes:
        acts: the sum of the heights of the thresholds that each one passes.
        counts: rows in which each threshold is passed, float32 (float64 for float64).
        zero: to be added to the loss that ``curvature`` is of.
    """

    acts: Float[Tensor, "n d_sae"]
    counts: Float[Tensor, "d_sae L"]
    zero: Float[Tensor, ""]


def quantize_levels(
    pre: Float[Tensor, "n d_sae"],
    thresholds: Float[Tensor, "d_sae L"],
    heights: Float[Tensor, "d_sae L"],
    surrogate: Surrogate = "sigmoid",
    temperature: float = 1.0,
    curvature: Float[Tensor, " d_sae"] | None = None,
) -> LevelCode:
    """``acts_j = Σ_l heights_jl · 1[pre_j > thresholds_jl]``, and how often each threshold is passed.

    With L = 1 and a height of 1 this is ``binarize``. arXiv 2509.20997 speaks of decoding more than one
    bit a unit without a formula; this one is ours. Each step has the surrogate gradient that ``binarize``
    has, in the activations and in the counts, so that what a level costs reaches the pre-activation and
    the threshold:

    * of ``pre``: Σ_l (g·heights_l + c_l)·s_l with s_l the surrogate at ``pre − thresholds_l``, g the
      gradient of ``acts`` and c that of ``counts``;
    * of ``thresholds_l``: the negated sum of the l-th term over the rows;
    * of ``heights_l``: the sum of g over the rows that pass the threshold.

    g tells what an infinitely small change of an activation does, and a step is none: of a squared error
    it is off by the square of the step. With the error's ``curvature`` κ in each activation, g is replaced
    by what crossing the threshold really does, all other latents being as they are, a step of height:
    g + κ·(m_l − act) with m_l the middle of the two values on either side of threshold l. Below a threshold
    this is more than g, and above it less; the surrogate alone takes those below, which are many more, for
    better than they are. How much a unit of the loss weighs, as after a gradient scaler, is read from the
    gradient of ``zero``; where that is added to no loss, there is no such term.

    All in one backward pass, which keeps nothing but ``pre``. Of what is nowhere near a threshold the
    forward pass on the CPU reads nothing but the sign.

    Args:
        pre: pre-activations.
        thresholds: ascending per latent.
        heights: what passing each threshold adds.
        surrogate: which derivative the backward pass uses for a step.
        temperature: width of the sigmoid; only ``"sigmoid"`` reads it.
        curvature: second derivative of the loss with respect to each latent's activation, the same in
            every row; None leaves the surrogate as it is.

    Raises:
        ValueError: if ``surrogate`` is unknown or ``temperature`` is not positive.

    Examples:
        >>> pre = torch.tensor([[-1.0, 0.5], [3.0, 0.0]])
        >>> thresholds, heights = torch.tensor([[0.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.5]] * 2)
        >>> code = quantize_levels(pre, thresholds, heights)
        >>> code.acts.tolist()
        [[0.0, 1.0], [1.5, 0.0]]
        >>> code.counts.tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    check_surrogate(surrogate, temperature)
    return LevelCode(*_quantize(pre, thresholds, heights, curvature, surrogate, float(temperature)))


# Operators of their own, so that a compiled training pass need not look into them: how much there is to
# do depends on the data.
@custom_op(
    "quantize_levels",
    "(Tensor pre, Tensor thresholds, Tensor heights, Tensor? curvature, str surrogate, float temperature) "
    "-> (Tensor, Tensor, Tensor)",
)
def _quantize(
    pre: Tensor,
    thresholds: Tensor,
    heights: Tensor,
    curvature: Tensor | None,  # noqa: ARG001
    surrogate: str,  # noqa: ARG001
    temperature: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(pre.dtype, torch.float32)
    zero = pre.new_zeros((), dtype=dtype)
    if _lists_entries(pre):
        on = _On.of(pre, thresholds)
        counts = on.summed(None, thresholds.shape).to(dtype)
        return on.values(pre, heights), counts, zero
    counts = [(pre > threshold).sum(0, dtype=dtype) for threshold in thresholds.unbind(1)]
    return _values(pre, thresholds, heights), torch.stack(counts, 1), zero


@custom_op(
    "quantize_levels_grad",
    "(Tensor grad_acts, Tensor grad_counts, Tensor grad_zero, Tensor pre, Tensor thresholds, "
    "Tensor heights, Tensor? curvature, str surrogate, float temperature) -> (Tensor, Tensor, Tensor)",
)
def _quantize_grad(
    grad_acts: Tensor,
    grad_counts: Tensor,
    grad_zero: Tensor,
    pre: Tensor,
    thresholds: Tensor,
    heights: Tensor,
    curvature: Tensor | None,
    surrogate: str,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(pre.dtype, torch.float32)
    on = _On.of(pre, thresholds) if _lists_entries(pre) else None
    costs, values = grad_counts.to(wide), None
    if curvature is not None:
        curvature = (curvature * grad_zero).to(wide)
        # What of it is the same in every row is a cost of the level.
        middles = heights.cumsum(1) - heights / 2
        costs = costs + curvature[:, None] * heights * middles
        values = _values(pre, thresholds, heights) if on is None else on.values(pre, heights)
        values = values.to(wide)
    columns = [t.to(wide).T.contiguous() for t in (thresholds, heights, costs)]
    grad_pre = torch.empty_like(pre)
    grad_thresholds = torch.zeros_like(columns[0])
    n_rows = _rows_at_a_time(pre)
    for start in range(0, len(pre), n_rows):
        rows = slice(start, start + n_rows)
        step_gradient = _StepGradient.of(pre[rows].to(wide), surrogate, temperature)
        grad, total = grad_acts[rows].to(wide), grad_pre.new_zeros((), dtype=wide)
        if curvature is not None and values is not None:
            grad = torch.addcmul(grad, values[rows], curvature, value=-1)
        for level, (threshold, height, cost) in enumerate(zip(*columns, strict=True)):
            term = torch.addcmul(cost, grad, height).mul_(step_gradient.at(threshold))
            grad_thresholds[level] -= term.sum(0)
            total = term if level == 0 else total.add_(term)
        grad_pre[rows] = total
    if on is not None:
        grad_heights = on.summed(grad_acts.reshape(-1)[on.entry].to(wide), heights.shape)
    else:
        passed = [(grad_acts * (pre > t)).sum(0, dtype=wide) for t in thresholds.unbind(1)]
        grad_heights = torch.stack(passed, 1)
    return (
        grad_pre,
        grad_thresholds.T.contiguous().to(thresholds.dtype),
        grad_heights.to(heights.dtype),
    )


@_quantize.register_fake
def _(
    pre: Tensor,
    thresholds: Tensor,
    heights: Tensor,  # noqa: ARG001
    curvature: Tensor | None,  # noqa: ARG001
    surrogate: str,  # noqa: ARG001
    temperature: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(pre.dtype, torch.float32)
    counts = thresholds.new_empty(thresholds.shape, dtype=dtype)
    return torch.empty_like(pre), counts, pre.new_empty((), dtype=dtype)


@_quantize_grad.register_fake
def _(
    grad_acts: Tensor,  # noqa: ARG001
    grad_counts: Tensor,  # noqa: ARG001
    grad_zero: Tensor,  # noqa: ARG001
    pre: Tensor,
    thresholds: Tensor,
    heights: Tensor,
    curvature: Tensor | None,  # noqa: ARG001
    surrogate: str,  # noqa: ARG001
    temperature: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(pre), torch.empty_like(thresholds), torch.empty_like(heights)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG001
    *tensors, ctx.surrogate, ctx.temperature = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
    grads = _quantize_grad(*grad_outputs, *ctx.saved_tensors, ctx.surrogate, ctx.temperature)
    return *grads, None, None, None


_quantize.register_autograd(_backward, setup_context=_keep_inputs)


class _On(NamedTuple):
    """The entries of a matrix that pass their first threshold."""

    entry: Tensor
    """In the flattened matrix, int64 [m]."""
    latent: Tensor
    level: Tensor
    """Of the highest threshold that is passed, from 0."""

    @classmethod
    def of(cls, pre: Tensor, thresholds: Tensor) -> _On:
        entry = (pre > thresholds[:, 0]).view(-1).nonzero()[:, 0]
        latent = entry % pre.shape[1]
        above = pre.reshape(-1)[entry, None] > thresholds[latent, 1:]
        return cls(entry, latent, above.sum(1))

    def values(self, pre: Tensor, heights: Tensor) -> Tensor:
        """The activations, 0 elsewhere."""
        acts = torch.zeros_like(pre)
        acts.view(-1)[self.entry] = heights.cumsum(1).to(pre.dtype)[self.latent, self.level]
        return acts

    def summed(self, values: Tensor | None, shape: torch.Size) -> Tensor:
        """Per latent and threshold, the sum of the values (None: the number) of those that pass it."""
        cell = self.latent * shape[1] + self.level
        sums = torch.bincount(cell, values, minlength=math.prod(shape))
        return sums.reshape(shape).flip(1).cumsum(1).flip(1)


def _values(pre: Tensor, thresholds: Tensor, heights: Tensor) -> Tensor:
    """The activations, where entries are not listed."""
    acts = torch.zeros_like(pre)
    # Chosen and not added up, so that each is one of the latent's values to the last bit.
    values = heights.cumsum(1).to(pre.dtype)
    for threshold, value in zip(thresholds.unbind(1), values.unbind(1), strict=True):
        torch.where(pre > threshold, value, acts, out=acts)
    return acts


class _StepGradient:
    """The surrogate's derivative at one threshold after the other, what they share computed once."""

    def __init__(self, pre: Tensor, surrogate: str, temperature: float) -> None:
        self.pre, self.surrogate, self.temperature = pre, surrogate, temperature

    @classmethod
    def of(cls, pre: Tensor, surrogate: str, temperature: float) -> _StepGradient:
        return cls(pre / temperature if surrogate == "sigmoid" else pre, surrogate, temperature)

    def at(self, threshold: Tensor) -> Tensor:
        if self.surrogate == "sigmoid":
            s = (self.pre - threshold / self.temperature).sigmoid_()
            # s·(1 − s)/τ.
            return torch.ops.aten.sigmoid_backward(
                torch.full_like(threshold, 1 / self.temperature), s
            )
        if self.surrogate == "paper":
            shifted = self.pre - threshold
            return shifted * (1 - shifted)
        return torch.ones_like(threshold)


def _lists_entries(pre: Tensor) -> bool:
    """Whether to go by a list of the entries that are on: a device would wait for its length."""
    return pre.device.type == "cpu"


def _rows_at_a_time(pre: Tensor) -> int:
    return max(_BLOCK // pre.shape[1], 1) if pre.device.type == "cpu" else max(len(pre), 1)


# How thresholds and heights are kept: as numbers that any value of is allowed.


def thresholds_of(gaps: Float[Tensor, "d_sae L-1"]) -> Float[Tensor, "d_sae L"]:
    """Ascending from 0: each threshold is softplus of its gap above the one before.

    That the first is 0 takes nothing away, since the encoder's bias moves all of them.
    """
    return torch.cat([torch.zeros_like(gaps[:, :1]), softplus(gaps).cumsum(1)], 1)


def heights_of(raw: Float[Tensor, "d_sae L-1"]) -> Float[Tensor, "d_sae L"]:
    """1, then softplus: every level is worth more than the one below.

    That the first is 1 takes nothing away, since the decoder scales all of them.
    """
    return torch.cat([torch.ones_like(raw[:, :1]), softplus(raw)], 1)


def inverse_softplus(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The number whose softplus this is, for y > 0.

    Examples:
        >>> y = torch.tensor([1e-3, 1.0, 50.0])
        >>> torch.allclose(torch.nn.functional.softplus(inverse_softplus(y)), y)
        True
    """
    return y + torch.log(-torch.expm1(-y))
