"""Settings of ``comsem_test``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from bae_lens.checks.fields import Flag, Number, OneOf, check_fields, whole

Protocol = Literal["balanced", "released"]

# Examples that a latent has to have, of the release.
_NEEDED = 6


@dataclass(frozen=True)
class ComSemSettings:
    """Settings of ``comsem_test``.

    Args:
        protocol (str): ``"balanced"``, or ``"released"``: the first five examples in the order of the
            corpus are shown, the next eight tested, no negatives, one seed. All but ``n_latents``,
            ``threshold`` and ``seed`` is then without meaning.
        n_latents (int | None): Latents drawn at random from those with enough texts; None: all.
        n_shown (int): Examples that are explained, half of them (rounded down) from the strongest (of
            bits from a second random sample), the others random, each from another text.
        n_positive (int): Further random examples that the phrase is tested on, at most.
        n_min_positive (int): At least. Latents with fewer texts are not tested.
        n_hard (int): Hard negatives are drawn from so many non-activating tokens, those most like the
            latent's examples.
        n_seeds (int): How often all is drawn anew.
        compare_phrases (bool): Ask whether the phrases of two seeds say the same.
        threshold (float): Score from which a latent counts. The paper has a count, and no threshold
            that can be found.
        seed (int): Of the first drawing, and of which latents.

    Raises:
        ValueError: if a value is outside its range.
    """

    protocol: Protocol = "balanced"
    n_latents: int | None = 50
    n_shown: int = 5
    n_positive: int = 8
    n_min_positive: int = 3
    n_hard: int = 25
    n_seeds: int = 3
    compare_phrases: bool = True
    threshold: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.protocol, str) and self.protocol == "mended":
            # What an older version called it, in files that it wrote.
            object.__setattr__(self, "protocol", "balanced")
        check_fields(
            self,
            {
                "protocol": OneOf(get_args(Protocol)),
                "n_latents": whole(1, or_none=True),
                "n_shown": whole(2),
                "n_positive": whole(1),
                "n_min_positive": whole(1),
                "n_hard": whole(1),
                "n_seeds": whole(1),
                "compare_phrases": Flag(),
                "threshold": Number(least=0, most=1),
                "seed": whole(0),
            },
        )
        if self.n_min_positive > self.n_positive:
            raise ValueError(
                f"n_min_positive must be n_positive = {self.n_positive} at most; got "
                f"{self.n_min_positive}."
            )

    @property
    def n_runs(self) -> int:
        """Times that a latent is explained."""
        return self.n_seeds if self.protocol == "balanced" else 1

    @property
    def n_needed(self) -> int:
        """Texts (released: examples) that a latent has to have."""
        is_balanced = self.protocol == "balanced"
        return self.n_shown + self.n_min_positive if is_balanced else _NEEDED

    @property
    def nothing(self) -> float:
        """Score of a latent without a phrase: what guessing would reach, or released 0."""
        return 0.5 if self.protocol == "balanced" else 0.0
