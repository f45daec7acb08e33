"""Lemmas of words, through simplemma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from bae_lens.checks.install_hint import install_command


def load_simplemma() -> Any:
    """The package.

    Raises:
        ImportError: if it is missing; the message is the command to run.
    """
    try:
        import simplemma  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError(
            f"Lemmas are found by simplemma, which is missing: {install_command('interp')}"
        ) from e
    return simplemma


def lemma_table(strings: Sequence[str], language: str) -> tuple[list[str], Any]:
    """Which strings are forms of which lemma.

    Args:
        strings: of tokens, space included. Those with anything but letters have no lemma; pieces of
            words are taken for words.
        language: as ``"en"``.

    Returns:
        The lemmas, in lower case, and a sparse matrix ``[n_strings, n_lemmas]`` with a 1 at each
        string's lemma.

    Raises:
        ImportError: if simplemma is missing.
        ValueError: if it does not know the language.
    """
    simplemma = load_simplemma()
    rows, columns = [], []
    ids: dict[str, int] = {}
    for i, string in enumerate(strings):
        word = string.strip()
        if word.isalpha():
            lemma = simplemma.lemmatize(word, lang=language).lower()
            rows.append(i)
            columns.append(ids.setdefault(lemma, len(ids)))
    ones = np.ones(len(rows), dtype=np.int64)
    table = sparse.csr_matrix((ones, (rows, columns)), shape=(len(strings), max(len(ids), 1)))
    return list(ids), table
