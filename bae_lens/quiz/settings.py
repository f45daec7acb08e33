"""What can be chosen in a quiz."""

from __future__ import annotations

from dataclasses import dataclass

from bae_lens.checks.fields import check_fields, whole


@dataclass(frozen=True)
class QuizSettings:
    """Settings of ``write_quiz``.

    Args:
        n_texts (int): Texts that are asked about, of each dictionary the same; fewer where there are
            fewer.
        n_controls (int): Controls of each dictionary, ``n_texts`` at most.
        n_words (int): Words of a concept that are shown at most.
        n_contexts (int): Contexts of a concept that are shown at most.
        seed (int): Of the draw, the order of questions, and the intervals of the scores.

    Raises:
        ValueError: if a value is outside its range, or nothing would be shown.
    """

    n_texts: int = 12
    n_controls: int = 3
    n_words: int = 10
    n_contexts: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "n_texts": whole(1),
                "n_controls": whole(0),
                "n_words": whole(0),
                "n_contexts": whole(0),
                "seed": whole(0),
            },
        )
        if self.n_controls > self.n_texts:
            raise ValueError(
                f"n_controls is {self.n_controls}, of n_texts = {self.n_texts} texts. Lower it, or "
                "ask about more texts."
            )
        if self.n_words + self.n_contexts == 0:
            raise ValueError("A view shows words or contexts; n_words and n_contexts are both 0.")
