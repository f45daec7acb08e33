"""What sparse probing found, beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from bae_lens.charts import Curve, curves
from bae_lens.checks.consistency import check_indices, check_lengths, check_that
from bae_lens.files.json_file import ResultOfWeights
from bae_lens.results import Table
from bae_lens.scoring.probing_settings import SparseProbingSettings
from bae_lens.stats import Interval, balanced_interval, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a probe reads.
LATENTS = "latents"
RANDOM, SHUFFLED = "random latents", "latents chosen for shuffled labels"
DIMENSIONS, COMPONENTS = "dimensions of the activation", "principal components"
WHOLE = "whole activation"
CONTROLS = (RANDOM, SHUFFLED, DIMENSIONS, COMPONENTS)
CHANCE = 0.5

# Color and style of each in figures; controls of a kind share a color.
_LINES = {
    LATENTS: (0, 0),
    RANDOM: (1, 0),
    SHUFFLED: (1, 1),
    DIMENSIONS: (2, 0),
    COMPONENTS: (2, 1),
    WHOLE: (3, 0),
}


@dataclass(frozen=True)
class ProbeRow:
    """Probes of one class against the others that read one thing.

    Attributes:
        positive: number of the class.
        method: what they read.
        k: how many numbers of a text they read; None: the whole activation.
        chosen: which latents, dimensions or components, the one that differs most first; empty where
            each draw has others.
        n_draws: probes, each of a draw of its own.
        right: of each held-out text, how many of them tell rightly whether it is of the class.
    """

    positive: int
    method: str
    k: int | None
    chosen: tuple[int, ...]
    n_draws: int
    right: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, ``right`` as a string of digits."""
        return {**vars(self), "right": "".join(map(str, self.right))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeRow:
        """What ``to_dict`` gave."""
        digits, chosen = values["right"], values["chosen"]
        return cls(**{**values, "chosen": tuple(chosen), "right": tuple(map(int, digits))})


@dataclass(frozen=True)
class SparseProbingResult(ResultOfWeights):
    """Result of ``sparse_probing``.

    Attributes:
        dictionary: its architecture, or the name of clusters.
        hook_name: the hook point that it reads.
        settings: of the probing.
        n_latents: latents of the dictionary.
        n_alive: those that fire in a training text.
        label_names: of the classes.
        n_train: training texts of each class; a probe is fitted to as many of the class as of the others
            (``n_of_each``).
        labels: class of each held-out text.
        rows: one for each class that is told from the others (of two classes the second), each method
            and each k.
        n_truncated: texts that were cut to the context.
        n_repeated: texts that the model reads as it read one before, and that are left out.
        n_outlier_tokens: tokens that were left out as outliers.
        data: what the texts are called, for tables; empty where nobody said.
        n_ambiguous: texts that the model reads as it reads one of another class, and that are left out.
    """

    _file_of = "result of sparse_probing"

    dictionary: str
    hook_name: str
    settings: SparseProbingSettings
    n_latents: int
    n_alive: int
    label_names: tuple[str, ...]
    n_train: tuple[int, ...]
    labels: tuple[int, ...]
    rows: tuple[ProbeRow, ...]
    n_truncated: int = 0
    n_repeated: int = 0
    n_outlier_tokens: int = 0
    data: str = ""
    n_ambiguous: int = 0

    def check(self) -> None:
        """See ``JsonResult``."""
        n_classes = len(self.label_names)
        check_that(n_classes > 1, "label_names must be of two classes at least", self.label_names)
        check_lengths(n_classes, "classes", n_train=self.n_train)
        check_indices("labels", self.labels, n_classes)
        check_that(len(set(self.labels)) == n_classes, "labels must be of every class", self.labels)
        found = [(row.positive, row.method, row.k) for row in self.rows]
        expected = {
            (positive, *what)
            for positive in positives(n_classes)
            for what in [
                *((m, k) for m in (LATENTS, *CONTROLS) for k in self.settings.k),
                (WHOLE, None),
            ]
        }
        check_that(
            set(found) == expected and len(found) == len(expected),
            "rows must be one for each class, method and k",
            found,
        )
        for row in self.rows:
            check_lengths(len(self.labels), "held-out texts", right=row.right)
            check_that(row.n_draws > 0, "n_draws must be 1 at least", row.n_draws)
            check_indices("right", row.right, row.n_draws + 1)
            n = {LATENTS: self.n_latents}.get(row.method)
            check_indices("chosen", row.chosen, max((*row.chosen, 0)) + 1 if n is None else n)

    @property
    def positives(self) -> tuple[int, ...]:
        """The classes that are told from the others."""
        return positives(len(self.label_names))

    def row(self, method: str, k: int | None, positive: int) -> ProbeRow:
        """One of the rows.

        Raises:
            KeyError: if there is none; the message says what there is.
        """
        for row in self.rows:
            if (row.method, row.k, row.positive) == (method, k, positive):
                return row
        raise KeyError(
            f"There is no row {(method, k, positive)}; there are the methods "
            f"{', '.join((LATENTS, *CONTROLS, WHOLE))}, k of {list(self.settings.k)} (None of the last) "
            f"and classes {list(self.positives)}."
        )

    def accuracy(self, method: str, k: int | None, positive: int | None = None) -> Interval:
        """Balanced accuracy of held-out texts with its 95 % bootstrap interval over them; chance is 0.5.

        Half of the weight is the class's own texts', the other half the other classes', each alike.

        Args:
            method: what the probes read.
            k: how many latents; None for the whole activation.
            positive: the class; None: the mean over classes.
        """
        return self._interval(self._shares(method, k, positive))

    def excess_over(
        self, control: str, k: int, positive: int | None = None, method: str = LATENTS
    ) -> Interval:
        """Accuracy of k latents less that of a control (of ``WHOLE`` less that of the whole activation),
        paired by text."""
        of_control = None if control == WHOLE else k
        one, other = self._shares(method, k, positive), self._shares(control, of_control, positive)
        return self._interval(one - other)

    def weighted(self, method: str, k: int | None, positive: int | None = None) -> np.ndarray:
        """One number a held-out text, whose mean within each class, over classes, is the accuracy.

        With it results of the same texts are compared by pairs: see ``stats.balanced_interval``.
        """
        return self._weighted(self._shares(method, k, positive))

    def _shares(self, method: str, k: int | None, positive: int | None) -> np.ndarray:
        """``[n_classes, n_texts]``: how often a probe is right, NaN for a class that is not asked about."""
        shares = np.full((len(self.label_names), len(self.labels)), np.nan)
        for own in self.positives if positive is None else (positive,):
            row = self.row(method, k, own)
            shares[own] = np.asarray(row.right) / row.n_draws
        return shares

    def _weighted(self, shares: np.ndarray) -> np.ndarray:
        labels, n_classes = np.asarray(self.labels), len(self.label_names)
        is_own = np.arange(n_classes)[:, None] == labels
        weights = np.where(is_own, 0.5, 0.5 / (n_classes - 1)) * n_classes
        return np.nanmean(weights * shares, axis=0)

    def _interval(self, shares: np.ndarray) -> Interval:
        return balanced_interval(
            self._weighted(shares).tolist(), self.labels, seed=self.settings.seed
        )

    def table(self) -> str:
        """Markdown: accuracies by k beside the controls', and what each class is told by."""
        return f"{self.to_table().markdown()}\n\n{self.class_table().markdown()}"

    def to_table(self) -> Table:
        """Balanced accuracies, means over classes, beside those of the controls, as cells."""
        ks = self.settings.k
        rows = [
            (method, *(shown(self.accuracy(method, k)) for k in ks))
            for method in (LATENTS, *CONTROLS)
        ]
        rows += [
            (
                f"latents less {control}",
                *(shown(self.excess_over(control, k), sign="+") for k in ks),
            )
            for control in (*CONTROLS, WHOLE)
        ]
        n_test, n_train = len(self.labels), sum(self.n_train)
        fitted = [2 * n_of_each(self.n_train, positive) for positive in self.positives]
        few, many = min(fitted), max(fitted)
        n_fitted = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        about = (
            f"Balanced accuracy of {n_test:,} held-out texts with 95 % bootstrap intervals over them; chance "
            f"is {CHANCE}. Probes were fitted to {n_fitted} of {n_train:,} other texts, of a class as "
            f"many as of the others. A probe of the whole activation: {shown(self.accuracy(WHOLE, None))}. Of "
            f"{self.n_latents:,} latents {self.n_alive:,} fire in a training text."
        )
        if len(self.positives) > 1:
            about += f" Means over {len(self.positives)} classes, each against the others."
        if self.n_repeated:
            about += f" {self.n_repeated:,} texts were left out, since others are read as they are."
        if self.n_ambiguous:
            about += f" {self.n_ambiguous:,} were left out, since texts of other classes are read as they are."
        return Table(("a probe of", *(f"k = {k}" for k in ks)), rows, [about], _CAVEAT)

    def class_table(self) -> Table:
        """What each class is told by, as cells."""
        ks, most = self.settings.k, self.settings.k[-1]
        head = ("class", "latents", *(f"k = {k}" for k in ks), RANDOM, WHOLE)
        rows = [
            (
                self.label_names[positive],
                ", ".join(map(str, self.row(LATENTS, most, positive).chosen)),
                *(shown(self.accuracy(LATENTS, k, positive)) for k in ks),
                shown(self.accuracy(RANDOM, most, positive)),
                shown(self.accuracy(WHOLE, None, positive)),
            )
            for positive in self.positives
        ]
        note = f"Random latents: {most} of them. Latents: those that differ most between the class and the others, first."
        return Table(head, rows, [note])

    def plot(self, title: str = "") -> Figure:
        """Draw accuracies by k beside the controls', with their intervals.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        ks = self.settings.k
        lines = []
        for method, (color, style) in _LINES.items():
            flat = method == WHOLE
            found = [self.accuracy(method, None if flat else k) for k in ks]
            mean, low, high = zip(*found, strict=True)
            band = (low, high) if method == LATENTS else (None, None)
            lines.append(Curve(method, ks, mean, *band, color, style, "" if flat else "o"))
        lines.append(Curve("chance", ks, [CHANCE] * len(ks), color=3, style=3))
        label = "numbers of a text that a probe reads, k"
        return curves(lines, label, "balanced accuracy", {str(k): k for k in ks}, title, 2)

    def to_dict(self) -> dict[str, Any]:
        """See ``JsonResult``."""
        own = dict(vars(self))
        settings = {**vars(self.settings), "k": list(self.settings.k)}
        return own | {"settings": settings, "rows": [row.to_dict() for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own: dict[str, Any] = dict(values) | {
            "settings": SparseProbingSettings(**values["settings"]),
            "rows": tuple(map(ProbeRow.from_dict, values["rows"])),
        }
        for name in ("label_names", "n_train", "labels"):
            own[name] = tuple(values[name])
        return cls(**own)


def positives(n_classes: int) -> tuple[int, ...]:
    """The classes that are told from the others: of two the second alone, since both ask the same."""
    return (1,) if n_classes == 2 else tuple(range(n_classes))


def n_of_each(n_train: Sequence[int], positive: int) -> int:
    """Training texts of a class that its probes are fitted to, and as many of the others, of each of which there are
    alike.

    Args:
        n_train: training texts of each class.
        positive: number of the class.
    """
    fewest = min(n for label, n in enumerate(n_train) if label != positive)
    return min(n_train[positive], fewest * (len(n_train) - 1))


_CAVEAT = (
    "A class may be told by what goes with it in these texts and is not what it means. That other training "
    "texts, or a dictionary of another seed, would do better or worse is in no interval."
)
