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
        share: of the other tokens in the windows of random examples, at how many it fires too: near 0 where it
            stands for single tokens, near 1 where for what a text is about. None where there are no others.
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
        n_others = sum(len(e.tokens) - 1 for e in latent.random)
        n_fired = sum(len(list(_fired(e, is_code))) - 1 for e in latent.random)
        share = max(n_fired, 0) / n_others if n_others > 0 else None
        return cls(min(values), max(values), share, is_code)

    def packed(self, example: Example) -> str:
        """Where the latent fires in a window, and how strongly."""
        return pack_values(_fired(example, self.is_code), self.least, self.greatest)


def _fired(example: Example, is_code: bool) -> Iterable[tuple[int, float]]:
    for k, value in enumerate(example.activations or ()):
        if value is not None and (value != 0 or is_code):
            yield k, value
