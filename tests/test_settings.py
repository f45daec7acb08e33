"""Every field of every config and setting refuses, by its name and with the value, what it cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import LoggingConfig

from bae_lens import (
    BAEConfig,
    CLVQVAEConfig,
    CrossLayerRunnerConfig,
    TopKTranscoderConfig,
    TrainingBAEConfig,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoderConfig,
)
from bae_lens.checks.fields import shown
from bae_lens.concept_ablation.settings import AblationSettings
from bae_lens.entropy.cells import Settings as EntropySettings
from bae_lens.examples.records import ExampleSettings
from bae_lens.finetuning.settings import FinetuningSettings
from bae_lens.quiz.questions import QuizSettings
from bae_lens.scoring.comsem_result import ComSemSettings
from bae_lens.scoring.intruder_result import IntruderSettings
from bae_lens.scoring.judges.budget import Limits
from bae_lens.scoring.ranking import RankingSettings
from bae_lens.scoring.recoverability_result import RecoverabilitySettings
from tests.helpers import HOOK, clvq_cfg

SAE = {"d_in": 16, "d_sae": 40}
RUNNER = {
    "sae": clvq_cfg(sequence_length=None),
    "model_name": "tiny",
    "hook_name": HOOK,
    "dataset_path": "tiny-text",
    "context_size": 16,
    "train_batch_size_tokens": 64,
    "checkpoint_path": None,
    "logger": LoggingConfig(log_to_wandb=False),
    "verbose": False,
}
ENTROPY = {
    "max_unexplained": 0.2,
    "held_out_share": 0.2,
    "seeds": (0, 1),
    "cfg": None,
    "starts": (0.04,),
    "steps": 10,
    "batch_size": 32,
    "lr": 1e-3,
    "device": "cpu",
}
# What is required, by class.
CLASSES: dict[type[Any], dict[str, Any]] = {
    TrainingBAEConfig: SAE,
    BAEConfig: SAE,
    TrainingCLVQVAEConfig: SAE,
    CLVQVAEConfig: SAE,
    TrainingTopKTranscoderConfig: SAE | {"k": 4},
    TopKTranscoderConfig: SAE | {"k": 4, "d_out": 16},
    CrossLayerRunnerConfig: RUNNER,
    EntropySettings: ENTROPY,
    AblationSettings: {},
    FinetuningSettings: {},
    ExampleSettings: {},
    IntruderSettings: {},
    ComSemSettings: {},
    RankingSettings: {},
    RecoverabilitySettings: {},
    QuizSettings: {},
    Limits: {"max_cost": 1.0, "price_in": 1.0},
}
# Of SAELens' runner config only what is ours.
OURS = {CrossLayerRunnerConfig: ("hook_name_out", "text_unit", "initialization_tokens")}


@dataclass
class _Anything:
    x: int = 0


# No field can be any of these.
NEVER: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    1j,
    [],
    {},
    ["a", 1],
    (None,),
    b"1",
    object,
    _Anything(),
    torch.tensor([1.0, 2.0]),
    np.ones(3),
    10**400,
    -(10**400),
    -1.5,
]
IS_NUMBER = (int, float)


def all_fields() -> list[tuple[type[Any], str]]:
    return [
        (kind, name)
        for kind in CLASSES
        for name in OURS.get(kind, [field.name for field in fields(kind)])
    ]


def default(kind: type[Any], name: str) -> Any:
    return getattr(kind(**CLASSES[kind]), name)


def refusal(kind: type[Any], name: str, value: Any) -> str:
    with pytest.raises(ValueError, match=r"must|set ") as error:
        kind(**CLASSES[kind] | {name: value})
    return str(error.value)


@pytest.mark.parametrize(("kind", "name"), all_fields(), ids=lambda v: getattr(v, "__name__", v))
def test_what_no_field_can_be(kind, name):
    for value in NEVER:
        if name == "metadata" and isinstance(value, dict):
            continue
        message = refusal(kind, name, value)
        assert message.startswith(f"{name} must be "), message
        assert shown(value) in message, message
        assert "\n" not in message
        assert len(message) < 400


NUMBERS = [
    (kind, name)
    for kind, name in all_fields()
    if isinstance(default(kind, name), IS_NUMBER) and not isinstance(default(kind, name), bool)
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda v: getattr(v, "__name__", v))
def test_what_no_number_can_be(kind, name):
    for value in ("1", "x", "", None, True, False, np.bool_(True), torch.tensor(1), [1]):
        if value is None and may_be_none(kind, name):
            continue
        message = refusal(kind, name, value)
        assert message.startswith(f"{name} must be a"), message
        assert message.endswith(f"; got {shown(value)}."), message


def hint_of(kind: type[Any], name: str) -> str:
    # Not by the dataclass's fields: what parses a command line puts other types there.
    return str(get_type_hints(kind)[name])


def may_be_none(kind: type[Any], name: str) -> bool:
    # A TopK transcoder's width may be left out in a file.
    return name == "d_out" or "None" in hint_of(kind, name)


WHOLE = [(kind, name) for kind, name in NUMBERS if isinstance(default(kind, name), int)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, name in WHOLE if "float" not in hint_of(kind, name)],
    ids=lambda v: getattr(v, "__name__", v),
)  # fmt: skip
def test_a_whole_number_is_one_and_numpys_become_pythons(kind, name):
    usual = default(kind, name)
    assert refusal(kind, name, usual + 0.5).startswith(f"{name} must be a whole number")
    for same in (np.int64(usual), np.uint16(usual) if usual < 2**16 else usual, float(usual)):
        made = getattr(kind(**CLASSES[kind] | {name: same}), name)
        assert made == usual
        assert type(made) is int
    assert refusal(kind, name, -7).endswith("; got -7.")


# exclude_outlier_tokens is a number, or a flag that stands for one.
FLAGS = [
    (kind, name)
    for kind, name in all_fields()
    if isinstance(default(kind, name), bool) and name != "exclude_outlier_tokens"
]
# Numbers that have a word for their default.
_WORDS = ("target_entropy", "temperature", "curvature_coefficient")
STRINGS = [
    (kind, name)
    for kind, name in all_fields()
    if isinstance(default(kind, name), str) and name not in _WORDS
]


@pytest.mark.parametrize(("kind", "name"), FLAGS, ids=lambda v: getattr(v, "__name__", v))
def test_a_flag_is_true_or_false(kind, name):
    for value in (0, 1, "true", "no", 1.0):
        assert refusal(kind, name, value).startswith(f"{name} must be True"), name


@pytest.mark.parametrize(("kind", "name"), STRINGS, ids=lambda v: getattr(v, "__name__", v))
def test_a_string_is_one(kind, name):
    for value in (1, True, ["none"], b"none"):
        message = refusal(kind, name, value)
        assert message.startswith(f"{name} must be"), message
        assert message.endswith(f"got {shown(value)}."), message
    if name != "hook_name_out":
        assert "must" in refusal(kind, name, "no such thing")


def test_there_are_many_fields():
    assert len(all_fields()) > 120
    assert len(NUMBERS) > 70


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.just(torch.ones(2)),
    st.just(np.float32(0.5)),
    st.just(np.int8(3)),
)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_comes_is_taken_or_refused_by_name(kind, data):
    names = [name for one, name in all_fields() if one is kind]
    name = data.draw(st.sampled_from(names))
    value = data.draw(ANYTHING)
    try:
        made = kind(**CLASSES[kind] | {name: value})
    except ValueError as error:
        said = str(error)
    else:
        said, taken = name, getattr(made, name)
        assert not isinstance(taken, np.generic)
        assert not (isinstance(taken, float) and not math.isfinite(taken))
    assert name in said
