"""Tests of ``bae_lens.moved``: old names of modules go on working, and say what is new."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator

import pytest

import bae_lens
from bae_lens.moved import MOVED, RENAMED, MovedModules, keep_old_names


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Each test imports old names for the first time."""
    yield
    for name in MOVED:
        sys.modules.pop(f"bae_lens.{name}", None)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_warns_once_and_gives_what_is_there_now(old: str) -> None:
    with pytest.warns(FutureWarning, match=f"bae_lens.{old} is now bae_lens.{MOVED[old][0]}"):
        module = importlib.import_module(f"bae_lens.{old}")
    for new in MOVED[old]:
        there = importlib.import_module(f"bae_lens.{new}")
        public = [name for name in vars(there) if not name.startswith("_")]
        assert public
        assert all(hasattr(module, name) for name in public)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.import_module(f"bae_lens.{old}")


def test_a_class_is_the_same_under_both_names() -> None:
    with pytest.warns(FutureWarning):
        old = importlib.import_module("bae_lens.bae")
    assert old.TrainingBAE is bae_lens.TrainingBAE


@pytest.mark.parametrize("old", RENAMED)
def test_a_name_that_is_called_otherwise_now_is_found(old: str) -> None:
    module, name = old.rsplit(".", 1)
    with pytest.warns(FutureWarning):
        found = getattr(importlib.import_module(f"bae_lens.{module}"), name)
    assert found is pkgutil.resolve_name(f"bae_lens.{RENAMED[old]}")


def test_names_that_were_renamed_are_found_where_they_were() -> None:
    with pytest.warns(FutureWarning):
        interp = importlib.import_module("bae_lens.interp")
    assert interp.collect_evidence is importlib.import_module("bae_lens.examples").collect_examples
    assert interp.RecoveryTask is importlib.import_module("bae_lens.scoring").RecoverabilityTask
    evals = importlib.import_module("bae_lens.evals")
    with pytest.warns(FutureWarning, match=r"evals\.summarise_code is now .*summarize_code"):
        assert evals.summarise_code is evals.summarize_code
    with pytest.raises(AttributeError, match="nothing"):
        _ = evals.nothing


def test_a_name_that_never_was_is_an_error_of_the_usual_kind() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"bae_lens\.nothing"):
        importlib.import_module("bae_lens.nothing")
    with pytest.warns(FutureWarning):
        pruning = importlib.import_module("bae_lens.pruning")
    with pytest.raises(AttributeError, match=r"bae_lens\.pruning.* has no attribute 'nothing'"):
        _ = pruning.nothing


def test_the_finder_is_there_once_and_last() -> None:
    keep_old_names()
    found = [i for i, finder in enumerate(sys.meta_path) if isinstance(finder, MovedModules)]
    assert len(found) == 1
