"""What a latent is tested on: texts in which it fires, and tokens at which it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bae_lens.examples.records import Example, LatentRecords
from bae_lens.scoring.judges.embedding import Embedder
from bae_lens.scoring.judges.judge import MarkedText

Which = Literal["random", "strongest"]


class NonActivating(NamedTuple):
    """Random tokens of the corpus at which a latent does not fire.

    Attributes:
        examples: the tokens.
        similarity: mean cosine of each to the latent's examples; None without an encoder.
    """

    examples: tuple[Example, ...]
    similarity: NDArray[np.float64] | None

    def hardest(self, n: int) -> tuple[Example, ...]:
        """The n most alike; none without an encoder."""
        if self.similarity is None:
            return ()
        order = np.argsort(-self.similarity, kind="stable")
        return tuple(self.examples[i] for i in order[:n])


@dataclass(frozen=True, eq=False)
class TestedLatents:
    """The latents of the examples as subjects of tests.

    Args:
        records: with corpus tokens.
        embedder: of marked tokens, for hard negatives; None: there are none.
        needs_non_activating: whether negatives are wanted.

    Raises:
        ValueError: if the records have no corpus tokens, without which nobody knows where a latent
            does not fire: two latents may fire at the same token.
    """

    records: LatentRecords
    embedder: Embedder | None = None
    needs_non_activating: bool = True
    _firing: list[frozenset[int]] = field(init=False)

    def __post_init__(self) -> None:
        if self.needs_non_activating and not self.records.corpus_tokens:
            raise ValueError(
                "Negatives are tokens at which a latent is known not to fire, and there are "
                "none. Collect examples with n_corpus_tokens above 0."
            )
        firing = [frozenset(token.latents) for token in self.records.corpus_tokens or ()]
        object.__setattr__(self, "_firing", firing)

    def examples(self, latent: int, which: Which = "random") -> tuple[Example, ...]:
        """Of a latent, one per text: texts would otherwise be recognized, not what fires in them.

        The strongest of a bit are a second random sample here, whatever their margins, so that scores
        of bits mean what they did before there were any.
        """
        own = self.records[latent]
        if which == "random":
            return one_per_text(own.random)
        return one_per_text(own.strongest if own.more_random is None else own.more_random)

    def non_activating(self, latent: int | None, examples: Sequence[Example]) -> NonActivating:
        """Tokens at which a latent does not fire, in texts that none of its examples is from.

        Args:
            latent: which one; None: of something that is no latent, any token.
            examples: what similarity is to.
        """
        corpus_tokens = self.records.corpus_tokens or ()
        texts = {example.text for example in examples}
        kept = tuple(
            token.example
            for token, firing in zip(corpus_tokens, self._firing, strict=True)
            if token.example.text not in texts and latent not in firing
        )
        if self.embedder is None or not kept:
            return NonActivating(kept, None)
        center = self.embedder([MarkedText.of(e) for e in examples]).mean(0)
        vectors = self.embedder([MarkedText.of(e) for e in kept])
        return NonActivating(kept, vectors @ center)

    def with_texts(self, n: int) -> list[int]:
        """Latents whose random examples are from ``n`` texts at least, in order."""
        return [own.index for own in self.records.latents if n_texts(own.random) >= n]

    @property
    def n_firing(self) -> int:
        """Latents that fire at all."""
        return sum(own.n_firings > 0 for own in self.records.latents)


def draw(latents: Sequence[int], n: int | None, seed: int) -> tuple[int, ...]:
    """``n`` latents at random, in order; all of them if there are no more, or n is None.

    Each latent has a number of its own, whichever others there are: tests with other demands on texts
    draw the same ones as far as they can.
    """
    if n is None or n >= len(latents):
        return tuple(latents)
    numbers = np.random.default_rng(seed).random(max(latents) + 1)
    return tuple(sorted(sorted(latents, key=lambda i: numbers[i])[:n]))


def some(rng: np.random.Generator, examples: Sequence[Example], n: int) -> list[Example]:
    """``n`` at random, in random order; fewer where there are fewer."""
    return [examples[i] for i in rng.permutation(len(examples))[:n]]


def one_per_text(
    examples: Iterable[Example], besides: Iterable[Example] = ()
) -> tuple[Example, ...]:
    """The first of each text that none of ``besides`` is from.

    A corpus may have a text several times: examples that read the same are taken for one text's.
    """
    seen = {sign for example in besides for sign in _signs_of_text(example)}
    found = []
    for example in examples:
        own = _signs_of_text(example)
        if seen.isdisjoint(own):
            found.append(example)
        seen |= own
    return tuple(found)


def n_texts(examples: Iterable[Example]) -> int:
    """Texts that they are from, see ``one_per_text``."""
    return len(one_per_text(examples))


def _signs_of_text(example: Example) -> set[Any]:
    """What two examples of one text have in common: its number, or all that is shown of it."""
    return {example.text, (example.strings, example.marked)}


def purity(examples: Sequence[Example]) -> float:
    """Share of the most frequent token, space and case aside; high by chance of few examples."""
    tokens = Counter(e.strings[e.marked].strip().casefold() for e in examples)
    return tokens.most_common(1)[0][1] / len(examples)
