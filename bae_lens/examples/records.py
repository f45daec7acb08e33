"""What was seen of each latent or code of a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from typing_extensions import Self

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.checks.consistency import check_counts, check_indices, check_lengths, check_that
from bae_lens.checks.fields import Rule, Text, check_fields, whole
from bae_lens.checks.old_names import renamed_fields, with_new_names
from bae_lens.examples.histogram import Histogram, LevelCounts
from bae_lens.files.json_file import ResultOfWeights, write_json
from bae_lens.fingerprint import is_of_weights

Strength = Literal["activation", "surprise", "nearness"]
# Firings at a token, for its lift to be told: one or two make a large one by chance.
LEAST_FOR_LIFT = 3
NeighborMeasure = Literal["phi", "distance"]


@renamed_fields(n_background="n_corpus_tokens", n_neighbours="n_neighbors")
@dataclass(frozen=True)
class ExampleSettings:
    """Settings of ``collect_examples``.

    Args:
        n_tokens (int | None): Tokens to read; None: all of the text. Special tokens and padding do
            not count.
        n_strongest (int): Strongest examples a latent.
        n_random (int): Random examples a latent.
        n_left (int): Tokens of an example before the marked one, at most.
        n_right (int): Tokens after it, at most.
        n_top_tokens (int): Most frequent tokens, and lemmas, per latent.
        n_counters (int): Tokens a latent that are counted at a time, see ``TokenCounts``.
        n_neighbors (int): Neighbors a latent; 0 counts no pairs.
        n_corpus_tokens (int): Random tokens of the corpus that are kept with all that fires there, for
            scores that need non-activating tokens; 0 keeps none. Of a dense code that is a
            long list per token.
        lemmas (str | None): Language of the lemmas to count, as ``"en"``. Needs ``simplemma``.
        batch_size (int): Texts a forward pass, where no store says how many.
        seed (int): Of the random examples, and of the order in which a dataset is read.

    Raises:
        ValueError: if a value is outside its range.
    """

    n_tokens: int | None = 200_000
    n_strongest: int = 10
    n_random: int = 10
    n_left: int = 16
    n_right: int = 8
    n_top_tokens: int = 10
    n_counters: int = 512
    n_neighbors: int = 5
    n_corpus_tokens: int = 500
    lemmas: str | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        may_be_zero = ("n_left", "n_right", "n_top_tokens", "n_neighbors", "n_corpus_tokens")
        rules: dict[str, Rule] = {
            "n_tokens": whole(1, or_none=True),
            "lemmas": Text(or_none=True, may_be_empty=False),
            "seed": whole(0, 2**64 - 1),
        }
        for field in fields(self):
            rules.setdefault(field.name, whole(int(field.name not in may_be_zero)))
        check_fields(self, rules)
        if self.n_top_tokens > self.n_counters:
            raise ValueError(
                f"n_top_tokens is {self.n_top_tokens}, of which only n_counters = "
                f"{self.n_counters} would be counted. Raise n_counters."
            )


class Example(NamedTuple):
    """A token at which a latent fires, with the text around it.

    Attributes:
        tokens: ids of the window, padding left out.
        marked: which of them it is.
        strength: see ``LatentRecords.strength``.
        text: index of the text in the dataset; of a store that joins texts, which of its sequences.
        position: of the marked token in the sequence that the model read.
        strings: what each token is read as; together they are the text of the window. Tokens that
            are bytes of one character have it in one of them (the marked one, if it is among them)
            and nothing in the others.
        margin: of a bit, how far its pre-activation is from the threshold, on the side where it fires;
            None of other codes, and in files that have none.
        activations: of each of the tokens what the latent has there, to four digits: its activation; of a bit
            the margin where it fires; of a code its nearness where it is the token's. 0 where the latent does
            not fire (of a code, None). None where the token does not count or was not read; None in place of
            all of them in files that have none.
    """

    tokens: tuple[int, ...]
    marked: int
    strength: float
    text: int
    position: int
    strings: tuple[str, ...]
    margin: float | None = None
    activations: tuple[float | None, ...] | None = None

    @property
    def marked_text(self) -> str:
        """The window as text, with «» around the marked token."""
        before, token, after = (
            "".join(self.strings[part])
            for part in (
                slice(self.marked),
                slice(self.marked, self.marked + 1),
                slice(self.marked + 1, None),
            )
        )
        space = token[: len(token) - len(token.lstrip())]
        return f"{before}{space}«{token[len(space) :]}»{after}"

    def check(self) -> None:
        """
        Raises:
            ValueError: if the marked token is not in the window, there is not one value of each token, or a place
                is below 0.
        """
        n_tokens = len(self.strings)
        check_indices("marked", [self.marked], n_tokens)
        check_lengths(n_tokens, "tokens", activations=self.activations)
        check_counts(text=self.text, position=self.position)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without a margin or activations where there are none."""
        values = self._asdict()
        for name in ("margin", "activations"):
            if values[name] is None:
                del values[name]
        return values


class CorpusToken(NamedTuple):
    """A token drawn at random from the corpus, whatever fires there.

    Attributes:
        example: the token with the text around it; its strength means nothing and is 0.
        latents: all that fire there, in order; of bits see ``LatentRecord.when_off``.
    """

    example: Example
    latents: tuple[int, ...]


class Count(NamedTuple):
    """How often a latent fires at a token, or at forms of a lemma.

    Attributes:
        string: the token or lemma.
        n: never too high; too low by ``LatentRecord.count_error`` at most (of a lemma, by so
            much for each of its forms).
        lift: share of it among the latent's firings, over its share of all tokens.
        token: the token's id; None for a lemma.
    """

    string: str
    n: int
    lift: float
    token: int | None


class LeftOut(NamedTuple):
    """Outlier tokens, which do not count, see ``bae_lens.activations.outlier_tokens``.

    Attributes:
        n: how many there were among the tokens read.
        reference_norm: at the hook point that is read.
        multiple: they are so many times as long, or longer still.
    """

    n: int
    reference_norm: float
    multiple: float


class Neighbor(NamedTuple):
    """Another latent.

    Attributes:
        latent: its index.
        value: see ``LatentRecords.neighbor_measure``.
        n_together: tokens at which both fire; None for codes, of which a token has one only.
    """

    latent: int
    value: float
    n_together: int | None


@renamed_fields(neighbours="neighbors")
@dataclass(frozen=True)
class LatentRecord:
    """What was seen of one latent or code. It *fires* at a token that is examples of it.

    Attributes:
        index: which one.
        when_off: a bit that is on at more than half of the tokens says something where it is off:
            that is then what *fires* means throughout, in neighbors too.
        n_firings: tokens at which it fires.
        rate: their share of all tokens.
        strongest: the strongest first: of bits, those with the largest margin; of activations of either sign, those
            of the largest magnitude.
        random: drawn evenly from all firings, in random order.
        top_tokens: the tokens at which it fires most often.
        count_error: how much lower than the truth their counts may be; 0: they are exact.
        top_lemmas: the same of lemmas; None where they were not asked for.
        neighbors: the nearest first; None where they are not known.
        class_shares: of each class, the share of firings that are in texts of it, all zero if it
            never fires; None without labels.
        lift_tokens: tokens of the highest lift, among those at which it fires ``LEAST_FOR_LIFT`` times
            at least by the same counts; None in files that have none.
        more_random: of bits, a second random sample, which shares none with the first where there
            are enough firings for both: what scores show in place of the strongest. None of other
            codes; in files without margins ``strongest`` is this sample.
        histogram: how strongly it fires; None of a code of levels, and in files that have none. Of a bit,
            whose value may change that has been the rarer up to then, some firings may be missing.
        levels: of a code of levels, how often it is at each; None of other codes, and in files that have
            none.
    """

    index: int
    when_off: bool
    n_firings: int
    rate: float
    strongest: tuple[Example, ...]
    random: tuple[Example, ...]
    top_tokens: tuple[Count, ...]
    count_error: int
    top_lemmas: tuple[Count, ...] | None = None
    neighbors: tuple[Neighbor, ...] | None = None
    class_shares: tuple[float, ...] | None = None
    lift_tokens: tuple[Count, ...] | None = None
    more_random: tuple[Example, ...] | None = None
    histogram: Histogram | None = None
    levels: LevelCounts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _PARTS:
            if values[name] is not None:
                values[name] = [
                    part.to_dict() if isinstance(part, Example) else part._asdict()
                    for part in values[name]
                ]
        for name in _COUNTS:
            if values[name] is None:
                del values[name]
            else:
                values[name] = values[name]._asdict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentRecord:
        """What ``to_dict`` gave."""
        own = with_new_names(cls, values)
        for name, kind in _PARTS.items():
            if own.get(name) is not None:
                own[name] = tuple(kind(**_with_tuples(part)) for part in own[name])
        for name, kind in _COUNTS.items():
            if own.get(name) is not None:
                own[name] = kind(**_with_tuples(own[name]))
        return cls(**_with_tuples(own))


_PARTS: dict[str, type[Example] | type[Count] | type[Neighbor]] = {
    "strongest": Example,
    "random": Example,
    "more_random": Example,
    "lift_tokens": Count,
    "top_tokens": Count,
    "top_lemmas": Count,
    "neighbors": Neighbor,
}
_COUNTS: dict[str, type[Histogram] | type[LevelCounts]] = {
    "histogram": Histogram,
    "levels": LevelCounts,
}


@renamed_fields(neighbour_measure="neighbor_measure", background="corpus_tokens")
@dataclass(frozen=True)
class LatentRecords(ResultOfWeights):
    """Result of ``collect_examples``.

    Attributes:
        dictionary: its architecture, or the name of clusters.
        hook_name: the hook point that it reads.
        strength: what the strength of an example is. ``"activation"``: the latent's value.
            ``"surprise"``, of one-bit codes: −log₂ of the rate of the value that the bit has. It is
            the same for all of a bit's examples, so that the strongest are those with the largest
            margin (see ``order``).
            ``"nearness"``, of codes: minus the squared distance to the code, in the units of the
            codebook.
        neighbor_measure: ``"phi"``: the correlation (phi coefficient) of the two latents' firing
            over tokens, 1 where they fire at the same tokens, 0 where they fire together as often
            as by chance; of those above 0. A few firings make a large one easily: mind
            ``n_together``. ``"distance"``, of codes: between the two in the codebook.
        n_tokens: tokens read.
        n_texts: texts (sequences) that they are from.
        settings: how it was collected.
        latents: by index.
        class_names: of the labels; None without.
        class_shares: share of all tokens that are in texts of each class.
        corpus_tokens: tokens drawn at random; None where they were not asked for.
        outliers: what was left out as outlier tokens; None where none were to be, and in older files.
    """

    _file_of = "records of collect_examples"

    dictionary: str
    hook_name: str
    strength: Strength
    neighbor_measure: NeighborMeasure
    n_tokens: int
    n_texts: int
    settings: ExampleSettings
    latents: tuple[LatentRecord, ...]
    class_names: tuple[str, ...] | None = None
    class_shares: tuple[float, ...] | None = None
    corpus_tokens: tuple[CorpusToken, ...] | None = None
    outliers: LeftOut | None = None

    @property
    def order(self) -> Literal["strength", "margin", "random"]:
        """What the strongest examples of a latent are in the order of. Examples of bits that was
        written without margins has them in random order."""
        if self.strength != "surprise":
            return "strength"
        examples = (latent.strongest[0] for latent in self.latents if latent.strongest)
        return "random" if any(e.margin is None for e in examples) else "margin"

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, latent: int) -> LatentRecord:
        return self.latents[latent]

    def check(self) -> None:
        """See ``JsonResult``."""
        n = len(self.latents)
        if (left_out := self.outliers) is not None:
            OutlierTokens({self.hook_name: left_out.reference_norm}, left_out.multiple)
        n_classes = len(self.class_names or ())
        check_lengths(n_classes, "classes", class_shares=self.class_shares)
        for index, own in enumerate(self.latents):
            check_that(own.index == index, f"latents must be in order, {index} here", own.index)
            check_counts(count_error=own.count_error)
            check_that(0 <= own.rate <= 1, "rate must be from 0 to 1", own.rate)
            for example in (*own.strongest, *own.random, *(own.more_random or ())):
                example.check()
            check_indices("neighbors", (other.latent for other in own.neighbors or ()), n)
            check_lengths(n_classes, "classes", class_shares=own.class_shares)
            for counted in (own.histogram, own.levels):
                if counted is not None:
                    counted.check()
        for token in self.corpus_tokens or ():
            token.example.check()
            check_indices("corpus_tokens.latents", token.latents, n)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {
            "settings": asdict(self.settings),
            "latents": [latent.to_dict() for latent in self.latents],
            "corpus_tokens": self.corpus_tokens
            and [
                {"example": b.example.to_dict(), "latents": b.latents} for b in self.corpus_tokens
            ],
            "outliers": self.outliers and self.outliers._asdict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own = with_new_names(cls, values)
        own["settings"] = ExampleSettings(**with_new_names(ExampleSettings, own["settings"]))
        own["latents"] = tuple(map(LatentRecord.from_dict, own["latents"]))
        if own.get("corpus_tokens") is not None:
            own["corpus_tokens"] = tuple(
                CorpusToken(Example(**_with_tuples(b["example"])), tuple(b["latents"]))
                for b in own["corpus_tokens"]
            )
        if own.get("outliers") is not None:
            own["outliers"] = LeftOut(**own["outliers"])
        return cls(**_with_tuples(own))

    def save(self, path: str | Path) -> None:
        """Write as JSON in one line, all or nothing."""
        write_json(path, self.to_dict(), indent=None)


def check_records_of(
    records: LatentRecords, n_latents: int, sha256: str, what: str = "What was collected"
) -> None:
    """Check that records are of a dictionary.

    Args:
        records: whatever somebody gives.
        n_latents: of the dictionary.
        sha256: of its weights, see ``bae_lens.fingerprint``.
        what: to call the examples in messages.

    Raises:
        ValueError: if it is of another one.
    """
    if len(records) != n_latents:
        raise ValueError(
            f"{what} is of {len(records)} latents, the dictionary has {n_latents}. Give the examples "
            "that was collected of this dictionary."
        )
    if not is_of_weights(records.weights_sha256, sha256, what):
        raise ValueError(
            f"{what} is of other weights ({records.weights_sha256}) than the dictionary's ({sha256}): "
            "it may have been trained anew. Give the examples that were collected of this dictionary, "
            "or collect it again."
        )


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
