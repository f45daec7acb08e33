"""From codes of a lower layer to activations of a higher one, token by token or in context."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Positions = Literal["sinusoidal", "learned"]
POSITIONS: tuple[str, ...] = get_args(Positions)

_MAX_HEADS = 8


class TokenDecoder(nn.Module):
    """Residual MLP on each token by itself: a code always decodes to the same output.

    Args:
        d_in: width of a code.
        d_out: width of an output.
        n_layers: residual blocks before the linear map to the output.
        d_mlp: hidden width of a block; default 4·``d_in``.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        n_layers: int = 2,
        d_mlp: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.d_in = d_in
        self.blocks = nn.ModuleList(
            _mlp(d_in, d_mlp or 4 * d_in, device, dtype) for _ in range(n_layers)
        )
        # No norm before it: the length of a code is part of what it says.
        self.head = nn.Linear(d_in, d_out, device=device, dtype=dtype)

    def forward(
        self,
        codes: Float[Tensor, "*batch d_in"],
        valid: Bool[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Decode each token.

        Args:
            codes: any leading shape.
            valid: the output is zero elsewhere.

        Raises:
            ValueError: if the width is not ``d_in`` or the mask is not boolean, one entry per token.
        """
        _check(codes, valid, self.d_in)
        h = codes if valid is None else torch.where(valid[..., None], codes, 0)
        for block in self.blocks:
            h = h + block(h)
        out = self.head(h)
        return out if valid is None else torch.where(valid[..., None], out, 0)


class CausalTransformerDecoder(nn.Module):
    """Pre-norm transformer over the codes of a sequence, each token seeing those up to itself.

    What reaches the output went through the codes: the bottleneck is one. In the release of
    arXiv 2506.20040 the decoder also attends to the encoder's continuous output, its mask lets a
    token see those *after* it, and it has no positions; its authors' later TRACE drops all three,
    as this does.

    Args:
        d_in: width of a code.
        d_out: width of an output.
        d_model: width inside; default ``d_in``.
        n_layers: blocks of attention and MLP.
        n_heads: default 8, or the largest number below that divides ``d_model``.
        d_mlp: hidden width of an MLP; default 4·``d_model``.
        positions: ``"sinusoidal"``, for any length, or ``"learned"``.
        max_length: positions that are learned; ``"sinusoidal"`` ignores it.
        cross_attention: have a second attention in each block, to ``memory``. It is there to
            compare with the release, whose leak it brings back (but for the mask: it stays causal).

    Raises:
        ValueError: if ``n_heads`` does not divide ``d_model`` or ``positions`` is not a known name.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        d_model: int | None = None,
        n_layers: int = 3,
        n_heads: int | None = None,
        d_mlp: int | None = None,
        positions: Positions = "sinusoidal",
        max_length: int = 1024,
        cross_attention: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}.")
        d_model = d_model or d_in
        n_heads = default_heads(d_model) if n_heads is None else n_heads
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} must divide the decoder's width, {d_model}.")
        self.d_in, self.d_model, self.cross_attention = d_in, d_model, cross_attention
        self.embed = nn.Linear(d_in, d_model, device=device, dtype=dtype)
        self.positions = None
        if positions == "learned":
            start = 0.02 * torch.randn(max_length, d_model, device=device, dtype=dtype)
            self.positions = nn.Parameter(start)
        self.blocks = nn.ModuleList(
            _Block(
                d_model,
                n_heads,
                d_mlp or 4 * d_model,
                d_in if cross_attention else None,
                device,
                dtype,
            )
            for _ in range(n_layers)
        )
        self.head = nn.Linear(d_model, d_out, device=device, dtype=dtype)

    def forward(
        self,
        codes: Float[Tensor, "*batch d_in"],
        valid: Bool[Tensor, "*batch"] | None = None,
        memory: Float[Tensor, "*batch d_in"] | None = None,
        positions: Int[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Decode sequences.

        Args:
            codes: ``[n_sequences, length, d_in]``; ``[n, d_in]`` is n sequences of length 1.
            valid: which positions exist. The others are not attended to, and their output is zero;
                what they hold does not matter, NaN included.
            memory: continuous vectors of the same shape, for a decoder with ``cross_attention``
                only. **It leaks**: the output is then no longer a function of the codes.
            positions: where each code stands, counted from 0; default 0, 1, 2, …

        Raises:
            ValueError: if shapes do not fit together, the mask is not boolean, a sequence is longer
                than the learned positions, or ``memory`` is there without ``cross_attention`` or
                the other way round.
        """
        self._check(codes, valid, memory, positions)
        if codes.ndim == 2:
            one = [None if t is None else t[:, None] for t in (valid, memory, positions)]
            return self(codes[:, None], *one).squeeze(1)
        mask = None
        if valid is not None:
            codes = torch.where(valid[..., None], codes, 0)
            memory = None if memory is None else torch.where(valid[..., None], memory, 0)
            mask = _causal_mask(valid)
        h = self.embed(codes)
        h = h + self._position_vectors(codes.shape[1], positions, h)
        for block in self.blocks:
            h = block(h, mask, memory)
        out = self.head(h)
        return out if valid is None else torch.where(valid[..., None], out, 0)

    def _position_vectors(self, length: int, positions: Tensor | None, like: Tensor) -> Tensor:
        where = torch.arange(length, device=like.device) if positions is None else positions
        if self.positions is None:
            return sinusoids(where, self.d_model).to(like.dtype)
        return F.embedding(where, self.positions)

    def _check(
        self,
        codes: Tensor,
        valid: Tensor | None,
        memory: Tensor | None,
        positions: Tensor | None,
    ) -> None:
        _check(codes, valid, self.d_in)
        if codes.ndim not in (2, 3):
            raise ValueError(
                "Sequences of codes must be [n_sequences, length, d_in], or [n, d_in] for single "
                f"tokens; got shape {tuple(codes.shape)}."
            )
        if (memory is not None) != self.cross_attention:
            raise ValueError(
                "memory is for decoders with cross_attention=True, and they need it; this one has "
                f"cross_attention={self.cross_attention}, and memory is "
                f"{'missing' if memory is None else 'given'}."
            )
        for name, value, shape in (
            ("memory", memory, codes.shape),
            ("positions", positions, codes.shape[:-1]),
        ):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} must be {tuple(shape)}; got {tuple(value.shape)}.")
        length = 1 if codes.ndim == 2 else codes.shape[1]
        if self.positions is not None and length > len(self.positions):
            raise ValueError(
                f"A sequence of {length} codes is longer than the {len(self.positions)} learned "
                "positions (max_length)."
            )


class _Block(nn.Module):
    def __init__(
        self,
        d: int,
        n_heads: int,
        d_mlp: int,
        d_memory: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(d, device=device, dtype=dtype)
        self.attention = _Attention(d, d, n_heads, device, dtype)
        self.cross_norm = self.cross_attention = None
        if d_memory is not None:
            self.cross_norm = nn.LayerNorm(d, device=device, dtype=dtype)
            self.cross_attention = _Attention(d, d_memory, n_heads, device, dtype)
        self.mlp = _mlp(d, d_mlp, device, dtype)

    def forward(self, h: Tensor, mask: Tensor | None, memory: Tensor | None) -> Tensor:
        normed = self.norm(h)
        h = h + self.attention(normed, normed, mask)
        if self.cross_norm is not None and self.cross_attention is not None:
            h = h + self.cross_attention(self.cross_norm(h), memory, mask)
        return h + self.mlp(h)


class _Attention(nn.Module):
    def __init__(
        self,
        d: int,
        d_memory: int,
        n_heads: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(d, d, device=device, dtype=dtype)
        self.key_value = nn.Linear(d_memory, 2 * d, device=device, dtype=dtype)
        self.out = nn.Linear(d, d, device=device, dtype=dtype)

    def forward(self, h: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q = rearrange(self.query(h), "n t (h e) -> n h t e", h=self.n_heads)
        k, v = rearrange(
            self.key_value(memory), "n t (two h e) -> two n h t e", two=2, h=self.n_heads
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(rearrange(mixed, "n h t e -> n t (h e)"))


def default_heads(d_model: int) -> int:
    """8, or the largest number below that divides the width."""
    return max(heads for heads in range(1, _MAX_HEADS + 1) if d_model % heads == 0)


def sinusoids(positions: Int[Tensor, "*shape"], d: int) -> Float[Tensor, "*shape d"]:
    """Sines and cosines of wavelengths from 2π to 2π·10⁴ (Vaswani et al., 2017), in float32."""
    half = (d + 1) // 2
    exponent = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None].float() * 10_000.0**-exponent
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :d]


def _mlp(
    d: int, d_mlp: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(d, device=device, dtype=dtype),
        nn.Linear(d, d_mlp, device=device, dtype=dtype),
        nn.GELU(),
        nn.Linear(d_mlp, d, device=device, dtype=dtype),
    )


def _causal_mask(valid: Tensor) -> Tensor:
    """``[n, 1, length, length]``, True where a position may look.

    Every position sees itself, the missing ones too: a row that sees nothing is NaN in attention.
    """
    length = valid.shape[1]
    ones = torch.ones(length, length, dtype=torch.bool, device=valid.device)
    itself = torch.eye(length, dtype=torch.bool, device=valid.device)
    return rearrange(ones.tril() & (valid[:, None, :] | itself), "n q k -> n 1 q k")


def _check(codes: Tensor, valid: Tensor | None, d_in: int) -> None:
    if codes.ndim == 0 or codes.shape[-1] != d_in:
        raise ValueError(f"This decoder takes codes [..., {d_in}]; got shape {tuple(codes.shape)}.")
    if valid is not None and (valid.shape != codes.shape[:-1] or valid.dtype != torch.bool):
        raise ValueError(
            f"valid must be boolean with one entry per code, {tuple(codes.shape[:-1])}; got "
            f"{valid.dtype} of shape {tuple(valid.shape)}."
        )
