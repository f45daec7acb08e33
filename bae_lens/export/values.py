"""What ``encode`` gives, from what was kept of each latent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sae_lens import SAE
from typing_extensions import Self

from bae_lens.dictionaries import Dictionary
from bae_lens.examples.histogram import PER_OCTAVE
from bae_lens.examples.records import Example, LatentRecord, LatentRecords, check_records_of


def utf8(text: str) -> str:
    """The text, with half a surrogate pair, which UTF-8 cannot hold, as "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_windows(records: LatentRecords) -> None:
    """That examples say what latents have along their windows.

    Raises:
        ValueError: if they do not, as those of older files.
    """
    for latent in records.latents:
        for example in (*latent.strongest, *latent.random):
            _window(example)


def _window(example: Example) -> tuple[float | None, ...]:
    if example.activations is None:
        raise ValueError(
            "The examples do not say what latents have along their windows: a version before "
            "Example.activations collected them. Collect them anew: bae-lens report PATH --save_examples."
        )
    return example.activations


@dataclass(frozen=True, eq=False)
class LatentValues:
    """Activations of a dictionary's latents, as ``encode`` gives them.

    Records of bits hold margins in place of activations, and of a bit that is mostly on where it is *off*
    (``LatentRecord.when_off``); those of one-hot codes distances. Here a bit has its scale where it is on, and a code
    where it is the token's: 1, unless a decoder norm was folded into it.

    Attributes:
        records: what was seen of them.
        on_values: of a one-bit or one-hot code the value of each latent where it fires; None of other codes.
    """

    records: LatentRecords
    on_values: tuple[float, ...] | None

    @classmethod
    def of(cls, records: LatentRecords, sae: SAE[Any]) -> Self:
        """
        Raises:
            ValueError: if the records are of another dictionary.
        """
        dictionary = Dictionary(sae)
        check_records_of(records, dictionary.n_latents, dictionary.weights_sha256)
        source: Any = sae
        if not dictionary.kind.is_one_bit:
            return cls(records, None)
        # Of codes of vectors an architecture need not have a scale.
        values = (
            getattr(source, "scale", None) if dictionary.kind.is_one_hot else source.level_values
        )
        if values is None:
            return cls(records, (1.0,) * len(records))
        return cls(records, tuple(values.detach().float().flatten().tolist()))

    def density(self, latent: LatentRecord) -> float:
        """Share of tokens at which the activation is not 0."""
        return 1 - latent.rate if latent.when_off else latent.rate

    def n_active(self, latent: LatentRecord) -> int:
        """Tokens at which the activation is not 0."""
        n = latent.n_firings
        return self.records.n_tokens - n if latent.when_off else n

    def window(self, latent: LatentRecord, example: Example) -> list[float]:
        """Of each token of an example; 0 for one that does not count (special, outlier) or was not read.

        Raises:
            ValueError: if the example does not tell, as those of older files.
        """
        found = _window(example)
        if self.on_values is None:
            return [0.0 if value is None else float(value) for value in found]
        on = self.on_values[latent.index]
        if self.records.strength == "nearness":
            return [0.0 if value is None else on for value in found]
        return [
            on if value is not None and (value != 0) != latent.when_off else 0.0 for value in found
        ]

    def counts(self, latent: LatentRecord) -> list[tuple[float, int]]:
        """How often the activation has which value where it is not 0: exactly, of levels, bits and codes; of
        real-valued codes by magnitude in bins of 9 %, each as its geometric middle. Empty where that is not known."""
        n = self.n_active(latent)
        if self.on_values is not None:
            return [(self.on_values[latent.index], n)] if n else []
        if latent.levels is not None:
            return list(zip(latent.levels.values, latent.levels.counts, strict=True))
        if latent.histogram is None:
            return []
        first = latent.histogram.first
        return [
            (2 ** ((first + k + 0.5) / PER_OCTAVE), count)
            for k, count in enumerate(latent.histogram.counts)
        ]

    def mean(self, latent: LatentRecord) -> float | None:
        """Mean activation where it is not 0, by ``counts``; None where that is not known, or it never is."""
        counts = self.counts(latent)
        n = sum(count for _, count in counts)
        return math.fsum(value * count for value, count in counts) / n if n else None
