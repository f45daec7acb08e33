"""Labeled texts from files, datasets and rows, sampled and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict

from bae_lens import offline as demo
from bae_lens.activations.labeled_texts import LabeledTexts, read_texts
from bae_lens.loading import hub

ROWS = [
    {"text": "a good film", "label": 1, "rationale": "good"},
    {"text": "a bad\nfilm", "label": 0, "rationale": None},
    {"text": 'good, "very" é', "label": 1, "rationale": "very"},
]


# Reading


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def as_jsonl(path: Path) -> Path:
    return write(path / "rows.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS))


def as_json_with_bom_and_crlf(path: Path) -> str:
    lines = "\r\n".join([*map(json.dumps, ROWS), "", ""])
    return str(write(path / "rows.json", lines, "utf-8-sig"))


def as_csv(path: Path) -> Path:
    pd.DataFrame(ROWS).to_csv(path / "rows.csv", index=False)
    return path / "rows.csv"


def as_csv_with_bom_and_crlf(path: Path) -> Path:
    table = pd.DataFrame(ROWS).to_csv(index=False, lineterminator="\r\n")
    return write(path / "rows.csv", table, "utf-8-sig")


@pytest.mark.parametrize(
    "source",
    [
        as_jsonl,
        as_json_with_bom_and_crlf,
        as_csv,
        as_csv_with_bom_and_crlf,
        lambda _: ROWS,
        lambda _: iter(ROWS),
        lambda _: Dataset.from_list(ROWS),
        lambda _: pd.DataFrame(ROWS).to_dict("records"),
    ],
)
def test_texts_come_from_files_datasets_and_rows(tmp_path, source):
    data = LabeledTexts.read(source(tmp_path))

    assert data.texts == [row["text"] for row in ROWS]
    assert data.labels.tolist() == [1, 0, 1]
    assert data.label_names == ["0", "1"]
    assert data.rationales == ["good", None, "very"]
    data.check(1)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([10, 9, -1], ["-1", "9", "10"], [2, 1, 0]),
        (["10", "9", "b"], ["10", "9", "b"], [0, 1, 2]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        ([2.0, 1.0, 2.0], ["1", "2"], [1, 0, 1]),
        (["pos", " neg", "pos "], ["neg", "pos"], [1, 0, 1]),
        (list(torch.tensor([3, 1, 3]).numpy()), ["1", "3"], [1, 0, 1]),
    ],
)
def test_labels_are_numbered_in_the_order_of_their_names(labels, names, numbers):
    data = LabeledTexts.read([{"text": "a", "label": label} for label in labels])

    assert data.label_names == names
    assert data.labels.tolist() == numbers
    assert data.labels.dtype == torch.long
    assert data.rationales == [None] * 3


def test_columns_can_be_named():
    rows = [{"body": "a", "y": 0}, {"body": "b", "y": 1}]

    assert LabeledTexts.read(rows, text_column="body", label_column="y").texts == ["a", "b"]


def test_a_name_is_that_of_the_reviews_or_of_the_hub(monkeypatch):
    asked = []

    def load(name, split, streaming=False):
        asked.append((name, split))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(
        demo, "load_dataset", lambda n, split: load(n, split) if demo.is_demo_dataset(n) else None
    )
    monkeypatch.setattr(hub, "hf_load_dataset", load)

    assert len(LabeledTexts.read("bae-lens/movie-reviews", split="train")) == 3
    assert len(LabeledTexts.read("stanfordnlp/imdb")) == 3
    assert asked == [("bae-lens/movie-reviews", "train"), ("stanfordnlp/imdb", "test")]


@pytest.mark.parametrize("error", [ConnectionError, FileNotFoundError, ValueError])
def test_a_dataset_that_cannot_be_loaded_is_named(monkeypatch, error):
    def load(name, split, streaming):
        raise error("the reason")

    monkeypatch.setattr(hub, "hf_load_dataset", load)
    why = "the hub cannot be reached|HF_HUB_OFFLINE" if error is ConnectionError else "the reason"

    with pytest.raises(ValueError, match=f"split 'test' of a dataset 'reviews' .*({why})"):
        LabeledTexts.read("reviews")


def test_texts_alone_need_no_label(tmp_path):
    texts = [row["text"] for row in ROWS]

    assert read_texts(as_jsonl(tmp_path)) == texts
    with pytest.raises(ValueError, match="n must be a whole number of at least 0"):
        read_texts(as_jsonl(tmp_path), 10**30)
    assert read_texts([{"body": text} for text in texts], 2, text_column="body") == texts[:2]
    # No more is read than is asked for.
    assert read_texts(({"text": text} for text in ["a", "b", ""]), 2) == ["a", "b"]
    with pytest.raises(ValueError, match="no column 'text'"):
        read_texts([{"label": 1}])
    assert read_texts([{"text": text} for text in ("", None, "a", " ")]) == ["a"]
    with pytest.raises(ValueError, match="None of the 1 rows has a text in the column 'text'"):
        read_texts([{"text": ""}])
    with pytest.raises(
        ValueError, match=r"text of row 2 has '\\udc41' as character 2, half of a surr"
    ):
        read_texts([{"text": "a"}, {"text": "b\udc41"}])
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        read_texts("gone.csv")


def changed(number: int, **values: Any) -> list[dict[str, Any]]:
    return [row | values if i == number else row for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no row"),
        (
            [{"txt": "a", "label": 0}],
            r"no column 'text' .*; it has 'txt', 'label'. .*txt.*text_col",
        ),
        ([{"text": "a", "labels": 0}], r"no column 'label' .*Did you mean labels.*label_column"),
        (
            [{"review": f"it is {i}", "sentiment": "good" if i % 2 else "bad"} for i in range(4)],
            r"no column 'text' .*Its texts seem to be in 'review': say so as text_column='review'",
        ),
        (
            [{"text": f"it is {i}", "id": i, "stars": i % 2} for i in range(6)],
            r"no column 'label' .*Its labels seem to be in 'stars': .*--label_column stars",
        ),
        ({"text": ["a", "b"], "label": [0, 1]}, r"got a dict of 'text', 'label'.*from_dict"),
        (changed(1, label=None), r"1 of 3 rows have no label in the column 'label'; .* row 2\."),
        (changed(0, label=float("nan")), "1 of 3 rows"),
        (changed(2, label=" "), "the first is row 3"),
        ([{"text": "a"}, *ROWS], "1 of 4 rows"),
        (ROWS[::2], "All 2 labels are '1'"),
        (changed(0, label=0.5), r"label of row 1 has to be a class.*0\.5"),
        (changed(0, label=[1]), "label of row 1"),
        (
            [row | {"text": None} for row in ROWS],
            "None of the 3 rows has a text in the column 'text'",
        ),
        (changed(1, text=b"ab"), "text of row 2 has to be a string; got b'ab'"),
        (changed(1, text={"a": 1}), "text of row 2 has to be a string; got {'a': 1}"),
        (changed(1, text="a\ud800"), r"text of row 2 has '\\ud800' as character 2, half of a surr"),
        (
            changed(2, label="\ud800"),
            r"label of row 3 has '\\ud800' as character 1, half of a surr",
        ),
        (changed(0, rationale="\udfff"), r"rationale of row 1 has '\\udfff' as character 1"),
        (changed(2, text=["a"]), r"text of row 3 has to be a string; got \['a'\]"),
        (changed(0, rationale=[1, 2]), "rationale of row 1 has to be a string or None"),
        (["a", "b"], "Row 1 has to be a mapping.*got a str"),
        (DatasetDict({"test": Dataset.from_list(ROWS)}), "give one split"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        LabeledTexts.read(rows)


@pytest.mark.parametrize("gap", [None, "", " \n", float("nan")])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_rows_without_a_text_are_passed_over_and_counted(gap, at, caplog):
    rows = [{"text": text, "label": label} for text, label in (("a", 0), ("b", 1), ("c", 1))]
    data = LabeledTexts.read([*rows[:at], {"text": gap, "label": None}, *rows[at:]])
    assert (data.texts, data.labels.tolist()) == (["a", "b", "c"], [0, 1, 1])
    assert "1 of 4 rows have no text in the column 'text' and were passed over." in caplog.text


@pytest.mark.parametrize("field", ["text", "label"])
def test_a_file_of_half_a_surrogate_pair_is_refused_by_row_and_value(tmp_path: Path, field):
    path = tmp_path / "data.jsonl"
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y", field: "\ud800"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=rf"The {field} of row 2 has '\\ud800'") as caught:
        LabeledTexts.read(path)
    str(caught.value).encode()


def test_a_nul_is_a_character_like_another(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    rows = [{"text": "a\0b", "label": "x\0"}, {"text": "c", "label": "y"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = LabeledTexts.read(path)
    assert data.texts == ["a\0b", "c"]
    assert data.label_names == ["x\0", "y"]


def test_a_name_that_stands_twice_in_a_row_is_refused(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "a", "label": 0, "label": 1}\n')
    with pytest.raises(ValueError, match=r"line 2 is not JSON: 'label' stands twice in one object"):
        LabeledTexts.read(path)


def test_the_hubs_mark_of_no_label_is_none():
    table = Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]})
    table = table.cast_column("label", ClassLabel(names=["neg", "pos"]))
    with pytest.raises(ValueError, match=r"2 of 2 rows have no label .*another split"):
        LabeledTexts.read(table)


def named_classes(labels: list[int]) -> Dataset:
    table = Dataset.from_dict({"text": [f"text {i}" for i in labels], "label": labels})
    return table.cast_column("label", ClassLabel(names=["pos", "none", "neg"]))


@pytest.mark.parametrize("streams", [False, True])
def test_classes_are_called_as_the_dataset_calls_them(streams):
    table: Any = named_classes([2, 0, 2, 0])
    data = LabeledTexts.read(table.to_iterable_dataset() if streams else table)

    # In its own order, without those that no text has.
    assert data.label_names == ["pos", "neg"]
    assert data.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("label", [0, 1.0, "1"])
def test_a_data_frame_is_its_rows(label):
    table = pd.DataFrame({"text": ["a", "b"], "label": ["x", label]}, index=[7, 7])

    data = LabeledTexts.read(table)

    assert data.texts == ["a", "b"]
    assert set(data.label_names) == {"x", str(int(label))}
    assert read_texts(table, 1) == ["a"]
    gap = pd.DataFrame({"text": ["a", None, "c"], "label": [0, 1, 1]})
    assert LabeledTexts.read(gap).texts == ["a", "c"]
    with pytest.raises(ValueError, match="no row"):
        LabeledTexts.read(pd.DataFrame({"text": [], "label": []}))


@pytest.mark.parametrize("name", ["gone.csv", "gone.jsonl", "folder/gone.json", Path("gone")])
def test_a_file_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match="gone"):
        LabeledTexts.read(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text": oh}', r"a\.jsonl, line 3 is not JSON"),
        ("a.json", '[{"text": "a", "label": 0}]', r"a\.json, line 1 has to be an object.*a list"),
        (
            "a.csv",
            'text,label\n"a\nb",0\nc,d,1\n',
            r"a\.csv, line 4: a row has to have.*'text', 'label'",
        ),
        ("a.csv", "text,label\na\n", r"a\.csv, line 2: a row"),
        ("a.csv", 'text,label\n"a,0\n', r"a\.csv, line [23]: unexpected end"),
        ("a.csv", "", "no row"),
        ("a.tsv", "text\tlabel", r"\.jsonl, \.json, \.csv, \.txt; its suffix is '\.tsv'"),
    ],
)
def test_a_file_that_is_broken_is_named_with_the_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        LabeledTexts.read(str(write(tmp_path / name, content)))


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\né,0\n", "latin-1")
    with pytest.raises(ValueError, match=r"a\.csv has to be UTF-8"):
        LabeledTexts.read(path)


def test_what_stands_for_nothing_in_pandas_is_a_text(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nNA,0\nnull,1\n")

    assert LabeledTexts.read(path).texts == ["NA", "null"]


# Sampling


def make_labeled(counts: list[int]) -> LabeledTexts:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    texts = [f"text {i}" for i in range(len(labels))]
    return LabeledTexts(texts, labels, [f"class {i}" for i in range(len(counts))], [*texts])


@pytest.mark.parametrize(
    ("counts", "n", "expected"),
    [
        ([60, 30, 10], 20, [12, 6, 2]),
        ([60, 30, 10], 7, [4, 2, 1]),
        ([5, 5], 3, [2, 1]),
        ([5, 5], 10, [5, 5]),
        ([5, 5], 99, [5, 5]),
        ([99, 1], 10, [10, 0]),
    ],
)
def test_a_sample_keeps_the_shares(counts, n, expected):
    data = make_labeled(counts)

    sample = data.sample(n)

    assert sample.labels.bincount(minlength=len(counts)).tolist() == expected
    assert sample.label_names == data.label_names
    assert len(set(sample.texts)) == len(sample)
    for text, label, rationales in zip(sample.texts, sample.labels, sample.rationales, strict=True):
        assert rationales == text
        assert data.labels[data.texts.index(text)] == label


def test_a_sample_is_shuffled_and_the_same_again():
    data = make_labeled([30, 30])

    assert data.sample(20, seed=1).texts == data.sample(20, seed=1).texts
    assert data.sample(20, seed=1).texts != data.sample(20, seed=2).texts
    assert data.sample(60).texts != data.texts
    assert data.sample(60).labels.diff().abs().sum() > 5
    with pytest.raises(ValueError, match="got n = 0"):
        data.sample(0)


def test_every_fold_needs_every_class():
    make_labeled([6, 4]).check(4)
    with pytest.raises(ValueError, match=r"Each of 5 folds .* 6 of 'class 0', 4 of 'class 1'\."):
        make_labeled([6, 4]).check(5)
    with pytest.raises(ValueError, match="two classes at least; got 6 of 'class 0', 0 of"):
        make_labeled([6, 0]).check(1)
    with pytest.raises(ValueError, match="0 … 1"):
        LabeledTexts(["a", "b"], torch.tensor([0, 2]), ["x", "y"], [None] * 2).check(1)
    with pytest.raises(ValueError, match="2 texts, 1 labels and 2 rationales"):
        LabeledTexts(["a", "b"], torch.tensor([0]), ["x", "y"], [None] * 2).check(1)
