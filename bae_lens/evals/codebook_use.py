"""How a codebook is used: how evenly, and whether a code stands for more than one token's identity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bae_lens.checks.fields import check, whole
from bae_lens.nn import plug_in_entropy


class CodebookSummary(NamedTuple):
    """Statistics of codes, one for each token.

    Attributes:
        perplexity: exp of the entropy of how often each code is used, over all tokens at once: the
            number of codes that, used evenly, would say as much.
        codes_in_use: codes that some token has.
        share_of_codes_in_use: of the codebook.
        bits_per_token: that entropy in bits, log₂ of the perplexity.
        token_purity: how often a token is the most frequent one of its code: 1 where a code says no
            more than which token it is.
        token_purity_shuffled: the same with the codes dealt out to the tokens at random: what
            frequent tokens and rarely used codes give for nothing.
    """

    perplexity: float
    codes_in_use: int
    share_of_codes_in_use: float
    bits_per_token: float
    token_purity: float
    token_purity_shuffled: float


class CodebookUse:
    """Streaming statistics of a code of one latent per token: ``update(codes, tokens)`` … ``compute()``.

    Memory is two numbers per token.

    Args:
        n_codes: size of the codebook.
    """

    def __init__(self, n_codes: int) -> None:
        self.n_codes = check("n_codes", n_codes, whole(1))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def update(self, codes: Tensor, tokens: Tensor) -> None:
        """Count tokens: the code and the token id of each.

        Raises:
            ValueError: if there are not as many codes as tokens, they are no whole numbers, or a code is
                not in the codebook.
        """
        if codes.shape != tokens.shape:
            raise ValueError(
                f"There must be one code per token; got {tuple(codes.shape)} and {tuple(tokens.shape)}."
            )
        for name, ids in (("codes", codes), ("tokens", tokens)):
            if ids.is_floating_point() or ids.is_complex():
                raise ValueError(
                    f"{name} must be whole numbers; got {ids.dtype}, which rounds them."
                )
        codes, tokens = codes.flatten().long().cpu(), tokens.flatten().long().cpu()
        if len(codes) > 0 and not 0 <= int(codes.min()) <= int(codes.max()) < self.n_codes:
            raise ValueError(f"Codes must be between 0 and {self.n_codes - 1}.")
        self.seen.append((codes, tokens))

    def merge(self, other: CodebookUse) -> None:
        """Add what another instance has counted.

        Raises:
            ValueError: if its codebook is of another size.
        """
        if other.n_codes != self.n_codes:
            raise ValueError(
                f"Codebooks of {self.n_codes} and {other.n_codes} codes cannot be merged."
            )
        self.seen += other.seen

    def compute(self) -> CodebookSummary:
        """Statistics of everything seen so far.

        Raises:
            ValueError: if nothing was seen.
        """
        if not any(len(codes) for codes, _ in self.seen):
            raise ValueError("No token was counted: call update() with at least one first.")
        codes, tokens = (torch.cat(x) for x in zip(*self.seen, strict=True))
        uses = torch.bincount(codes, minlength=self.n_codes)
        bits = plug_in_entropy(uses)
        in_use = int((uses > 0).sum())
        generator = torch.Generator().manual_seed(len(codes))
        shuffled = codes[torch.randperm(len(codes), generator=generator)]
        return CodebookSummary(
            perplexity=2**bits,
            codes_in_use=in_use,
            share_of_codes_in_use=in_use / self.n_codes,
            bits_per_token=bits,
            token_purity=self._purity(codes, tokens),
            token_purity_shuffled=self._purity(shuffled, tokens),
        )

    def _purity(self, codes: Tensor, tokens: Tensor) -> float:
        n_ids = int(tokens.max()) + 1
        pairs, counts = torch.unique(codes * n_ids + tokens, return_counts=True)
        most_frequent = torch.zeros(self.n_codes, dtype=torch.int64)
        most_frequent.scatter_reduce_(0, pairs // n_ids, counts, "amax")
        return most_frequent.sum().item() / len(codes)
