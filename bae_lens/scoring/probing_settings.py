"""Settings of ``sparse_probing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bae_lens.activations.outlier_tokens import multiple_of
from bae_lens.checks.fields import ListOf, Number, OneOf, Rule, check_fields, whole

ChosenBy = Literal["difference", "standardized"]

_FIELDS: Mapping[str, Rule] = {
    "k": ListOf(whole(1), distinct=True),
    "chosen_by": OneOf(get_args(ChosenBy)),
    "max_examples": whole(8, or_none=True),
    "test_share": Number(above=0, below=1),
    "context_size": whole(3),
    "n_draws": whole(1, 9),
    "batch_size": whole(1),
    # Of scikit-learn's generator.
    "seed": whole(0, 2**32 - 1),
}


@dataclass(frozen=True)
class SparseProbingSettings:
    """Settings of ``sparse_probing``.

    Args:
        k (Sequence[int]): How many latents a probe reads, each number by itself.
        chosen_by (str): Which k latents: those whose mean over the training texts of a class differs
            most from that over the other texts, as in SAEBench; or ``"standardized"``, by the difference over
            the standard deviation, which goes with the correlation and not with a latent's scale.
        max_examples (int | None): Labeled texts that are used, a stratified sample where there are
            more; None: all.
        test_share (float): Share of each class that is held out, unless held-out texts are given.
        context_size (int): Tokens of a text at most; the rest is cut off.
        n_draws (int): How often random latents, and labels to choose latents by, are drawn; 9 at most.
        batch_size (int): Texts a forward pass.
        seed (int): Of sample, split, probes and draws.
        exclude_outlier_tokens (bool | float): Leave attention sinks other than BOS out of every mean, as
            special tokens are, told by their norm. True, or the multiple of the reference norm: that of
            the dictionary's metadata, or else the median over the first tokens of the texts.

    Raises:
        ValueError: if a value is outside its range.
    """

    k: Sequence[int] = (1, 2, 5)
    chosen_by: ChosenBy = "difference"
    max_examples: int | None = 2000
    test_share: float = 0.25
    context_size: int = 128
    n_draws: int = 5
    batch_size: int = 16
    seed: int = 0
    exclude_outlier_tokens: bool | float = True

    def __post_init__(self) -> None:
        check_fields(self, _FIELDS)
        object.__setattr__(self, "k", tuple(sorted(self.k)))
        if not isinstance(self.exclude_outlier_tokens, bool):
            multiple = multiple_of(self.exclude_outlier_tokens)
            object.__setattr__(self, "exclude_outlier_tokens", multiple)
