"""What the code of an architecture is made of, which the architecture itself says."""

from __future__ import annotations

from typing import NamedTuple


class CodeKind(NamedTuple):
    """Which values the latents of a code can have.

    An architecture says so by an attribute ``code_kind``; a code of levels by a property that reads how many
    there are from its config. One that says nothing, as SAELens' own, has a real-valued code.

    Attributes:
        n_values: values that a latent can have where it fires; None where they are real numbers.
        is_one_hot: whether exactly one latent fires per token.
    """

    n_values: int | None = None
    is_one_hot: bool = False

    @property
    def is_one_bit(self) -> bool:
        """Whether a latent says no more than that it fires."""
        return self.n_values == 1

    @property
    def is_real_valued(self) -> bool:
        """Whether magnitudes have to be quantized before they have a length in bits."""
        return self.n_values is None


ONE_BIT = CodeKind(n_values=1)
ONE_HOT = CodeKind(n_values=1, is_one_hot=True)
REAL_VALUED = CodeKind()
