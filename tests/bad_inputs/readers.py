"""What reads files: a good one of each, and the readers that get it damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from bae_lens.budgets import BudgetSweep
from bae_lens.concept_ablation import ConceptAblationResult, LabeledTexts
from bae_lens.entropy.compression import encode_to_indices, read_codes
from bae_lens.examples import LatentRecords
from bae_lens.quiz import QuizKey
from bae_lens.quiz.questions import key_path, write_quiz
from bae_lens.quiz.scores import QuizAnswers
from bae_lens.scoring import (
    ComSemResult,
    IntruderResult,
    Ranking,
    Recoverability,
    SparseProbingResult,
)
from bae_lens.scoring.ranking import rank_dictionaries
from bae_lens.training.metric_log import read_metric_log
from tests.bad_inputs.damage import Damaged, damaged_bytes, damaged_json, damaged_text
from tests.bad_inputs.trial import Trial
from tests.budgets.test_result import make_sweep
from tests.concept_ablation.test_result import make_result
from tests.helpers import make_activations, make_training_bae
from tests.quiz.quizzes import EVIDENCE, RECOVERIES, answered, shown_class
from tests.report.helpers import make_comsem, make_intruder, make_records, with_windows
from tests.scoring.planted_probing import make_probing
from tests.scoring.test_ranking import SETTINGS, THREE, Named, fair


@dataclass(frozen=True)
class Reader:
    """Something that is given bad inputs.

    Attributes:
        name: of it.
        generator: what makes the inputs.
        expects: what it reads.
        trials: of it, drawn by a seed, in a folder of their own; as many as one asks for.
    """

    name: str
    generator: str
    expects: str
    trials: Callable[[Random, Path], Iterator[Trial]]

    def draw(self, n: int, seed: int, folder: Path) -> list[Trial]:
        """The first n of a seed."""
        folder.mkdir(parents=True, exist_ok=True)
        return list(islice(self.trials(Random(f"{self.name} {seed}"), folder), n))


def of_file(
    filename: str, read: Callable[[Path], Any], damaged: Iterator[Damaged], folder: Path
) -> Iterator[Trial]:
    """Each content in a file of its own, which the message has to name."""
    for i, (name, content, is_told) in enumerate(damaged):
        path = folder / f"{i}_{filename}"
        path.write_bytes(content)
        yield Trial(name, partial(read, path), (path.name,), is_told)


def _result(kind: Any, make: Callable[[], Any], *untyped: str) -> Reader:
    def trials(random: Random, folder: Path) -> Iterator[Trial]:
        make().save(folder / "good.json")
        kind.load(folder / "good.json")
        needed = tuple(f.name for f in fields(kind) if f.default is MISSING)
        content = (folder / "good.json").read_bytes()
        yield from of_file(
            "bad.json", kind.load, damaged_json(content, random, needed, untyped, True), folder
        )

    return Reader(f"{kind.__name__}.load", "damaged JSON", f"a file of {kind.__name__}", trials)


def _key(folder: Path) -> QuizKey:
    return write_quiz(folder / "quiz.html", RECOVERIES, EVIDENCE)


def _of_key(kind: Any, make: Callable[[QuizKey], Any]) -> Reader:
    def trials(random: Random, folder: Path) -> Iterator[Trial]:
        key = _key(folder)
        content = make(key) if kind is QuizAnswers else key_path(folder / "quiz.html").read_bytes()
        needed = tuple(f.name for f in fields(kind) if f.default is MISSING)
        yield from of_file(
            "bad.json", kind.load, damaged_json(content, random, needed, (), True), folder
        )

    return Reader(f"{kind.__name__}.load", "damaged JSON", f"a file of {kind.__name__}", trials)


def _answers(key: QuizKey) -> bytes:
    import json

    return json.dumps(answered(key, shown_class).to_dict()).encode()


def _codes(random: Random, folder: Path) -> Iterator[Trial]:
    saes = (make_training_bae(), make_training_bae(n_levels=3))
    contents = [encode_to_indices(sae, make_activations(50)).to_bytes() for sae in saes]
    for damaged in zip(*(damaged_bytes(content, random) for content in contents), strict=False):
        for name, bad, is_told in damaged:
            yield Trial(name, partial(read_codes, bad), ("code", "Code", "BAE"), is_told)


def _metric_log(random: Random, folder: Path) -> Iterator[Trial]:
    lines = [b'{"step": %d, "losses/mse_loss": 0.5}\n' % i for i in range(9)]

    def damaged() -> Iterator[Damaged]:
        others = (b"[1]", b"3", b"null", b'{"step": NaN}', b'{"step": ' + b"9" * 400 + b"}")
        others += (b"[" * 50_000, b"\xff\xfe", b'{"step": 1, "step": 2}', b'{"step": "x"}')
        while True:
            bad = list(lines)
            what = random.choice(others)
            bad[random.randrange(len(bad))] = what + b"\n"
            yield Damaged(f"a line {what[:20]!r}", b"".join(bad))
            yield Damaged("noise", random.randbytes(60) + b"\n")

    yield from of_file("metrics.jsonl", read_metric_log, damaged(), folder)


def _labeled_texts(random: Random, folder: Path) -> Iterator[Trial]:
    row = b'{"text": "a b", "label": "x"}'
    rows = [row, row.replace(b'"x"', b'"y"')] * 4
    bad_rows = (
        b'{"text": 3, "label": "x"}',
        b'{"text": ["a"], "label": "x"}',
        b'{"text": {"a": 1}, "label": "x"}',
        b'{"text": "a", "label": ["x"]}',
        b'{"text": "a", "label": {"x": 1}}',
        b'{"text": "\\ud800", "label": "x"}',
        b'{"text": "a", "label": "\\ud800"}',
        b'{"text": "a", "label": 0.5}',
        b'{"text": "a", "text": "b", "label": "x"}',
        b'{"text": "a", "label": "x"',
        b"[" * 50_000,
        b"3",
        b'{"text": "a", "label": ' + b"9" * 5000 + b"}",
        b'{"text": "\xe9", "label": "x"}',
    )

    def damaged() -> Iterator[Damaged]:
        while True:
            bad = list(rows)
            what = random.choice(bad_rows)
            bad[random.randrange(len(bad))] = what
            yield Damaged(f"a row {what[:40]!r}", b"\n".join(bad))
            yield Damaged("empty", b"")
            yield Damaged("no column text", b'{"txt": "a", "label": "x"}\n' * 4)
            yield Damaged("no column label", b'{"text": "a"}\n' * 4)

    for trial in of_file("texts.jsonl", LabeledTexts.read, damaged(), folder):
        # A row says as much as the file's name.
        yield Trial(trial.name, trial.call, (*trial.names, "row", "Row", "column"), trial.is_told)


def _csv_texts(random: Random, folder: Path) -> Iterator[Trial]:
    good = b"text,label\n" + b'"a b",x\n"c d",y\n' * 4

    def damaged() -> Iterator[Damaged]:
        while True:
            yield Damaged("noise", b"\x00\xff" + random.randbytes(50))
            yield Damaged("empty", b"")
            yield Damaged("no header", good.partition(b"\n")[2])
            yield Damaged("latin-1", good + "é,x\n".encode("latin-1"))
            yield Damaged(
                "a field that does not end",
                good + b'"a' + b"b" * random.randrange(200_000, 300_000),
            )
            yield Damaged("UTF-16", good.decode().encode("utf-16"))
            yield Damaged("too many fields", good + b"a,b,c,d\n")
            yield Damaged("a NUL", good.replace(b"c d", b"c\x00d"), is_told=False)

    for trial in of_file("texts.csv", LabeledTexts.read, damaged(), folder):
        yield Trial(trial.name, trial.call, (*trial.names, "row", "Row", "column"), trial.is_told)


def _any_text(random: Random, folder: Path) -> Iterator[Trial]:
    def damaged() -> Iterator[Damaged]:
        while True:
            yield from damaged_text(b'{"text": "a", "label": "x"}', random)

    for trial in of_file("texts.json", LabeledTexts.read, damaged(), folder):
        yield Trial(trial.name, trial.call, (*trial.names, "row", "Row", "column"), trial.is_told)


FILES = (
    _result(LatentRecords, lambda: with_windows(make_records(6, n_examples=3)), "settings"),
    _result(IntruderResult, lambda: make_intruder(make_records(6), 3), "settings"),
    _result(ComSemResult, lambda: make_comsem(make_records(6), 3), "settings"),
    _result(ConceptAblationResult, make_result, "settings", "chance", "accuracy", "std"),
    _result(SparseProbingResult, make_probing, "settings"),
    _result(Recoverability, lambda: next(iter(RECOVERIES.values())), "settings"),
    _result(BudgetSweep, make_sweep),
    _result(Ranking, lambda: rank_dictionaries(THREE, Named("x", fair), SETTINGS), "settings"),
    _of_key(QuizKey, lambda key: key),
    _of_key(QuizAnswers, _answers),
    Reader("read_codes", "damaged bytes", "codes of a BAE, with a checksum", _codes),
    Reader("read_metric_log", "damaged JSON lines", "one object of numbers a line", _metric_log),
    Reader("LabeledTexts.read, JSONL", "damaged rows", "text and label a row", _labeled_texts),
    Reader("LabeledTexts.read, CSV", "damaged CSV", "a header, text and label a row", _csv_texts),
    Reader("LabeledTexts.read, JSON", "damaged text", "text and label a row", _any_text),
)
