"""Lemmas, with a stand-in for simplemma where it is not installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bae_lens.examples.lemmas import lemma_table, load_simplemma

FORMS = {"dogs": "dog", "Dogs": "dog", "walked": "walk"}


@pytest.fixture
def fake(monkeypatch):
    def lemmatize(word: str, lang: str) -> str:
        assert lang == "en"
        return FORMS.get(word, word)

    monkeypatch.setitem(sys.modules, "simplemma", SimpleNamespace(lemmatize=lemmatize))


def test_forms_of_a_lemma_are_one(fake):
    strings = [" dogs", "Dogs", " dog", "...", " walked", "4", "", " Dog"]

    names, table = lemma_table(strings, "en")

    assert names == ["dog", "walk"]
    assert table.toarray().tolist() == [
        *([1, 0], [1, 0], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0], [1, 0]),
    ]


def test_no_words_at_all(fake):
    names, table = lemma_table(["1", "?"], "en")

    assert names == []
    assert table.nnz == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplemma", None)

    with pytest.raises(ImportError, match=r"pip install .*\[interp\]"):
        load_simplemma()


def test_real_lemmas():
    pytest.importorskip("simplemma")

    names, _ = lemma_table([" walked", " walking", " dogs"], "en")

    assert names == ["walk", "dog"]
