"""What a result keeps of the salient tokens."""

from __future__ import annotations

from dataclasses import dataclass

from bae_lens.checks.old_names import renamed_fields


@renamed_fields(in_evidence="in_rationale", evidence_words="rationale_words")
@dataclass(frozen=True)
class SalientTokens:
    """Where the attributions point.

    Attributes:
        words: each example's salient word.
        readout_share: of examples whose most attributed position is the one that the text's vector
            is read at ([CLS], or the last token), and not a word; None if it is read at all of them.
        in_rationale: share of examples, among those with a person's rationale, whose salient word
            lies in it; None without rationales.
        rationale_words: share of those examples' words that lie in it, which is what a random word
            would reach.
        missing: of integrated gradients, share of the logit's change that they do not add up to.
    """

    words: tuple[str, ...]
    readout_share: float | None = None
    in_rationale: float | None = None
    rationale_words: float | None = None
    missing: float | None = None
