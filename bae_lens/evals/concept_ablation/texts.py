"""Texts with labels, and what a language model reads of them, with the words that tokens are part of."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from datasets import Dataset, load_dataset
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bae_lens import demo
from bae_lens.special_tokens import missing_bos
from bae_lens.suggest import did_you_mean

logger = logging.getLogger(__name__)

Readout = Literal["last", "first"]
_FILES = (".jsonl", ".json", ".csv")
_SLOT = "{text}"


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts of two classes or more.

    Attributes:
        texts: none of them empty.
        labels: class of each, 0 … C − 1.
        label_names: what each class is called in the data, sorted: by value if all are integers.
        evidence: the span of each text that a person marked as the reason for its label; None
            where nobody did.
    """

    texts: list[str]
    labels: Int[Tensor, " n"]
    label_names: list[str]
    evidence: list[str | None]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def read(
        cls,
        data: str | Path | Dataset | Iterable[Mapping[str, Any]],
        *,
        text_column: str = "text",
        label_column: str = "label",
        split: str = "test",
    ) -> LabelledTexts:
        """Texts from a file, a dataset, a dataset's name or rows. Row numbers in errors begin at 1.

        Args:
            data: a ``.csv`` file with a header; a ``.jsonl`` or ``.json`` file with an object a
                line; ``"bae-lens/movie-reviews"`` or a name on the hub; a loaded dataset, one split
                of it; or rows by column. A column ``evidence`` is read if there is one.
            text_column: name of the column of texts.
            label_column: name of the column of labels: integers (as floats, too, which pandas makes
                of them), booleans or strings.
            split: of a dataset that is given by name.

        Raises:
            FileNotFoundError: if ``data`` is meant for a file that is not there.
            ValueError: if a file is not what its suffix says, a column is missing, a text is empty
                or no string, a label is missing or no class, or all labels are the same.
        """
        rows = list(_rows_of(data, split))
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"Row {number} has to be a mapping of columns, such as a dict; got a "
                    f"{type(row).__name__}. Of a dataset with splits give one split."
                )
        columns = list(dict.fromkeys(name for row in rows for name in row))
        if not columns:
            raise ValueError("There is no row in the data.")
        for kind, name in (("text", text_column), ("label", label_column)):
            if name not in columns:
                raise ValueError(
                    f"There is no column {name!r} in the data; it has "
                    f"{', '.join(map(repr, columns))}. {did_you_mean(name, map(str, columns))} "
                    f"Say so as {kind}_column."
                )
        texts = [_text_of(row.get(text_column), i) for i, row in enumerate(rows, start=1)]
        evidence = [_evidence_of(row.get("evidence"), i) for i, row in enumerate(rows, start=1)]
        names = [_label_name(row.get(label_column), i) for i, row in enumerate(rows, start=1)]
        if None in names:
            raise ValueError(
                f"{names.count(None)} of {len(names)} rows have no label in the column "
                f"{label_column!r}; the first is row {names.index(None) + 1}. Label or drop them."
            )
        label_names = _sorted_names({name for name in names if name is not None})
        if len(label_names) < 2:
            raise ValueError(
                f"All {len(names)} labels are {label_names[0]!r}; there have to be two classes at "
                "least. Is it the right column, and the right split?"
            )
        number_of = {name: i for i, name in enumerate(label_names)}
        labels = torch.tensor([number_of[cast(str, name)] for name in names])
        return cls(texts, labels, label_names, evidence)

    def sample(self, n: int, seed: int = 0) -> LabelledTexts:
        """At most ``n`` of the texts in random order, the classes' shares as near as can be.

        Args:
            n: how many; all of them if there are fewer.
            seed: of the draw. The same one gives the same texts.

        Raises:
            ValueError: if ``n`` is less than one.
        """
        if n < 1:
            raise ValueError(f"A sample has one text at least; got n = {n}.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        n_of = torch.bincount(self.labels, minlength=len(self.label_names))
        wanted = n_of * min(n, len(self))
        take = wanted // len(self)
        # The largest remainders are rounded up, of equal ones that of the first class.
        remainders = wanted % len(self)
        n_missing = min(n, len(self)) - int(take.sum())
        take[remainders.argsort(descending=True, stable=True)[:n_missing]] += 1
        labels = self.labels[order]
        kept = torch.zeros(len(self), dtype=torch.bool)
        for label, n_wanted in enumerate(take.tolist()):
            kept[(labels == label).nonzero()[:n_wanted]] = True
        chosen = order[kept]
        return LabelledTexts(
            [self.texts[i] for i in chosen.tolist()],
            self.labels[chosen],
            self.label_names,
            [self.evidence[i] for i in chosen.tolist()],
        )

    def check(self, n_folds: int) -> None:
        """That there is a label for every text, and of each class an example for every fold.

        Raises:
            ValueError: if not, with the number of examples of each class.
        """
        n_classes = len(self.label_names)
        if not len(self.texts) == len(self.labels) == len(self.evidence):
            raise ValueError(
                f"Every text has a label and an evidence, which may be None; got {len(self.texts)} "
                f"texts, {len(self.labels)} labels and {len(self.evidence)} evidences."
            )
        if not ((self.labels >= 0) & (self.labels < n_classes)).all():
            raise ValueError(f"labels have to be 0 … {n_classes - 1}, as label_names names them.")
        counts = torch.bincount(self.labels, minlength=n_classes).tolist()
        listed = ", ".join(
            f"{count} of {name!r}" for count, name in zip(counts, self.label_names, strict=True)
        )
        if sum(count > 0 for count in counts) < 2:
            raise ValueError(f"There have to be texts of two classes at least; got {listed}.")
        if min(counts) < n_folds:
            raise ValueError(
                f"Each of {n_folds} folds needs a text of every class; got {listed}. Take more "
                "texts, fewer folds, or leave the rare classes out."
            )


def _rows_of(data: Any, split: str) -> Iterable[Any]:
    if not isinstance(data, (str, Path)):
        return data
    path = Path(data)
    if not path.is_file():
        if isinstance(data, Path) or path.suffix.lower() in _FILES:
            raise FileNotFoundError(f"There is no file {path}.")
        ours = demo.load_dataset(data, split=split)  # pyright: ignore[reportArgumentType]
        return cast(Dataset, load_dataset(data, split=split)) if ours is None else ours
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        raise ValueError(f"{path} has to be a file {', '.join(_FILES)}; its suffix is {suffix!r}.")
    try:
        # newline="" leaves the line ends inside a quoted field as they are.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list((_csv_rows if suffix == ".csv" else _json_rows)(file, path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has to be UTF-8: {error}.") from error


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            # DictReader's mark of fields that have no name, or names that have no field.
            if None in row or None in row.values():
                names = ", ".join(reader.fieldnames or ())
                raise csv.Error(f"a row has to have one field for each of {names}")
            yield row
    except csv.Error as error:
        # Its own line_num is that of the last row that was well.
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}.") from error


def _json_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON: {error}. There has to be an object a line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} has to be an object such as "
                f'{{"text": "…", "label": 0}}; it is a {type(row).__name__}.'
            )
        yield row


def _missing(value: Any) -> bool:
    """None, an empty field, or pandas' NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text_of(value: Any, row: int) -> str:
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"Row {row} has no text, or only space. Drop it.")
    if not isinstance(value, str):
        raise ValueError(f"The text of row {row} has to be a string; got {value!r}.")
    return value


def _evidence_of(value: Any, row: int) -> str | None:
    if _missing(value):
        return None
    if not isinstance(value, str):
        raise ValueError(f"The evidence of row {row} has to be a string or None; got {value!r}.")
    return value


def _label_name(value: Any, row: int) -> str | None:
    value = value.item() if hasattr(value, "item") else value  # of numpy or torch
    if _missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"The label of row {row} has to be a class: an integer, a boolean or a string; got "
            f"{value!r}."
        )
    return str(value).strip() or None


def _sorted_names(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d+", n) for n in names) else names


class EncodedTexts(NamedTuple):
    """What a model reads of texts, on the CPU.

    Attributes:
        tokens: token ids, padded on the right.
        attention_mask: True where there is a token.
        word_of: index of the word of the text that a token is part of; −1 for special tokens, the
            template, space alone, and padding.
        words: of each text, as far as the model reads it, without space around them.
        spans: where they begin and end in the text, which is without the template.
        readout: position that the sentence vector is read at.
        n_truncated: texts that were too long and are read in part.
    """

    tokens: Int[Tensor, "n pos"]
    attention_mask: Bool[Tensor, "n pos"]
    word_of: Int[Tensor, "n pos"]
    words: list[list[str]]
    spans: list[list[tuple[int, int]]]
    readout: Int[Tensor, " n"]
    n_truncated: int


def encode_texts(
    model: Any,
    texts: Sequence[str],
    *,
    context_size: int,
    readout: Readout,
    template: str | None = None,
) -> EncodedTexts:
    """Tokens of texts, each a sequence of its own, and the words that they are part of.

    Words are what the tokenizer splits a text into before it looks up tokens; it may split off
    punctuation and single digits. They are parted at space, too, which some tokenizers (Llama-2's,
    Gemma's) do not do. A token that covers characters of the text and of the template is part of
    the word if one of the former is not space.

    Args:
        model: a model of TransformerLens with a fast tokenizer. A text begins with BOS where
            ``model.to_tokens`` has it begin so.
        texts: without the template.
        context_size: tokens at most, special ones and the template's among them. Of a longer text
            the end is cut off; the template stays whole.
        readout: ``"last"``: the last token that is not a special one which the tokenizer put there,
            of the template if that ends with text of its own; ``"first"``: position 0, BOS or
            [CLS] where there is one.
        template: what the model reads around a text, as in ``"Review: {text}\\nSentiment:"``.

    Raises:
        ValueError: if there is no fast tokenizer or no text, ``{text}`` does not stand in the
            template once, ``context_size`` is more than the model's or leaves no room for a text,
            or the tokenizer makes no token of a text.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if not getattr(tokenizer, "is_fast", False):
        what = "no tokenizer" if tokenizer is None else f"the slow {type(tokenizer).__name__}"
        raise ValueError(
            f"Words are found by a fast tokenizer; the model has {what}. Give it one: "
            "AutoTokenizer.from_pretrained(name, use_fast=True)."
        )
    if readout not in get_args(Readout):
        raise ValueError(f"readout must be 'last' or 'first'; got {readout!r}.")
    if template is not None and template.count(_SLOT) != 1:
        raise ValueError(f"{_SLOT} has to stand in the template once; got {template!r}.")
    if context_size > model.cfg.n_ctx:
        raise ValueError(
            f"context_size is {context_size}, more than the model's {model.cfg.n_ctx}."
        )
    if not texts:
        raise ValueError("There are no texts to encode.")
    prefix, _, suffix = (template or _SLOT).partition(_SLOT)
    bos = missing_bos(model)
    rows, word_rows, spans, positions = [], [], [], []
    n_truncated = 0
    for i, text in enumerate(texts):
        encoding, read = _encode(tokenizer, text, prefix, suffix, context_size - len(bos))
        own = [k for k, special in enumerate(encoding.special_tokens_mask) if not special]
        if not own:
            raise ValueError(
                f"The tokenizer makes no token of text {i}, {text!r}: it drops all its characters. "
                "Leave the text out."
            )
        word_of, spans_of_text = _words_of(encoding, read, len(prefix))
        rows.append(torch.tensor(bos + encoding.ids))
        word_rows.append(torch.tensor([-1] * len(bos) + word_of))
        spans.append(spans_of_text)
        positions.append(len(bos) + own[-1] if readout == "last" else 0)
        n_truncated += read != text
    if n_truncated:
        logger.warning(
            "%d of %d texts were too long and cut to %d tokens.",
            n_truncated,
            len(texts),
            context_size,
        )
    # Any id would do for padding: what is no token is told by the mask alone.
    tokens = pad_sequence(rows, True, tokenizer.pad_token_id or 0)  # pyright: ignore[reportOptionalMemberAccess]
    lengths = torch.tensor([len(row) for row in rows])
    return EncodedTexts(
        tokens=tokens,
        attention_mask=torch.arange(tokens.shape[1]) < lengths[:, None],
        word_of=pad_sequence(word_rows, True, -1),
        words=[[t[a:b] for a, b in own] for t, own in zip(texts, spans, strict=True)],
        spans=spans,
        readout=torch.tensor(positions),
        n_truncated=n_truncated,
    )


def evidence_words(
    encoded: EncodedTexts, texts: Sequence[str], evidence: Sequence[str | None]
) -> list[set[int]]:
    """Of each text, the words that its evidence covers, in whole or in part.

    The evidence is looked for as it is, but for how much space there is between its words, and
    taken where it stands first.

    Args:
        encoded: the texts as ``encode_texts`` gave them.
        texts: the same as there.
        evidence: of each text, or None.

    Returns:
        Indices of words; none where there is no evidence or it is not in the text, or only in what
        was cut off.

    Raises:
        ValueError: if there are not as many texts, evidences and encoded texts.
    """
    if not len(texts) == len(evidence) == len(encoded.spans):
        raise ValueError(
            f"There have to be as many texts ({len(texts)}) and evidences ({len(evidence)}) as "
            f"encoded texts ({len(encoded.spans)})."
        )
    found: list[set[int]] = []
    for text, marked, spans in zip(texts, evidence, encoded.spans, strict=True):
        pattern = r"\s+".join(map(re.escape, (marked or "").split()))
        match = re.search(pattern, text) if pattern else None
        start, end = match.span() if match else (0, 0)
        found.append({i for i, (a, b) in enumerate(spans) if a < end and start < b})
    return found


def _encode(tokenizer: Any, text: str, prefix: str, suffix: str, n_room: int) -> tuple[Any, str]:
    """Encoding of the text in its template, and the text, of which the end is cut to make room."""
    while True:
        # Not verbose, or it would warn of what is about to be cut.
        encoding = tokenizer(prefix + text + suffix, verbose=False).encodings[0]
        n_over = len(encoding.ids) - n_room
        if n_over <= 0:
            return encoding, text
        begin, end = len(prefix), len(prefix) + len(text)
        starts = [max(a - begin, 0) for a, b in encoding.offsets if a < b and a < end and b > begin]
        n_kept = len(starts) - n_over
        text = text[: starts[n_kept]].rstrip() if n_kept > 0 else ""
        if not text:
            n_others = len(encoding.ids) - len(starts)
            raise ValueError(
                f"There is no room for a text: {n_room} tokens beside BOS, and special tokens and "
                f"the template take {n_others}. Choose a larger context_size or a shorter template."
            )
        # What is left may be cut into other tokens, so it is tried again; each time it is shorter.


def _words_of(encoding: Any, text: str, text_begin: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Index of each token's word, and the words' spans in the text."""
    word_of: list[int] = []
    spans: list[tuple[int, int]] = []
    last = None
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        start, end = max(start - text_begin, 0), max(end - text_begin, 0)
        piece = text[start:end]
        if word is None or not piece.strip():
            word_of.append(-1)
            continue
        start += len(piece) - len(piece.lstrip())
        end = start + len(piece.strip())
        # Several tokens may be one character's, so that a token need not begin where the last ended.
        if word != last or text[spans[-1][1] : start].isspace():
            spans.append((start, end))
        else:
            spans[-1] = (spans[-1][0], end)
        word_of.append(len(spans) - 1)
        last = word
    return word_of, spans
