"""What can be chosen, and what cannot."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from bae_lens.concept_ablation import AblationSettings

PROTOCOLS: dict[Any, dict[str, Any]] = {
    "controlled": {"center": True, "probe": "logistic", "n_folds": 5, "causal": True},
    "released": {"center": False, "probe": "mlp", "n_folds": 20, "causal": False},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_sets_what_was_not_given(protocol):
    settings = AblationSettings(protocol=protocol)

    assert {name: getattr(settings, name) for name in PROTOCOLS[protocol]} == PROTOCOLS[protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "given",
    [{"center": True}, {"center": False}, {"causal": False}, {"n_folds": 3, "probe": "mlp"}],
)
def test_and_leaves_what_was(protocol, given):
    settings = AblationSettings(protocol=protocol, **given)

    expected = PROTOCOLS[protocol] | given
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("protocol", "paper", "controlled, released"),
        ("readout", "cls", "None, last, first, mean"),
        ("salient", "attention", "integrated_gradients, gradient_x_activation, readout"),
        ("vectors", "both", "decoder, encoder"),
        ("probe", "svm", "None, logistic, mlp"),
    ],
)
def test_a_choice_is_one_of_those_that_there_are(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name} must be one of {allowed}; got '{value}'"):
        AblationSettings(**{name: value})


LEAST: dict[str, Any] = {
    "n_folds": 2,
    "n_ordinary": 0,
    "context_size": 3,
    "seed": 0,
} | dict.fromkeys(("n_steps", "rank", "n_sample_tokens", "batch_size", "max_examples"), 1)


@pytest.mark.parametrize("name", LEAST)
def test_a_number_is_no_less_than_its_least(name):
    assert getattr(AblationSettings(**{name: LEAST[name]}), name) == LEAST[name]
    too_few = LEAST[name] - 1
    with pytest.raises(
        ValueError, match=f"{name} must be a whole number .*{LEAST[name]}.*; got {too_few}"
    ):
        AblationSettings(**{name: too_few})


def test_label_words_are_several():
    with pytest.raises(
        ValueError, match=r"label_words must be a list .*each a string.*; got 'yes'"
    ):
        AblationSettings(label_words="yes")


@pytest.mark.parametrize("readout", ["first", "mean"])
def test_label_words_are_said_at_the_last_token(readout):
    with pytest.raises(ValueError, match=f"set readout to 'last', not '{readout}'"):
        AblationSettings(label_words=["yes", "no"], readout=readout)
    assert AblationSettings(label_words=["yes", "no"], readout="last").label_words == ("yes", "no")


@pytest.mark.parametrize("label_words", [None, (" no", " yes")])
def test_settings_are_json_and_made_again_from_it(label_words):
    settings = AblationSettings(protocol="released", label_words=label_words, max_examples=5)

    values = json.loads(json.dumps(settings.to_dict()))

    assert values == settings.to_dict()
    again = AblationSettings(**values)
    assert again.to_dict() == settings.to_dict()


def test_settings_stay_as_they_are():
    with pytest.raises(FrozenInstanceError):
        AblationSettings().rank = 2  # pyright: ignore[reportAttributeAccessIssue]
