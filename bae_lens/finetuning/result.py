"""What fine-tuning came to, as a JSON file beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from bae_lens.checks.consistency import check_counts
from bae_lens.files.json_file import JsonResult
from bae_lens.finetuning.settings import FinetuningSettings
from bae_lens.stats import Interval, wilson

RESULT_FILENAME = "finetuning.json"


@dataclass(frozen=True)
class FinetuningResult(JsonResult):
    """Accuracy of a classifier on texts that it was not fine-tuned on.

    Attributes:
        model: name of the encoder, as it was given.
        data: name of the texts, as it was given; None if they were not given by name.
        texts_sha256: of all texts and labels that were read (see ``texts_sha256``).
        settings: ``FinetuningSettings`` as a dict.
        class_names: in the order of the logits.
        n_train: texts that it was trained on.
        n_duplicates: texts left out of training since they are held out too, but for case and space.
        n_truncated: texts of both kinds that are longer than the context.
        held_out: numbers of the held-out texts among all that were read, from 0 on.
        n_correct: held-out texts whose class it tells.
        n_most_frequent: held-out texts of the class that has most: what always answering it would get.
    """

    _file_of: ClassVar[str] = "result of fine-tuning"

    model: str
    data: str | None
    texts_sha256: str
    settings: dict[str, Any]
    class_names: list[str]
    n_train: int
    n_duplicates: int
    n_truncated: int
    held_out: list[int]
    n_correct: int
    n_most_frequent: int

    @property
    def accuracy(self) -> Interval:
        """On the held-out texts, with a 95 % interval (Wilson) over them."""
        found = wilson(self.n_correct, len(self.held_out))
        assert found is not None
        return found

    @property
    def chance(self) -> float:
        """Accuracy of always answering the most frequent class."""
        return self.n_most_frequent / len(self.held_out)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON, and the accuracy that follows from it."""
        return asdict(self) | {"accuracy": self.accuracy._asdict(), "chance": self.chance}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuningResult:
        """What ``to_dict`` gave."""
        return cls(**{k: v for k, v in values.items() if k not in ("accuracy", "chance")})

    def check(self) -> None:
        """
        Raises:
            ValueError: if there is no held-out text, one has a number below 0, there are more right answers
                than texts, or a setting cannot be one.
        """
        n = len(self.held_out)
        if not n > 0 or not 0 <= self.n_correct <= n or not 0 < self.n_most_frequent <= n:
            raise ValueError(
                f"of {n} held-out texts, {self.n_correct} cannot be right and {self.n_most_frequent} of "
                "the most frequent class"
            )
        check_counts(held_out=min(self.held_out))
        FinetuningSettings(**self.settings)
