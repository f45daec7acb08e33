"""What a latent has at the tokens of its examples' windows, for the page."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from typing_extensions import Self

from bae_lens.examples.records import Example, LatentRecord, Strength
from bae_lens.report.packing import pack_values


class Windows(NamedTuple):
    """Of one latent.

    Attributes:
        least: value in any of the windows shown, where it fires.
        greatest: the same.
        share: of the other tokens that count in the windows of random examples, at how many it fires too: near 0 where
            it stands for single tokens, near 1 where for what a text is about. None where there are no others. Of a code
            they are all other tokens: examples do not tell which of those without it count.
        is_code: whether 0 is a value, and not that it does not fire.
    """

    least: float
    greatest: float
    share: float | None
    is_code: bool

    @classmethod
    def of(cls, latent: LatentRecord, strength: Strength) -> Self | None:
        """None where it is not known, or it never fires."""
        is_code = strength == "nearness"
        shown = list(chain(latent.strongest, latent.random))
        values = [value for e in shown for _, value in _fired(e, is_code)]
        if not values:
            return None
        # At each other token, whether it fires. Of a code None says only that it does not.
        others = [
            value is not None if is_code else value != 0
            for e in latent.random
            for k, value in enumerate(e.activations or ())
            if k != e.marked and (value is not None or is_code)
        ]
        share = sum(others) / len(others) if others else None
        return cls(min(values), max(values), share, is_code)

    def packed(self, example: Example) -> str:
        """Where the latent fires in a window, and how strongly."""
        return pack_values(_fired(example, self.is_code), self.least, self.greatest)


def _fired(example: Example, is_code: bool) -> Iterable[tuple[int, float]]:
    for k, value in enumerate(example.activations or ()):
        if value is not None and (value != 0 or is_code):
            yield k, value
