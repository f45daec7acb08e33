from __future__ import annotations

import pytest

from bae_lens import offline as demo
from bae_lens.offline import minilm, movie_reviews, smollm2
from tests.helpers import make_model, make_text


def test_other_names_are_left_to_sae_lens():
    assert demo.load_model("gpt2", "HookedTransformer", fold_ln=True) is None
    assert demo.load_dataset("monology/pile-uncopyrighted") is None
    assert not demo.is_demo_model("gpt2")
    assert not demo.is_demo_dataset(demo.MODEL_NAME)


@pytest.mark.parametrize("name", ["bae-lens/smollm2", "bae-lens/gpt2", demo.DATASET_NAME])
def test_an_unknown_model_of_ours_is_refused_with_those_there_are(name: str):
    valid = f"'{demo.MODEL_NAME}' or '{demo.ENCODER_NAME}'"
    with pytest.raises(ValueError, match=f"no model '{name}'; did you mean {valid}"):
        demo.load_model(name)


def test_an_unknown_dataset_of_ours_is_refused_with_the_one_there_is():
    with pytest.raises(ValueError, match=f"did you mean '{demo.DATASET_NAME}'"):
        demo.load_dataset("bae-lens/reviews")
    for name in (demo.MODEL_NAME, demo.ENCODER_NAME):
        with pytest.raises(ValueError, match=f"'{name}' is a model"):
            demo.load_dataset(name)


@pytest.mark.parametrize(
    ("class_name", "loader"),
    [
        ("HookedTransformer", "load_hooked"),
        ("HookedSAETransformer", "load_hooked"),
        ("TransformerBridge", "load_bridge"),
        ("SAETransformerBridge", "load_bridge"),
    ],
)
def test_the_class_name_chooses_the_kind_of_model(
    class_name: str, loader: str, monkeypatch: pytest.MonkeyPatch
):
    loaded = []
    monkeypatch.setattr(smollm2, "load_hooked", lambda device: loaded.append("load_hooked"))
    monkeypatch.setattr(smollm2, "load_bridge", lambda device: loaded.append("load_bridge"))
    demo.load_model(demo.MODEL_NAME, class_name)
    assert loaded == [loader]


def test_a_class_that_the_model_does_not_come_as_is_refused():
    with pytest.raises(ValueError, match="'HookedTransformer' or 'TransformerBridge'; got 'Hooked"):
        demo.load_model(demo.MODEL_NAME, "HookedMamba")


def test_the_encoder_comes_as_a_bridge_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minilm, "load_bridge", lambda device: f"on {device}")
    for class_name in ("TransformerBridge", "SAETransformerBridge"):
        assert demo.load_model(demo.ENCODER_NAME, class_name, device="meta") == "on meta"
    refused = f"{demo.ENCODER_NAME} comes as model_class_name 'TransformerBridge'; got 'Hooked"
    with pytest.raises(ValueError, match=refused):
        demo.load_model(demo.ENCODER_NAME)
    with pytest.raises(ValueError, match=f"{demo.ENCODER_NAME} is loaded with its weights as they"):
        demo.load_model(demo.ENCODER_NAME, "TransformerBridge", fold_ln=True)


def test_processing_can_be_off_but_not_on(monkeypatch: pytest.MonkeyPatch):
    tiny = make_model()
    monkeypatch.setattr(smollm2, "load_hooked", lambda device: tiny)
    assert demo.load_model(demo.MODEL_NAME, center_writing_weights=False) is tiny
    with pytest.raises(ValueError, match="takes no model_from_pretrained_kwargs; got fold_ln"):
        demo.load_model(demo.MODEL_NAME, center_writing_weights=False, fold_ln=True)


def test_the_split_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    splits = []
    monkeypatch.setattr(
        movie_reviews, "load_movie_reviews", lambda split: splits.append(split) or make_text(2)
    )
    dataset = demo.load_dataset(demo.DATASET_NAME)
    demo.load_dataset(demo.DATASET_NAME, split="test")
    assert dataset is not None
    assert len(dataset) == 2
    assert splits == ["train", "test"]
