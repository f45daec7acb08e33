"""Tests of ``bae_lens.checks.old_names``."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from bae_lens.checks.old_names import with_new_names
from bae_lens.concept_ablation import AblationSettings
from bae_lens.examples import ExampleSettings, LatentRecord
from bae_lens.scoring import ComSemSettings


def test_an_old_name_is_taken_and_answered_to_with_a_warning() -> None:
    settings_of: Any = ExampleSettings
    ablation_settings: Any = AblationSettings
    with pytest.warns(
        FutureWarning, match=r"ExampleSettings\.n_background is now n_corpus_tokens"
    ) as seen:
        settings = settings_of(n_background=3)
    assert settings == ExampleSettings(n_corpus_tokens=3)
    assert seen[0].filename == __file__
    with pytest.warns(FutureWarning, match="n_corpus_tokens") as seen:
        assert settings.n_background == 3
    assert seen[0].filename == __file__
    with pytest.warns(FutureWarning):
        assert ablation_settings(centre=False).center is False


def test_present_names_and_values_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ExampleSettings(n_corpus_tokens=3).n_corpus_tokens == 3
        assert ComSemSettings(protocol="mended").protocol == "balanced"  # pyright: ignore[reportArgumentType]


def test_a_file_is_read_under_either_name_and_not_under_both() -> None:
    assert with_new_names(LatentRecord, {"neighbours": [1], "index": 0}) == {
        "neighbors": [1],
        "index": 0,
    }
    assert with_new_names(LatentRecord, {"neighbors": [1]}) == {"neighbors": [1]}
    assert with_new_names(int, {"neighbours": [1]}) == {"neighbours": [1]}
    with pytest.raises(
        ValueError, match="'neighbors' stands twice, also under its old name 'neighbours'"
    ):
        with_new_names(LatentRecord, {"neighbors": [], "neighbours": []})


def test_a_field_that_never_was_is_an_error_of_the_usual_kind() -> None:
    with pytest.raises(TypeError, match="nothing"):
        ExampleSettings(nothing=3)  # pyright: ignore[reportCallIssue]
